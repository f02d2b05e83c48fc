"""Send images to the student that is better on them, and see what that gives.

    python inference.py                    the whole test set: tables, metrics.json, figures
    python inference.py photo.jpg more/    your own images, and folders of them
    python inference.py more/ --csv predictions.csv    a row an image, for any number of them
    python inference.py more/ --policy cascade         another way to choose between the students
    python inference.py --context mixed    the same images, half of them noisy, dark, blurred, ...
    python inference.py --out results      write the tables and figures somewhere else
    python inference.py --subset 500       a quick try, in runs/quick/, of its networks if any

Needs checkpoints/densenet121.pth, googlenet.pth and selector.pth. Measured too, where they are
there, are teacher.pth and the students trained without it, densenet121_alone.pth and
googlenet_alone.pth. Where the test set cannot be had, the 1,000 test images that come with the
repository take its place.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from evaluation import figures_into
from evaluation.photos import image_files, one_line, read_image
from evaluation.predictions import Answer, Predictions
from evaluation.significance import wilson_interval
from models import STUDENTS, Cascade, MultiStudent, macs
from utils import cli
from utils.answers import predict
from utils.checkpoint import ALONE, FILES, check_classes, check_students, load_network
from utils.contexts import CONTEXTS, image_seeds, in_context, kinds
from utils.data import Split, fingerprint, is_default, listed, load_sample, load_splits
from utils.device import for_inference, pick_device, precision
from utils.files import UserError, replacing, shown
from utils.run import StopRequest

# ------------------------------------------------------------------ settings

BATCH_SIZE = 500  # images a step
OUT = Path("runs/inference")  # for metrics.json and the figures

POLICIES = {  # who answers for an image
    "selector": "the student that the selector chooses",
    "cascade": "student 2; where it is not sure, both",
    "densenet121": "student 1",
    "googlenet": "student 2",
    "ensemble": "both, with the mean of their logits",
}
LABELS = {
    "teacher": "teacher",
    "densenet121": "student 1, DenseNet-121",
    "googlenet": "student 2, GoogLeNet",
    "densenet121_alone": "DenseNet-121 without the teacher",
    "googlenet_alone": "GoogLeNet without the teacher",
    "routed": "routed by the selector",
    "cascade": "cascade: both where 2 is not sure",
    "better_student": "the better student of the two",
    "random": "a student at random",
    "ensemble": "mean of both students' logits",
    "oracle": "oracle: right if either student is",
}

# ------------------------------------------------------------------ the story


def main() -> int:
    parser = cli.common_parser(__doc__, globals(), quick=True)
    parser.add_argument("images", nargs="*", type=Path, help="your own images, or folders of them")
    cli.add_out(parser, OUT, "metrics.json and the figures")
    parser.add_argument(
        "--csv", type=Path, metavar="PATH",
        help="write the answers for your own images to this file, a row an image",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", help="continue the --csv of a run that was stopped"
    )
    parser.add_argument(
        "--policy", choices=POLICIES, default="selector",
        help="who answers for your own images: "
        + "; ".join(f"{name}: {who}" for name, who in POLICIES.items()) + " (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--threshold", type=cli.flag("THRESHOLD", float), metavar="P",
        help="student 1 answers where the selector gives it this probability (selector), or runs "
        "too where student 2's class has less than this one (cascade); default: as chosen on the "
        "validation images",
    )  # fmt: skip
    cli.add_context(parser, "clean", "what the test images are seen in")
    args = parser.parse_args()
    if args.threshold is not None and args.policy not in ("selector", "cascade"):
        parser.error(f"--threshold: --policy {args.policy} has none")
    if args.resume and not args.csv:
        parser.error("--resume continues a --csv: name it")
    if args.csv and not args.images:
        parser.error("--csv is for your own images: name them, or a folder of them")
    if args.images and args.context != "clean":
        parser.error("--context is for the test set: your own images are seen as they are")
    if args.images and args.subset is not None:
        parser.error(
            "--subset is for the test set: your own images are all answered; the networks of a "
            "quick try lie in --checkpoint-dir runs/quick"
        )
    device = pick_device(args.device)
    if args.images:
        firsts = (
            next(image_files([path])) if os.path.isdir(path) else path for path in args.images
        )
        if all(map(os.path.isdir, firsts)):
            read_image(next(image_files(args.images)))  # which says what is wrong with the folder
        system, names, made_of = load_policy(args.policy, args, device)
        if args.csv:
            return write_answers(system, names, made_of, args, device)
        return print_answers(
            system, names, made_of["classes"], args.images, args.batch_size, device
        )

    figures = figures_into(args.out)
    archs = {"teacher": "resnet50", **{f"{arch}_alone": arch for arch in ALONE}}
    files = {"teacher": FILES["resnet50"], **{arch: FILES[arch] for arch in STUDENTS}}
    files |= {f"{arch}_alone": file for arch, file in ALONE.items()}
    paths = {name: cli.found(args, file) for name, file in files.items()}
    histories = figures.read_histories(paths)
    system, _, made_of = load_policy("selector", args, device)
    cascade, *_ = load_policy("cascade", args, device)
    networks = dict(zip(STUDENTS, system.students, strict=True))
    if not paths["teacher"].exists():
        print(f"no teacher at {shown(paths['teacher'])}: it is left out\n")
    dataset, test = test_images(args.data_dir, args.subset, device)
    check_classes(paths[STUDENTS[0]], made_of, test.classes, test.name)
    for name, arch in archs.items():
        if paths[name].exists():
            net, facts = load_network(paths[name], arch)
            check_classes(paths[name], facts, test.classes, test.name)
            networks[name] = for_inference(net, device)
    seen, test = kinds(args.context, image_seeds(test)), in_context(test, args.context)
    dataset += "" if args.context == "clean" else f", {args.context}"
    cli.announce(
        f"Classifying {len(test):,} images: {dataset}, {listed(test.classes)}",
        device=f"{device}, {precision(device)}",
        networks=", ".join(shown(paths[name]) for name in networks),
        selector=f"{shown(cli.found(args, FILES['selector']))}, student 1 from a probability of "
        f"{system.threshold:.2f} on",
        cascade=f"student 1 too where student 2 has less than {cascade.threshold:.2f}",
        writes=shown(args.out),
    )

    metrics, routed = measure(networks, system, cascade, test, seen, args.batch_size)
    metrics = {"dataset": dataset, "context": args.context, "images": len(test), **metrics}
    print_tables(metrics)
    with replacing(args.out / "metrics.json", binary=False) as file:
        json.dump(metrics, file, indent=2)
    written = figures.draw_all(args.out, metrics, histories, test, *routed)
    print(f"wrote {', '.join(shown(path) for path in [args.out / 'metrics.json', *written])}")
    return 0


def load_policy(
    policy: str, args: argparse.Namespace, device: torch.device
) -> tuple[nn.Module, tuple[str, ...], dict[str, Any]]:
    """What answers under `policy`, on the device, the names of its choices, and what it is made of.

    Only the networks that run are loaded. --threshold is that of --policy; other thresholds are
    those in the selector's checkpoint. What it is made of is all that an answer depends on, but for
    the image.
    """
    threshold = args.threshold if policy == args.policy else None
    archs = (policy,) if policy in STUDENTS else STUDENTS
    paths = [cli.found(args, FILES[arch]) for arch in archs]
    trained = [load_network(*each) for each in zip(paths, archs, strict=True)]
    check_classes(paths[-1], trained[-1][1], trained[0][1]["classes"], shown(paths[0]))
    nets = {arch: net for arch, (net, _) in zip(archs, trained, strict=True)}
    if policy == "selector" or (policy == "cascade" and threshold is None):
        path = cli.found(args, FILES["selector"])
        selector, chosen = load_network(path, "selector")
        check_students(path, chosen, list(nets.values()))
    students = [for_inference(net, device) for net in nets.values()]
    if policy in STUDENTS:
        system, names = Cascade(students, 0), (policy,)
    elif policy == "ensemble":
        system, names = Cascade(students, 1.01), ("both", "both")
    elif policy == "cascade":
        threshold = chosen.get("cascade_threshold", 0.9) if threshold is None else threshold
        system, names = Cascade(students[::-1], threshold), (STUDENTS[1], "both")
    else:
        threshold = chosen.get("threshold", 0.5) if threshold is None else threshold
        system, names = MultiStudent(students, for_inference(selector, device), threshold), STUDENTS
        nets["selector"] = selector
    made_of = {
        "policy": policy,
        "threshold": threshold,
        "device": f"{device.type}, {precision(device)}",
        **{name: trained[0][1][name] for name in ("classes", "mean", "std")},
        **{arch: fingerprint(net.state_dict().values()) for arch, net in nets.items()},
    }
    return system.eval(), names, made_of


def test_images(data_dir: Path, subset: int | None, device: torch.device) -> tuple[str, Split]:
    """The name of what is classified, and its images: the test set, or the sample in its place."""
    try:
        test = load_splits(data_dir, subset, device)[2]
        own = test.name != "CIFAR-10"
        return f"test images of {test.name}" if own else "CIFAR-10 test set", test
    except UserError as error:
        if not is_default(data_dir):  # asked for by name: nothing else will do
            raise
        print(f"\nThe CIFAR-10 test set cannot be had: {error}\n", file=sys.stderr)
        print("The 1,000 test images in data/sample.npz take its place.\n", file=sys.stderr)
        return "sample of the CIFAR-10 test set", load_sample(subset, device)


# ------------------------------------------------------------------ the test set


def measure(
    networks: dict[str, nn.Module],
    system: MultiStudent,
    cascade: Cascade,
    test: Split,
    seen: list[str],
    batch_size: int,
) -> tuple[dict, tuple[np.ndarray, np.ndarray]]:
    """Every way of classifying `test`: its metrics, and the routed predictions and choices (N,).

    `seen` is the kind of each image, "clean" or how it is degraded.
    """
    logits, speed = {}, {}
    for name, net in {**networks, "routed": system, "cascade": cascade}.items():
        predict(net, test.images[:batch_size], None, batch_size)  # warm up before the clock runs
        started = time.perf_counter()
        logits[name] = predict(net, test.images, LABELS[name], batch_size)
        speed[name] = len(test) / (time.perf_counter() - started)
    logits["routed"], choice = logits["routed"]
    logits["cascade"], last = logits["cascade"]
    first, second = (logits[name] for name in STUDENTS)
    logits["ensemble"] = (first + second) / 2
    speed["ensemble"] = 1 / sum(1 / speed[name] for name in STUDENTS)

    # Apple's GPUs have no float64.
    logits = {name: each.cpu() for name, each in logits.items()}
    choice, last, labels = choice.cpu(), last.cpu(), test.labels.cpu()
    right = {name: (each.argmax(dim=1) == labels).double() for name, each in logits.items()}
    one, two = (right[name] for name in STUDENTS)
    better = max(STUDENTS, key=lambda name: right[name].mean().item())
    right["better_student"] = right[better]
    right["random"] = (one + two) / 2  # what a fair coin gets on average
    right["oracle"] = torch.maximum(one, two)

    work = {name: macs(net) for name, net in networks.items()}
    share = (choice == 0).double().mean().item()
    costs = [work[name] for name in STUDENTS]
    work["routed"] = macs(system.selector) + share * costs[0] + (1 - share) * costs[1]
    work["cascade"] = costs[1] + (last == 1).double().mean().item() * costs[0]
    work["ensemble"] = sum(costs)
    work["random"] = sum(costs) / 2
    work["better_student"], speed["better_student"] = work[better], speed[better]

    names = [name for name in LABELS if name in right]
    members = {test.classes[k]: labels == k for k in labels.unique().tolist()}
    accuracy = {name: right[name].mean().item() for name in names}
    metrics = {
        "accuracy": accuracy,
        "accuracy_interval": intervals(accuracy, len(test)),
        "per_class": {
            name: {label: right[name][of].mean().item() for label, of in members.items()}
            for name in names
        },
        "route_share": dict(zip(STUDENTS, (share, 1 - share), strict=True)),
        "route_share_per_class": {
            label: (choice[of] == 0).double().mean().item() for label, of in members.items()
        },
        "per_context": {
            kind: by_context(torch.tensor([each == kind for each in seen]), right, choice)
            for kind in CONTEXTS
            if kind in seen
        },
        "macs_per_image": {name: round(work[name] * 1e6) for name in names if name in work},
        "images_per_second": {name: round(speed[name], 1) for name in names if name in speed},
    }
    return metrics, (logits["routed"].argmax(dim=1).numpy(), choice.numpy())


def by_context(of: torch.Tensor, right: dict[str, torch.Tensor], choice: torch.Tensor) -> dict:
    """Accuracies on the images of one kind, `of` bool (N,), and how many of them go to whom."""
    chosen = choice[of]
    return {
        "images": len(chosen),
        "accuracy": {name: each[of].mean().item() for name, each in right.items()},
        "sent": {name: (chosen == k).sum().item() for k, name in enumerate(STUDENTS)},
    }


def intervals(accuracy: dict[str, float], images: int) -> dict[str, tuple[float, float]]:
    """The 95 % interval of each accuracy but that of `random`, an average of two classifiers."""
    return {
        name: wilson_interval(each, images) for name, each in accuracy.items() if name != "random"
    }


def print_tables(metrics: dict) -> None:
    """The metrics as two tables; as three where the images are in several contexts."""
    print(f"\n{'':<36}{'top-1 %':>8}{'95 %':>13}{'MMACs/image':>13}{'images/s':>10}")
    for name, accuracy in metrics["accuracy"].items():
        work, speed = metrics["macs_per_image"].get(name), metrics["images_per_second"].get(name)
        low_high = [f"{100 * each:.1f}" for each in metrics["accuracy_interval"].get(name, ())]
        print(
            f"{LABELS[name]:<36}{accuracy * 100:>8.2f}{'-'.join(low_high) or '-':>13}"
            f"{'-' if work is None else f'{work / 1e6:.1f}':>13}"
            f"{'-' if speed is None else f'{speed:.0f}':>10}"
        )
    columns = [name for name in ("teacher", *STUDENTS, "routed") if name in metrics["accuracy"]]
    heads = [*columns, "to student 1"]
    width = max(18, *(len(label) + 1 for label in metrics["route_share_per_class"]))
    print(f"\n{'top-1 % by class':<{width}}" + "".join(f"{head:>14}" for head in heads))
    for label, share in metrics["route_share_per_class"].items():
        shares = [*(metrics["per_class"][name][label] for name in columns), share]
        print(f"{label:<{width}}" + "".join(f"{100 * each:>14.1f}" for each in shares))
    shares = [*(metrics["accuracy"][name] for name in columns), metrics["route_share"][STUDENTS[0]]]
    print(f"{'all':<{width}}" + "".join(f"{100 * each:>14.1f}" for each in shares) + "\n")
    if metrics["context"] == "clean":
        return
    heads = [*columns, "to student 1", "to student 2"]
    print(f"{'top-1 % by context':<18}" + "".join(f"{head:>14}" for head in heads))
    for kind, facts in metrics["per_context"].items():
        print(
            f"{kind:<18}"
            + "".join(f"{100 * facts['accuracy'][name]:>14.1f}" for name in columns)
            + "".join(f"{facts['sent'][name]:>14,}" for name in STUDENTS)
        )
    print()


# ------------------------------------------------------------------ your own images


def answers(
    system: nn.Module,
    names: Sequence[str],
    classes: Sequence[str],
    files: Iterator[Path],
    batch_size: int,
    device: torch.device,
) -> Iterator[list[Answer]]:
    """The answer for each file, in their order, a batch at a time.

    Args:
        names: of the system's choices.
        classes: of its logits.
    """
    while batch := [Answer(file) for file in islice(files, batch_size)]:
        images = []
        for each in batch:
            try:
                images.append(read_image(each.file))
            except UserError as error:
                each.error = str(error)
        if images:
            pixels = torch.from_numpy(np.stack(images)).to(device)
            logits, choice = predict(system, pixels, batch_size=batch_size)
            best = logits.softmax(dim=1).max(dim=1)
            good = [each for each in batch if not each.error]
            for each, probability, label, student in zip(
                good, best.values.tolist(), best.indices.tolist(), choice.tolist(), strict=True
            ):
                each.label, each.student = classes[label], names[student]
                each.probability = probability
        yield batch


def print_answers(
    system: nn.Module,
    names: Sequence[str],
    classes: Sequence[str],
    paths: list[Path],
    batch_size: int,
    device: torch.device,
) -> int:
    """Print a line for each image: its class, probability and student. 2 if one is no image."""
    failed = 0
    width = max(12, *(len(name) + 1 for name in classes))
    print(f"{'class':<{width}}{'probability':>11}  {'student':<13}file")
    for batch in answers(system, names, classes, image_files(paths), batch_size, device):
        for each in batch:
            if each.error:
                failed += 1
                print(f"inference.py: error: {each.error}", file=sys.stderr)
            else:
                print(
                    f"{each.label:<{width}}{each.probability:>11.1%}  {each.student:<13}"
                    f"{one_line(each.file)}"
                )
        sys.stdout.flush()
    if failed:
        print(f"inference.py: {failed:,} of the files could not be read", file=sys.stderr)
    return 2 if failed else 0


def write_answers(
    system: nn.Module,
    names: Sequence[str],
    made_of: dict[str, Any],
    args: argparse.Namespace,
    device: torch.device,
) -> int:
    """Write a row for each image to args.csv, a batch at a time. 2 if one is no image.

    Ctrl-C and SIGTERM end it with status 130 and 143, once the images read so far have their row.
    """
    made_of["batch_size"] = args.batch_size  # which rounding depends on
    with closing(Predictions(args.csv, args.resume, made_of)) as table, StopRequest() as stop:
        files = takewhile(lambda _: not stop.signal, image_files(args.images))
        files = (file for file in files if not table.skips(file))
        with tqdm(unit="img", initial=table.answered + table.failed) as bar:
            for batch in answers(system, names, made_of["classes"], files, args.batch_size, device):
                table.write(batch)
                bar.update(len(batch))
        done = f"{table.answered:,} images answered, {table.failed:,} files failed"
        if stop.signal:
            stop.leave(done)
    print(f"{done}: {shown(args.csv)}")
    return 2 if table.failed else 0


if __name__ == "__main__":
    cli.run(main)
