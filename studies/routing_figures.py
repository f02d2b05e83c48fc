"""The figures of the policy and selector studies, one function per figure."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from evaluation.figures import COLORS, MARKERS
from evaluation.testset import LABELS
from models import NAMES, STUDENTS


def accuracy_against_work(routing: dict) -> Figure:
    """Top-1 accuracy against MACs: curves over thresholds, points for networks and policies."""
    figure, axes = plt.subplots(figsize=(9, 5.2), layout="constrained")
    policies, curves = routing["policies"], routing["study"]["curves"]
    points = {  # facts, label, and offset of the label in points
        "teacher": (routing["teacher"], LABELS["teacher"], (-8, 8), "right"),
        STUDENTS[0]: (routing["students"][STUDENTS[0]], NAMES[STUDENTS[0]], (8, -14), "left"),
        STUDENTS[1]: (routing["students"][STUDENTS[1]], NAMES[STUDENTS[1]], (0, -16), "center"),
        "ensemble": (policies["ensemble"], "mean of both", (0, -16), "center"),
        "random": (policies["random"], LABELS["random"], (4, -16), "left"),
        "routed": (policies["selector"], "selector", (-4, -16), "right"),
        "cascade": (policies["cascade"], "cascade", (-6, 8), "right"),
    }
    frontier = _frontier(
        [
            *((facts["macs"], facts["accuracy"]) for facts, *_ in points.values()),
            *(
                pair
                for curve in curves.values()
                for pair in zip(curve["macs"], curve["accuracy"], strict=True)
            ),
        ]
    )
    axes.plot(*_point(*zip(*frontier, strict=True)), color="#d0d0d0", lw=7, drawstyle="steps-post")
    for name, curve in (("routed", curves["selector"]), ("cascade", curves["cascade"])):
        axes.plot(
            *_point(curve["macs"], curve["accuracy"]),
            color=COLORS[name],
            lw=1.5,
            ls="--" if name == "routed" else "-",
        )
    for name, (facts, label, offset, side) in points.items():
        place, color = _point(facts["macs"], facts["accuracy"]), COLORS.get(name, "#555555")
        axes.plot(*place, MARKERS.get(name, "P"), ms=7, color=color)
        axes.annotate(label, place, offset, textcoords="offset points", ha=side, color=color)
    axes.margins(x=0.08, y=0.14)
    low, high = axes.get_ylim()
    oracle = policies["oracle"]
    work, best = _point(oracle["macs"], oracle["accuracy"])
    gap = 100 * (oracle["accuracy"] - routing["better_student"]["accuracy"])
    top = high + 0.15 * (high - low)
    axes.set_ylim(low, top)
    axes.annotate("", (work, top), (work, high), arrowprops={"arrowstyle": "->", "color": "black"})
    told = f"oracle: {best:.2f} %, {gap:.1f} points above the better student"
    axes.annotate(told, (work, (top + high) / 2), (8, 0), textcoords="offset points", va="center")
    axes.set_xlabel("mean multiply-accumulates per image, in millions")
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_title(
        "Policies for two students at all thresholds; markers show the threshold chosen on "
        "validation.\nGray: the frontier; nothing is as accurate with fewer MACs",
        fontsize=10,
    )
    return figure


def _frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that are more accurate than all points of equal or lower cost, by cost."""
    kept: list[tuple[float, float]] = []
    for macs, accuracy in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or accuracy > kept[-1][1]:
            kept.append((macs, accuracy))
    return kept


def _point(macs, accuracy):
    return np.asarray(macs) / 1e6, 100 * np.asarray(accuracy)


def selectors(result: dict) -> Figure:
    """The AUROC of every trained selector, one row per variant, with mean and 95 % interval."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    names = []
    for place, row in enumerate(result["variants"]):
        values = [run["auroc"] for run in row["runs"]]
        axes.hlines(place, *row["auroc"]["interval"], color="#cccccc", lw=6)
        axes.plot(values, [place] * len(values), "o", color=COLORS["routed"], alpha=0.6)
        axes.plot(row["auroc"]["mean"], place, "|", ms=16, mew=2, color="black")
        norm = "" if row["batch_norm"] else ", no batch norm"
        weighted = ", weighted" if row["weighted"] else ""
        names.append(f"{row['labels']}{weighted}, depth {row['depth']}{norm}")
    axes.axvline(0.5, color="black", lw=1, ls="--")
    axes.text(0.5, -0.8, "chance", ha="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(
        "AUROC on the test images where exactly one student is correct:\n"
        "one dot per seed, mean, and 95 % interval"
    )
    return figure
