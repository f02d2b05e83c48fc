"""results/all.csv: one row for each network and policy that is reported."""

import csv
import functools
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from evaluation.significance import wilson_interval
from models import SELECTED, STUDENTS, Selector, network, parameters
from studies.contexts import NETS, POLICIES
from utils.checkpoint import EXPECTED, FILES, ROOT, read_checkpoint
from utils.contexts import GROUPS
from utils.files import read_json

COLUMNS = ("name", "data", "context", "trained_on", "stem", "seed", "epochs", "top1", "top1_low")
COLUMNS += ("top1_high", "parameters", "macs", "bytes", "source")
FOLDERS = {"metrics.json": "checkpoints", "cifar/metrics.json": "checkpoints/cifar"}
SUFFIXES = {"none": "_alone", "mse": "", "kl": "_kl"}  # of names, for the losses of distillation
LEFT_OUT = ("better_student", "random", "oracle")  # they have a row, or cannot be run
IMAGES = 10_000  # in the test set


def bare(name: str, stem: str) -> nn.Module:
    """A network whose weights have no values: it is made at once, and its costs are the same."""
    with torch.device("meta"):
        net = Selector(outputs=len(SELECTED)) if name == "selector" else network(name, stem)
    return net.to_empty(device="cpu")


@functools.cache
def size(name: str, stem: str) -> tuple[int, int]:
    """The number of parameters of a network, and of bytes of its weights in half precision."""
    net = bare(name, stem)
    weights = net.state_dict().values()
    half = sum(2 * each.numel() if each.is_floating_point() else each.nbytes for each in weights)
    return round(1e6 * parameters(net)), half


def row(
    source: str,
    name: str,
    made: Mapping[str, Any],
    top1: float,
    macs: float,
    context: str = "clean",
    interval: Sequence[float] = (),
) -> list[Any]:
    """The values of COLUMNS. `made` has the hyperparameters of a network; of a policy, the stem."""
    arch = re.split(",|_alone|_kl", name)[0]  # "googlenet, twice" is a GoogLeNet
    if arch in ("teacher", *STUDENTS):
        parts = [EXPECTED[arch]]
    elif source == "contexts.json":
        _, policy, instead = POLICIES[name]
        roles = [*SELECTED, *(["selector"] if policy == "selector" else [])]
        parts = [NETS[instead.get(role, role)].arch for role in roles]
    elif name.startswith("cascade"):
        parts = STUDENTS
    else:
        parts = [*SELECTED, *(["selector"] if name == "routed" else [])]
    sizes = [size(part, made["stem"]) for part in parts]
    numbers, half = (sum(column) for column in zip(*sizes, strict=True))
    percent = [f"{100 * each:.2f}" for each in (top1, *(interval or wilson_interval(top1, IMAGES)))]
    facts = [made.get(key) for key in ("context", "stem", "seed", "epochs")]
    return [name, "CIFAR-10", context, *facts, *percent, numbers, round(macs), half, source]


def all_results() -> str:
    """The content of all.csv, from results/*.json and the checkpoints.

    Accuracies are in percent, with 95 % intervals. Parameters and bytes of a policy are those of
    all its networks; MACs are the mean per image.
    """
    folder, rows = ROOT / "results", []
    for source, place in FOLDERS.items():
        metrics = read_json(folder / source, dict)
        networks = {name: read_checkpoint(ROOT / place / file) for name, file in FILES.items()}
        for name in [name for name in metrics["accuracy"] if name not in LEFT_OUT]:
            facts = networks.get(name, networks["teacher"])
            made = {"context": "clean", **facts["hyperparameters"]} if name in networks else {}
            numbers = (metrics[key][name] for key in ("accuracy", "macs_per_image"))
            rows.append(row(source, name, {**made, "stem": facts["stem"]}, *numbers))
    pool = {"stem": "cifar-pool"}
    work = read_json(folder / "metrics.json", dict)["macs_per_image"]
    for run in read_json(folder / "distillation.json", list):
        name, made = run["student"] + SUFFIXES[run["distill_loss"]], {"context": "clean", **run}
        numbers = run["test_accuracy"], work[run["student"]]
        rows.append(row("distillation.json", name, made | pool, *numbers))
    study = read_json(folder / "contexts.json", dict)
    systems = {"teacher": study["teacher"]}
    for group in ("students", "specialists", "generalists", "policies"):
        systems |= study[group]
    for name, facts in systems.items():
        for group in GROUPS if name not in LEFT_OUT else ():
            macs = facts.get("macs_by_context", {}).get(group, facts["macs"])
            numbers = facts["accuracy"][group], macs, group, facts["interval"][group]
            rows.append(row("contexts.json", name, facts.get("trained", {}) | pool, *numbers))
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    return file.getvalue()
