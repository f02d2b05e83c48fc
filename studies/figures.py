"""The figures of the studies, one function per figure."""

import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.figures import COLORS, MARKERS, WRONG
from evaluation.policies import BOTH
from evaluation.significance import paired_interval
from evaluation.testset import LABELS, ROUTED
from models import NETWORKS, SELECTED, STUDENTS, MultiStudent
from utils.contexts import DEGRADED, UNSEEN, degrade
from utils.data import Split
from utils.logits import predict

KINDS = ("clean", *DEGRADED, *UNSEEN)
SEVERITY = 3  # of the example images, 1 to 5
NEIGHBORS = 4  # thresholds on each side, for smoothing
TICKS = [digit * 10**power for power in range(5) for digit in (1, 1.2, 1.5, 2, 3, 4, 5, 7)]

# ------------------------------------------------------------------ policies


def accuracy_against_work(routing: dict, right: Mapping[str, torch.Tensor]) -> Figure:
    """Top-1 accuracy against MACs: curves over thresholds, points for networks and policies.

    Args:
        routing: the content of routing.json.
        right: for networks and policies, whether each prediction is correct, bool (N,).
    """
    figure, axes = plt.subplots(figsize=(9, 5.6), layout="constrained")
    facts = {**routing["students"], **routing["policies"]}
    base = better = routing["better_student"]["name"]
    cheapest = min(STUDENTS, key=lambda arch: facts[arch]["macs"])
    if "teacher" in routing:
        facts["teacher"], base = routing["teacher"], "teacher"
    labels = {  # and their offsets in points
        **{arch: (NETWORKS[arch].title, (0, -36), "center") for arch in STUDENTS},
        better: (NETWORKS[better].title, (-14, 34), "center"),
        cheapest: (NETWORKS[cheapest].title, (9, -18), "left"),
        "teacher": (LABELS["teacher"], (0, -18), "center"),
        "ensemble": (f"mean of {BOTH}", (0, 26), "center"),
        "random": ("at random", (0, -18), "center"),
        "selector": ("selector", (9, -5), "left"),
        "cascade": ("cascade", (-8, 8), "right"),
        "cascade_teacher": ("cascade at the teacher's accuracy", (-8, 8), "right"),
    }
    points = {
        name: (facts[name]["macs"] / 1e6, 100 * facts[name]["accuracy"])
        for name in labels
        if name in facts
    }
    curves = {name: _smooth(curve) for name, curve in routing["study"]["curves"].items()}
    frontier = _frontier([*points.values(), *itertools.chain(*curves.values())])
    axes.plot(*zip(*frontier, strict=True), color="#d9d9d9", lw=7, zorder=0)
    axes.axhline(points[base][1], color="black", lw=0.8, ls=":")
    for name, curve in curves.items():
        style = "--" if name == "selector" else "-"
        axes.plot(*zip(*curve, strict=True), style, lw=1.5, color=COLORS[ROUTED.get(name, name)])
    for name, (work, accuracy) in points.items():
        key, (label, offset, side) = name.removesuffix("_teacher"), labels[name]
        key = ROUTED.get(key, key)
        color = COLORS.get(key, "#555555")
        if name in right and name != base:
            low, high = paired_interval(right[name], right[base])
            axes.vlines(work, *(points[base][1] + 100 * np.array([low, high])), color=color, lw=1)
        axes.plot(work, accuracy, MARKERS.get(key, "P"), ms=8, color=color)
        text = axes.annotate(label, (work, accuracy), offset, textcoords="offset points", ha=side)
        text.set(color=color, bbox={"facecolor": "white", "lw": 0, "alpha": 0.8, "pad": 0.5})
    _work_axis(axes, max(accuracy for _, accuracy in points.values()))
    oracle = routing["policies"]["oracle"]
    gap = 100 * (oracle["accuracy"] - routing["better_student"]["accuracy"])
    axes.text(
        0.01,
        0.98,
        f"oracle, at {oracle['macs'] / 1e6:.0f} M: {100 * oracle['accuracy']:.2f} %, "
        f"{gap:.1f} points above {NETWORKS[better].title}",
        transform=axes.transAxes,
        va="top",
    )
    axes.set_title(
        "Policies at all thresholds, smoothed; markers: the thresholds chosen on validation.\n"
        f"Bars: 95 % intervals of the difference from the {base} (dotted). Gray: the frontier.",
        fontsize=10,
    )
    return figure


def _smooth(curve: Mapping[str, Sequence[float]]) -> list[tuple[float, float]]:
    """MACs and accuracies, each the mean over neighboring thresholds; fewer at the ends."""
    values, points = np.array([np.log(curve["macs"]), curve["accuracy"]]), []
    count = values.shape[1]
    for k in range(count):
        near = min(NEIGHBORS, k, count - 1 - k)
        work, accuracy = values[:, k - near : k + near + 1].mean(axis=1)
        points.append((np.exp(work) / 1e6, 100 * accuracy))
    return points


def _frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that are more accurate than all points of equal or lower cost, by cost."""
    kept: list[tuple[float, float]] = []
    for work, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or accuracy > kept[-1][1]:
            kept.append((work, accuracy))
    return kept


def _work_axis(axes: Axes, best: float) -> None:
    """MACs on a logarithmic axis, and accuracy."""
    axes.set_xscale("log")
    # Logarithmic below the best, because the smallest student is many times further away from it.
    top = best + 1.5
    errors = lambda y: -np.log(np.maximum(top - y, 0.1)), lambda z: top - np.exp(-z)
    axes.set_yscale("function", functions=errors)
    axes.margins(x=0.08, y=0.14)
    low, high = axes.get_xlim()
    axes.set_xticks([tick for tick in TICKS if low <= tick <= high])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel("mean multiply-accumulates per image, in millions")
    axes.set_ylabel("top-1 accuracy, %")


# ------------------------------------------------------------------ several seeds

Numbers = Sequence[float]


def dots_per_seed(
    rows: Sequence[tuple[str, Numbers, Numbers]], nothing: float, what: str
) -> Figure:
    """A row for each name: the values of all seeds, their mean, and an interval.

    `nothing` is the value that means no effect, `what` says what the values are.
    """
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.35 * len(rows)), layout="constrained")
    for place, (_, values, interval) in enumerate(rows):
        axes.hlines(place, *interval, color="#cccccc", lw=6)
        axes.plot(values, [place] * len(values), "o", color=COLORS["routed"], alpha=0.6)
        axes.plot(statistics.fmean(values), place, "|", ms=16, mew=2, color="black")
    axes.set_yticks(range(len(rows)), [name for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.axvline(nothing, color="black", lw=1, ls="--")
    axes.set_xlabel(f"{what}:\none dot per seed, mean, and 95 % interval; dashed: no effect")
    return figure


# ------------------------------------------------------------------ contexts


def contexts_accuracy(results: dict, label_of: Callable[[str], str]) -> Figure:
    """Accuracy on mixed images against MACs: systems with a selector, and generalists."""
    figure, axes = plt.subplots(figsize=(9, 4.6), layout="constrained")
    names = ("selector", "selector, once", "selector, pair")
    systems = {name: results["policies"][name] for name in names}
    left = (*names[:2], *(f"{SELECTED[-1]}, {stage}" for stage in ("once", "twice")))
    for name, facts in {**results["generalists"], **systems}.items():
        key = "routed" if name in systems else name.split(",")[0]
        work = 100 * facts["macs"] / results["teacher"]["macs"]
        accuracy, interval = (
            100 * np.array(facts[which]["mixed"]) for which in ("accuracy", "interval")
        )
        axes.vlines(work, *interval, color=COLORS[key], lw=1)
        axes.plot(work, accuracy, MARKERS[key], ms=8, color=COLORS[key])
        side = {"xytext": (-8, 0), "ha": "right"} if name in left else {"xytext": (8, 0)}
        text = label_of(name).strip("*").replace(" trained", "\ntrained")
        axes.annotate(text, (work, accuracy), textcoords="offset points", va="center", **side)
    axes.set_xlim(10, 94)  # room for the labels
    axes.set_xlabel("MACs per image, % of the teacher's")
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_title(
        f"{results['images']:,} test images, about half of them degraded; 95 % intervals",
        fontsize=10,
    )
    return figure


def contexts_shares(results: dict) -> Figure:
    """For each context, the share of images that the selector sends to each student."""
    facts = results["policies"]["selector"]
    names = [kind for kind in KINDS if kind in facts[f"share_{SELECTED[0]}"]]
    figure, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
    left = np.zeros(len(names))
    for arch in SELECTED:
        widths = 100 - left  # the last student has the rest
        if f"share_{arch}" in facts:
            widths = 100 * np.array([facts[f"share_{arch}"][kind] for kind in names])
        context = results["students"][arch]["trained"]["context"]
        label = f"{NETWORKS[arch].title}, trained on {context} images"
        axes.barh(names, widths, left=left, color=COLORS[arch], label=label)
        left = left + widths
        if arch == SELECTED[0]:
            for place, value in enumerate(widths):
                axes.text(1, place, f"{value:.1f}", va="center", size=9, color="white")
    axes.grid(False)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("images that the selector sends to each student, %")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    return figure


def contexts_pictures(system: MultiStudent, test: Split, count: int = 3) -> Figure:
    """Images of `count` classes in every context, with predicted class and chosen student."""
    labels = test.labels.tolist()
    places = [labels.index(label) for label in list(dict.fromkeys(labels))[:count]]
    seeds = (SEVERITY - 1 << 32) + torch.arange(len(places))
    shown = torch.stack([degrade(test.images[places], kind, seeds) for kind in KINDS], dim=1)
    logits, choice = predict(system, replace(test, images=shown.flatten(0, 1)))
    size = 1.3 * len(KINDS), 1.75 * len(places)
    figure, grid = plt.subplots(
        len(places), len(KINDS), figsize=size, squeeze=False, layout="constrained"
    )
    figure.get_layout_engine().set(h_pad=0.12)  # for the text below the last row
    for kind, axes in zip(KINDS, grid[0], strict=True):
        axes.set_title(kind, loc="center", fontsize=10)
    style = {"ha": "center", "va": "top", "fontsize": 9}
    for place, axes in enumerate(grid.flat):
        axes.axis("off")
        axes.imshow(shown.flatten(0, 1)[place].cpu().numpy())
        predicted, arch = logits[place].argmax().item(), SELECTED[choice[place].item()]
        right = predicted == labels[places[place // len(KINDS)]]
        text = test.classes[predicted] + ("" if right else " (wrong)")
        color = "black" if right else WRONG
        axes.text(0.5, -0.04, text, transform=axes.transAxes, color=color, **style)
        title, color = NETWORKS[arch].title, COLORS[arch]
        axes.text(0.5, -0.2, title, transform=axes.transAxes, color=color, **style)
    figure.suptitle(f"Predicted class and chosen student in every context, severity {SEVERITY}")
    return figure
