"""The figures of the studies, one function per figure."""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from evaluation.figures import COLORS, MARKERS, WRONG, save, use_font_for
from evaluation.policies import BETTER, BOTH
from evaluation.testset import LABELS
from models import NETWORKS, SELECTED, STUDENTS, MultiStudent
from utils.contexts import DEGRADED, GROUPS, UNSEEN, degrade
from utils.data import Split
from utils.logits import predict

KINDS = ("clean", *DEGRADED, *UNSEEN)
SEVERITY = 3  # of the example images, 1 to 5

# ------------------------------------------------------------------ policies


def accuracy_against_work(routing: dict) -> Figure:
    """Top-1 accuracy against MACs: curves over thresholds, points for networks and policies."""
    figure, axes = plt.subplots(figsize=(9, 5.2), layout="constrained")
    policies, curves = routing["policies"], routing["study"]["curves"]
    for name, curve in (("routed", curves["selector"]), ("cascade", curves["cascade"])):
        axes.plot(
            *_point(curve["macs"], curve["accuracy"]),
            color=COLORS[name],
            lw=1.5,
            ls="--" if name == "routed" else "-",
        )
    points = {  # facts, label, and offset of the label in points
        **{
            arch: (routing["students"][arch], NETWORKS[arch].title, (0, -16), "center")
            for arch in STUDENTS
        },
        "ensemble": (policies["ensemble"], f"mean of {BOTH}", (8, -4), "left"),
        "routed": (policies["selector"], "selector", (6, 6), "left"),
        "cascade": (policies["cascade"], "cascade", (-6, 8), "right"),
    }
    if "teacher" in routing:
        points["teacher"] = routing["teacher"], LABELS["teacher"], (0, -16), "center"
        teacher = 100 * routing["teacher"]["accuracy"]
        axes.axhline(teacher, color=COLORS["teacher"], lw=0.8, ls=":")
    if "cascade_teacher" in policies:
        target = policies["cascade_teacher"], "cascade at the teacher's accuracy"
        points["cascade_teacher"] = *target, (-8, 6), "right"
    for name, (facts, label, offset, side) in points.items():
        style, place = name.removesuffix("_teacher"), _point(facts["macs"], facts["accuracy"])
        color = COLORS.get(style, "#555555")
        axes.plot(*place, MARKERS.get(style, "P"), ms=7, color=color)
        told = axes.annotate(label, place, offset, textcoords="offset points", ha=side, color=color)
        told.set_bbox({"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5})
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    # Logarithmic in the errors, because the smallest student has several times those of the others.
    axes.set_yscale("function", functions=(lambda y: -np.log(101 - y), lambda z: 101 - np.exp(-z)))
    axes.margins(x=0.08, y=0.2)
    oracle, better = policies["oracle"], routing["better_student"]
    work, best = _point(oracle["macs"], oracle["accuracy"])
    told = (
        f"oracle: {best:.2f} %, {best - 100 * better['accuracy']:.1f} points above the {BETTER} "
        "student"
    )
    up = {"xycoords": axes.get_xaxis_transform(), "textcoords": axes.get_xaxis_transform()}
    axes.annotate("", (work, 1), (work, 0.9), arrowprops={"arrowstyle": "->"}, **up)
    up["textcoords"] = "offset points"
    axes.annotate(told, (work, 0.95), (8, 0), va="center", **up)
    axes.set_xlabel("mean multiply-accumulates per image, in millions")
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_title(
        f"Policies for {len(STUDENTS)} students at all thresholds; markers show the thresholds "
        "chosen on validation",
        fontsize=10,
    )
    return figure


def _point(macs, accuracy):
    return np.asarray(macs) / 1e6, 100 * np.asarray(accuracy)


# ------------------------------------------------------------------ selectors and distillation


def selector_aurocs(result: dict) -> Figure:
    """The AUROC of every trained selector, one row per variant, with mean and 95 % interval."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    names = []
    for place, row in enumerate(result["variants"]):
        norm = "" if row["batch_norm"] else ", no batch norm"
        weighted = ", weighted" if row["weighted"] else ""
        names.append(f"{row['labels']}{weighted}, depth {row['depth']}{norm}")
        area, runs = row["auroc"], row["runs"]
        _dots(axes, place, [run["auroc"] for run in runs], area["mean"], area["interval"])
    _rows(axes, names)
    axes.axvline(0.5, color="black", lw=1, ls="--")
    axes.text(0.5, -0.8, "chance", ha="center", fontsize=9)
    axes.set_xlabel(
        "AUROC on the test images where exactly one student is correct:\n"
        "one dot per seed, mean, and 95 % interval"
    )
    return figure


def distillation_gains(rows: list[dict[str, Any]], names: list[str]) -> Figure:
    """The gain in accuracy from distillation, one row per student and loss.

    Args:
        rows: of `studies.distillation.summary`, with a gain.
        names: of the rows.
    """
    figure, axes = plt.subplots(figsize=(8, 1.4 + 0.5 * len(rows)), layout="constrained")
    for place, row in enumerate(rows):
        each, interval = (100 * np.array(row["gain"][key]) for key in ("each", "interval"))
        _dots(axes, place, each, statistics.mean(each), interval)
    _rows(axes, names)
    axes.axvline(0, color="black", lw=1, ls="--")
    axes.set_xlabel("top-1 accuracy on test images, difference in points")
    figure.suptitle("Gain over training without the teacher: one dot per seed, mean, 95 % interval")
    return figure


def _dots(
    axes: Axes, place: int, values: Sequence[float], mean: float, ends: Sequence[float]
) -> None:
    """One row: the values, their mean, and an interval."""
    axes.hlines(place, *ends, color="#cccccc", lw=6)
    axes.plot(values, [place] * len(values), "o", color=COLORS["routed"], alpha=0.6)
    axes.plot(mean, place, "|", ms=16, mew=2, color="black")


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)


# ------------------------------------------------------------------ contexts


def draw_contexts(out: Path, study: dict, system: MultiStudent, test: Split) -> list[Path]:
    """Draw the figures of the context study into the folder `out`. Returns their paths."""
    use_font_for(test.classes)
    figures = {
        "contexts_accuracy.png": contexts_accuracy(study),
        "contexts_share.png": contexts_shares(study),
        "contexts_pictures.png": contexts_pictures(system, test),
    }
    for name, figure in figures.items():
        save(figure, out / name)
    return [out / name for name in figures]


def contexts_accuracy(study: dict) -> Figure:
    """A grid of accuracies: one row per network or policy, one column per context."""
    columns = [*GROUPS, *(kind for kind in KINDS if kind != "clean")]
    rows = {
        LABELS["teacher"]: study["teacher"],
        **{
            f"{NETWORKS[arch].title}, {facts['trained']['context']}": facts
            for arch, facts in study["students"].items()
        },
        **{
            f"{NETWORKS[name.partition(',')[0]].title}, mixed {name.partition(', ')[2]}": facts
            for name, facts in study["generalists"].items()
        },
        **study["policies"],
    }
    grid = np.array(
        [[100 * facts["accuracy"].get(name, np.nan) for name in columns] for facts in rows.values()]
    )
    figure, axes = plt.subplots(figsize=(11, 0.36 * len(rows) + 1.2), layout="constrained")
    axes.imshow(grid, cmap="cividis", vmin=20, vmax=100, aspect="auto")
    for (row, column), value in np.ndenumerate(grid):
        if np.isfinite(value):
            color = "white" if value < 60 else "black"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", color=color, size=9)
    axes.axvline(len(GROUPS) - 0.5, color="white", lw=4)
    axes.axhline(2.5, color="white", lw=4)
    axes.axhline(len(rows) - len(study["policies"]) - 0.5, color="white", lw=4)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_title(f"Top-1 accuracy in %, {study['images']:,} test images", loc="left")
    return figure


def contexts_shares(study: dict) -> Figure:
    """For each context, the share of images that the selector sends to each student."""
    facts = study["policies"]["selector"]
    names = [kind for kind in KINDS if kind in facts[f"share_{STUDENTS[0]}"]]
    figure, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
    left = np.zeros(len(names))
    for arch in STUDENTS:
        widths = 100 - left  # the last student has the rest
        if f"share_{arch}" in facts:
            widths = 100 * np.array([facts[f"share_{arch}"][kind] for kind in names])
        context = study["students"][arch]["trained"]["context"]
        label = f"{NETWORKS[arch].title}, trained on {context} images"
        axes.barh(names, widths, left=left, color=COLORS[arch], label=label)
        left = left + widths
        if arch == STUDENTS[0]:
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
    firsts = dict.fromkeys(test.labels.tolist())
    places = [test.labels.tolist().index(label) for label in list(firsts)[:count]]
    images = test.images[places]
    seeds = (SEVERITY - 1 << 32) + torch.arange(len(places))
    shown = torch.stack([degrade(images, kind, seeds) for kind in KINDS])
    logits, choice = predict(system, shown.flatten(0, 1))
    answers = logits.argmax(dim=1).view(len(KINDS), -1).T.tolist()
    students = choice.view(len(KINDS), -1).T.tolist()
    figure, grid = plt.subplots(
        len(places),
        len(KINDS),
        figsize=(1.3 * len(KINDS), 1.75 * len(places)),
        squeeze=False,
        layout="constrained",
    )
    figure.get_layout_engine().set(h_pad=0.12)  # for the text below the last row
    for row, place in enumerate(places):
        for column, kind in enumerate(KINDS):
            axes = grid[row, column]
            axes.axis("off")
            axes.imshow(shown[column, row].cpu().numpy())
            answer, arch = answers[row][column], SELECTED[students[row][column]]
            right = answer == test.labels[place].item()
            axes.set_title(kind if row == 0 else "", fontsize=10)
            for height, text, color in (
                (
                    -0.04,
                    test.classes[answer] + ("" if right else " (wrong)"),
                    "black" if right else WRONG,
                ),
                (-0.2, NETWORKS[arch].title, COLORS[arch]),
            ):
                axes.text(
                    0.5,
                    height,
                    text,
                    transform=axes.transAxes,
                    ha="center",
                    va="top",
                    fontsize=9,
                    color=color,
                )
    figure.suptitle(f"Predicted class and chosen student in every context, severity {SEVERITY}")
    return figure
