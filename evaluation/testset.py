"""Evaluation of all networks and policies on the test set, as metrics and as tables."""

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import nn

from evaluation.policies import POLICIES, THRESHOLDS, Networks, Outcome, System
from evaluation.significance import calibration_error, wilson_interval
from models import NETWORKS, SELECTED, STUDENTS, TEACHER, macs
from utils import cli
from utils.contexts import CONTEXTS
from utils.data import Split, load_sample, load_splits
from utils.files import UserError, replacing
from utils.logits import predict
from utils.method import share

NUMBERS = [str(1 + STUDENTS.index(arch)) for arch in SELECTED]
EITHER = f"student {' or '.join(NUMBERS)}"
LABELS = {  # names of the networks and policies in tables and figures
    "teacher": f"teacher, {NETWORKS[TEACHER].title}",
    **{arch: f"student {k}, {NETWORKS[arch].title}" for k, arch in enumerate(STUDENTS, 1)},
    **{f"{arch}_alone": f"{NETWORKS[arch].title} without the teacher" for arch in STUDENTS},
    "routed": "routed by the selector",
    "cascade": "cascade: the next student if unsure",
    "cascade_teacher": "cascade at the teacher's accuracy",
    "better_student": f"{EITHER}, the best one",
    "random": f"{EITHER} at random",
    "more_confident": f"{EITHER}, the most confident one",
    "ensemble": f"mean of the logits of students {' and '.join(NUMBERS)}",
    "oracle": f"oracle: right if {EITHER} is",
}

MOST = 10  # maximum number of classes in a printed table
ROUTED = {"selector": "routed"}  # names of policies in LABELS and metrics.json, where they differ


def test_images(
    data: str, subset: int | None, device: torch.device, seen_by: Mapping[str, Any]
) -> tuple[str, Split]:
    """Load the test set, or the sample in data/ if it is not available. Returns (name, images).

    The arguments are those of `load_splits`.
    """
    try:
        test = load_splits(data, subset, device, seen_by)[2]
        own = test.name != "CIFAR-10"
        return f"test images of {test.name}" if own else "CIFAR-10 test set", test
    except UserError as error:
        if data != "cifar10":  # the user asked for this file: do not replace it
            raise
        print(f"\nThe CIFAR-10 test set is not available: {error}\n", file=sys.stderr)
        print("Using the 1,000 test images in data/sample.npz instead.\n", file=sys.stderr)
        sample = load_sample(subset, device)
        mean, std = tuple(seen_by["mean"]), tuple(seen_by["std"])
        sample.data = replace(sample.data, mean=mean, std=std)
        return "sample of the CIFAR-10 test set", sample


@dataclass
class Predictions:
    """The predictions of a network or a policy for N images, each (N,)."""

    labels: torch.Tensor  # int64, the predicted class
    confidences: torch.Tensor  # its probability, in [0, 1], before temperature scaling
    probabilities: torch.Tensor  # the same after temperature scaling, as shown to users


@dataclass
class Results:
    """The results of all networks and policies on N images. The results are on the CPU."""

    metrics: dict[str, Any]  # the contents of metrics.json
    test: Split
    seen: list[str]  # the context of each image: "clean" or the kind of degradation
    nets: Networks
    temperatures: dict[str, float]  # of the networks
    thresholds: dict[str, Sequence[float]]  # of each policy that has some
    outcomes: dict[str, Outcome]  # of each policy, and of "oracle"; "selector" is named "routed"
    predictions: dict[str, Predictions]  # of each network and policy, not of the oracle


def measure(
    networks: dict[str, nn.Module],
    systems: dict[str, System],
    temperatures: dict[str, float],
    test: Split,
    seen: list[str],
    batch_size: int,
) -> Results:
    """Classify the images `test` with every network and policy, and time each.

    Args:
        networks: all students, the selector, and optionally the teacher and other networks named
            in LABELS, prepared for inference.
        systems: the policies that have thresholds, made of the same networks.
        temperatures, seen: see `Results`.
    """
    logits, speed = {}, {}
    runs = networks | {ROUTED.get(name, name): system.net for name, system in systems.items()}
    for name, net in runs.items():
        predict(net, test.take(slice(batch_size)), None, batch_size)  # warm-up, not timed
        started = time.perf_counter()
        outputs = predict(net, test, LABELS.get(name, name), batch_size)
        speed[name] = len(test) / (time.perf_counter() - started)
        if name in networks:
            logits[name] = outputs.cpu()  # Apple's GPUs have no float64
    work = {name: macs(net, test.data.size) for name, net in networks.items()}
    nets = Networks(logits, work, test.labels.cpu())
    thresholds = {name: system.thresholds for name, system in systems.items()}
    return evaluate(nets, thresholds, temperatures, speed, test, seen)


def evaluate(
    nets: Networks,
    thresholds: dict[str, Sequence[float]],
    temperatures: dict[str, float],
    speed: dict[str, float],
    test: Split,
    seen: list[str],
) -> Results:
    """Compute all metrics from the outputs of the networks; `speed` is in images per second."""
    labels, better, work = nets.labels, nets.better_student(), dict(nets.work)
    right, predictions, outcomes = {}, {}, {}
    for name in [name for name in nets.logits if name in LABELS]:
        right[name] = nets.right(name).double()
        predictions[name] = _predictions(nets.logits[name], temperatures[name])
    missing = THRESHOLDS.keys() - thresholds.keys()
    for policy in [name for name in POLICIES if name not in (*STUDENTS, *missing)]:
        name, system = ROUTED.get(policy, policy), nets.system(policy, thresholds.get(policy))
        outcomes[name] = found = nets.run(system)
        scales = [fmean(temperatures[arch] for arch in archs) for archs in system.answered]
        predictions[name] = _predictions(found.logits, torch.tensor(scales)[found.choice, None])
    outcomes["oracle"] = nets.oracle()
    for name, outcome in outcomes.items():
        right[name], work[name] = outcome.right.double(), outcome.macs
    for facts in (right, work):
        facts["better_student"] = facts[better]
        # The expected value of a random choice.
        facts["random"] = sum(facts[name] for name in SELECTED) / len(SELECTED)
    del work["oracle"]  # it cannot be run

    members = {test.classes[k]: labels == k for k in labels.unique().tolist()}
    keys = ("accuracy", "accuracy_interval", "per_class", "calibration_error")
    keys += ("macs_per_image", "images_per_second", "per_context")
    metrics: dict[str, Any] = {"images": len(labels), **{key: {} for key in keys}}
    for name in [name for name in LABELS if name in right]:
        hits = right[name]
        metrics["accuracy"][name] = accuracy = hits.mean().item()
        metrics["per_class"][name] = {
            label: hits[of].mean().item() for label, of in members.items()
        }
        if name != "random":  # which is an average of classifiers
            metrics["accuracy_interval"][name] = wilson_interval(accuracy, len(labels))
        if found := predictions.get(name):
            metrics["calibration_error"][name] = {
                "raw": calibration_error(found.confidences, hits),
                "scaled": calibration_error(found.probabilities, hits),
            }
        if name in work:
            metrics["macs_per_image"][name] = round(work[name])
        if name in speed:
            metrics["images_per_second"][name] = round(speed[name], 1)
    metrics["macs_per_image"]["selector"] = round(work["selector"])
    choice = outcomes["routed"].choice
    metrics["route_share"] = {arch: share(choice == k) for k, arch in enumerate(SELECTED)}
    metrics["route_share_per_class"] = {
        label: share(choice[of] == 0) for label, of in members.items()
    }
    for kind in [kind for kind in CONTEXTS if kind in seen]:
        of = torch.tensor([each == kind for each in seen])
        metrics["per_context"][kind] = {
            "images": int(of.sum()),
            "accuracy": {name: right[name][of].mean().item() for name in metrics["accuracy"]},
            "sent": {arch: int((choice[of] == k).sum()) for k, arch in enumerate(SELECTED)},
        }
    return Results(metrics, test, seen, nets, temperatures, thresholds, outcomes, predictions)


def _predictions(logits: torch.Tensor, temperature: float | torch.Tensor) -> Predictions:
    confidences, labels = logits.softmax(dim=1).max(dim=1)
    return Predictions(labels, confidences, (logits / temperature).softmax(dim=1).amax(dim=1))


def save_predictions(path: Path, results: Results) -> None:
    """Write what each network and policy said about each of N images to an .npz file.

    It has `labels` and `indices`, int64 (N,); for networks `logits/NAME`, float16 (N, classes), or
    (N, students) of the selector; for networks and policies `predictions/NAME`, int16 (N,), the
    class; and for policies `choice/NAME`, int8 (N,), the second output of the system.
    """
    arrays = {"labels": results.nets.labels.numpy(), "indices": results.test.indices}
    for name, logits in results.nets.logits.items():
        arrays[f"logits/{name}"] = logits.half().numpy()
    for name, predictions in results.predictions.items():
        arrays[f"predictions/{name}"] = predictions.labels.short().numpy()
    for name, outcome in results.outcomes.items():
        arrays[f"choice/{name}"] = outcome.choice.char().numpy()
    with replacing(path) as file:
        np.savez_compressed(file, **arrays)


def print_tables(metrics: dict) -> None:
    """Print the metrics in two tables, or three if the images are from several contexts."""
    rows = []
    for name, accuracy in metrics["accuracy"].items():
        if name == "better_student":  # has a row already
            continue
        work, speed = (metrics[key].get(name) for key in ("macs_per_image", "images_per_second"))
        interval = metrics["accuracy_interval"].get(name, ())
        row = [LABELS[name], f"{100 * accuracy:.2f}", "-".join(f"{100 * x:.1f}" for x in interval)]
        rows.append([*row, f"{work / 1e6:.1f}" if work else "", f"{speed:.0f}" if speed else ""])
    print(f"\n{cli.aligned(['', 'top-1 %', '95 %', 'MMACs/image', 'images/s'], rows)}")

    columns = [name for name in ("teacher", *STUDENTS, "routed") if name in metrics["accuracy"]]
    by_class, worst = metrics["per_class"], list(metrics["per_class"]["routed"])
    title = "top-1 % by class"
    if len(worst) > MOST:
        worst = sorted(worst, key=by_class["routed"].get)[:MOST]
        title = f"the {MOST} worst classes"
    sent = metrics["route_share_per_class"] | {"all": metrics["route_share"][SELECTED[0]]}
    rows = [[label, *(by_class[name][label] for name in columns), sent[label]] for label in worst]
    rows.append(["all", *(metrics["accuracy"][name] for name in columns), sent["all"]])
    tables = [([title, *columns, f"% to {SELECTED[0]}"], rows)]
    if metrics["context"] != "clean":
        heads = ["top-1 % by context", *columns, *(f"% to {arch}" for arch in SELECTED)]
        rows = []
        for kind, facts in metrics["per_context"].items():
            sent = [facts["sent"][arch] / facts["images"] for arch in SELECTED]
            rows.append([kind, *(facts["accuracy"][name] for name in columns), *sent])
        tables.append((heads, rows))
    for heads, rows in tables:
        cells = [[label, *(f"{100 * each:.1f}" for each in shares)] for label, *shares in rows]
        print(f"\n{cli.aligned(heads, cells)}")
    print()
