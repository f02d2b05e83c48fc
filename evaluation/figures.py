"""The figures of inference.py and of the routing study: each a function that draws one."""

import csv
import os
from collections.abc import Mapping
from pathlib import Path

# A notebook sets its own for the programs that it starts, which cannot always load it.
os.environ["MPLBACKEND"] = "agg"
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from evaluation.testset import LABELS
from models import NAMES, STUDENTS
from utils.data import Split
from utils.files import UserError, replacing, shown

COLORS = {"densenet121": "#d9822b", "googlenet": "#2a9d8f", "routed": "#6a4c93"}
matplotlib.use("agg")  # no display is needed, nor asked for
plt.rcdefaults()  # whatever a matplotlibrc says, which may ask for LaTeX
plt.rcParams.update(
    {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.alpha": 0.3,
        "text.parse_math": False,  # a dollar in a class's name is a dollar
    }
)


def draw_all(
    out: Path,
    metrics: dict,
    histories: dict[str, list[dict[str, float]]],
    test: Split,
    predictions: np.ndarray,
    choice: np.ndarray,
) -> list[Path]:
    """Draw what can be drawn into `out`, and return the files.

    The accuracy per epoch is that of `read_histories`, if there is any.
    """
    figures = {
        "per_class_accuracy.png": per_class_accuracy(metrics),
        "route_share.png": route_share(metrics),
        "samples.png": samples(test, predictions, choice),
    }
    if histories:
        figures["accuracy_per_epoch.png"] = accuracy_per_epoch(histories)
    for name, figure in figures.items():
        save(figure, out / name)
    return [out / name for name in figures]


def read_histories(checkpoints: Mapping[str, Path]) -> dict[str, list[dict[str, float]]]:
    """The rows, one an epoch, of the .csv histories that lie beside the checkpoints, by network.

    Raises UserError, naming the file, where one is damaged.
    """
    histories = {}
    for run, checkpoint in checkpoints.items():
        path = checkpoint.with_suffix(".csv")
        if not path.exists():
            continue
        try:
            with open(path, newline="", encoding="utf-8") as file:
                histories[run] = [
                    {name: float(row[name]) for name in ("epoch", "val_accuracy", "train_accuracy")}
                    for row in csv.DictReader(file)
                ]
        except (KeyError, ValueError, TypeError, csv.Error) as error:
            raise UserError(
                f"{shown(path)} is no history of a training: delete it, or put it right"
            ) from error
    return histories


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG, which is replaced whole, and close it."""
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)
    plt.close(figure)


def per_class_accuracy(metrics: dict) -> Figure:
    """Bars of both students' and the routed top-1 accuracy, a group a class."""
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    (classes, which), width = _most_apart(metrics), 0.27
    positions = np.arange(len(classes))
    for k, (name, color) in enumerate(COLORS.items()):
        heights = [100 * metrics["per_class"][name][label] for label in classes]
        overall = f"{LABELS[name]} ({100 * metrics['accuracy'][name]:.1f} % overall)"
        axes.bar(positions + (k - 1) * width, heights, width, color=color, label=overall)
    room = 100 / len(classes)  # characters that stand side by side
    axes.set_xticks(positions, classes, rotation=90 if max(map(len, classes)) > room else 0)
    axes.set_ylim(0, 100)
    axes.set_ylabel("top-1 accuracy, %")
    axes.set_title(f"{metrics['dataset']}, {metrics['images']:,} images{which}", loc="left")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _most_apart(metrics: dict, count: int = 20) -> tuple[list[str], str]:
    """The classes, or those of them on which the students differ most, and what to say of these."""
    classes = list(metrics["per_class"]["routed"])
    one, two = (metrics["per_class"][arch] for arch in STUDENTS)
    kept = set(sorted(classes, key=lambda label: -abs(one[label] - two[label]))[:count])
    if len(kept) == len(classes):
        return classes, ""
    which = f"; the {count} of {len(classes):,} classes on which the students differ most"
    return [label for label in classes if label in kept], which


def accuracy_per_epoch(histories: dict[str, list[dict[str, float]]]) -> Figure:
    """Top-1 accuracy after each epoch of each run, on the validation and the training images."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for run, rows in histories.items():
        arch, alone, _ = run.partition("_alone")
        epochs = [row["epoch"] for row in rows]
        val, train = (
            [100 * row[f"{split}_accuracy"] for row in rows] for split in ("val", "train")
        )
        color = COLORS.get(arch, "#555555")
        axes.plot(epochs, val, "x:" if alone else "o-", ms=4, color=color, label=LABELS[run])
        if not alone:
            axes.plot(epochs, train, "--", lw=1, alpha=0.7, color=color)
    axes.plot([], [], "--", lw=1, color="black", label="on the training images, augmented")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel("top-1 accuracy on the validation images, %")
    axes.legend(loc="lower right")
    return figure


def route_share(metrics: dict) -> Figure:
    """The share of each class's images that the selector sends to each student."""
    figure, axes = plt.subplots(figsize=(9, 3.5), layout="constrained")
    classes, which = _most_apart(metrics)
    first = 100 * np.array([metrics["route_share_per_class"][label] for label in classes])
    for arch, widths, left in zip(STUDENTS, (first, 100 - first), (0, first), strict=True):
        total = 100 * metrics["route_share"][arch]
        label = f"{NAMES[arch]} ({total:.1f} % of all)"
        axes.barh(classes, widths, left=left, color=COLORS[arch], label=label)
    axes.grid(False)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"images sent to each student, %{which}")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    return figure


def samples(test: Split, predictions: np.ndarray, choice: np.ndarray, count: int = 32) -> Figure:
    """A page of the first `count` images: above each its class, below it the answer and by whom."""
    figure, grid = plt.subplots(4, count // 4, figsize=(count // 4 * 1.4, 8), layout="constrained")
    for axes in grid.flat:
        axes.axis("off")
    labels, images = test.labels[:count].tolist(), test.images[:count].cpu().numpy()
    for axes, image, label, prediction, student in zip(
        grid.flat, images, labels, predictions, choice, strict=False
    ):
        arch = STUDENTS[student]
        axes.imshow(image)
        axes.set_title(_short(test.classes[label]), fontsize=9)
        for place, text, color in (
            (
                -0.05,
                _short(test.classes[prediction]),
                "black" if prediction == label else "#c1121f",
            ),
            (-0.19, NAMES[arch], COLORS[arch]),
        ):
            axes.text(
                0.5,
                place,
                text,
                transform=axes.transAxes,
                ha="center",
                va="top",
                fontsize=9,
                color=color,
            )
    figure.suptitle(
        "Above each image its class; below it the answer, red where wrong, and who gave it"
    )
    return figure


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}\N{HORIZONTAL ELLIPSIS}"


def accuracy_against_work(routing: dict) -> Figure:
    """Top-1 accuracy against MACs: the policies' thresholds as curves, what has none as a point."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for name, color, label in (
        ("cascade", "#1d6fa5", "cascade, at every threshold"),
        ("selector", COLORS["routed"], "selector, at every threshold"),
    ):
        curve, chosen = routing["study"]["curves"][name], routing["policies"][name]
        axes.plot(*_point(curve["macs"], curve["accuracy"]), color=color, label=label)
        axes.plot(*_point(chosen["macs"], chosen["accuracy"]), "o", color=color)
    points = {
        LABELS["teacher"]: (routing["teacher"], "#555555"),
        **{NAMES[arch]: (routing["students"][arch], COLORS[arch]) for arch in STUDENTS},
        "mean of both": (routing["policies"]["ensemble"], "black"),
        "oracle": (routing["policies"]["oracle"], "black"),
        LABELS["random"]: (routing["policies"]["random"], "black"),
    }
    for name, (facts, color) in points.items():
        place = _point(facts["macs"], facts["accuracy"])
        axes.plot(*place, "s", ms=5, color=color)
        above = name not in (LABELS["random"], NAMES[STUDENTS[1]])  # where curves begin
        offset = (0, 7 if above else -14)
        axes.annotate(name, place, offset, textcoords="offset points", ha="center", fontsize=9)
    axes.margins(x=0.1, y=0.12)
    axes.set_xlabel("multiply-accumulates for one image, on average, in millions")
    axes.set_ylabel("top-1 accuracy, %")
    axes.legend(loc="lower right", title="dots: thresholds chosen on validation")
    return figure


def _point(macs, accuracy):
    return np.asarray(macs) / 1e6, 100 * np.asarray(accuracy)


def selectors(result: dict) -> Figure:
    """The AUROC of every trained selector, a row a variant, and its mean's 95 % interval."""
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
    axes.text(0.5, -0.8, "a coin", ha="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(
        "AUROC on the test images where exactly one student is right:\n"
        "a dot a seed, their mean, and its 95 % interval"
    )
    return figure
