"""The figures of inference.py, one function per figure."""

import csv
import os
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path

# Needs no display. A notebook sets another one in the environment, which may not be installed.
os.environ["MPLBACKEND"] = "agg"
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.significance import paired_interval, reliability, wilson_interval
from evaluation.testset import LABELS, Results
from models import NETWORKS, SELECTED, STUDENTS
from utils.files import UserError, replacing, shown
from utils.method import share

# Each color has a contrast of at least 4.5 : 1 on white. Where two are similar in brightness, the
# markers differ, for readers who cannot see the colors.
OF_STUDENTS = [("#b85c00", "s"), ("#00524a", "^"), ("#a3195b", "v"), ("#5a6100", "P")]
STYLES = {
    "teacher": ("#222222", "X"),
    **dict(zip(STUDENTS, cycle(OF_STUDENTS), strict=False)),
    "routed": ("#7b3fb5", "o"),
    "cascade": ("#0b3d91", "D"),
    "ensemble": ("#555555", "*"),
}
COLORS = {name: color for name, (color, _) in STYLES.items()}
MARKERS = {name: marker for name, (_, marker) in STYLES.items()}
WRONG = "#c1121f"
MOST = 20  # maximum number of classes in a figure
plt.rcdefaults()  # ignore a matplotlibrc, which may require LaTeX
plt.rcParams.update(
    {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "axes.titlelocation": "left",
        "grid.alpha": 0.3,
        "text.parse_math": False,  # class names may contain a dollar sign
    }
)


History = list[dict[str, float]]  # of a network, one row per epoch


def draw_all(out: Path, results: Results, histories: dict[str, History]) -> list[Path]:
    """Draw the figures into the folder `out`; the last one only if there are histories.

    Returns the paths of the files.
    """
    figures = {
        "per_class_accuracy.png": per_class_accuracy(results),
        "samples.png": samples(results),
        "confusion.png": confusion(results),
        "reliability.png": reliability_diagrams(results),
    }
    if histories:
        figures["accuracy_per_epoch.png"] = accuracy_per_epoch(histories)
    for name, figure in figures.items():
        save(figure, out / name)
    return [out / name for name in figures]


def read_histories(checkpoints: Mapping[str, Path]) -> dict[str, History]:
    """Read the .csv histories beside the checkpoints.

    Raises UserError with the name of the file if a history is damaged.
    """
    histories = {}
    for run, checkpoint in checkpoints.items():
        path = checkpoint.with_suffix(".csv")
        if not path.exists():
            continue
        try:
            rows = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
            names = ("epoch", "val_accuracy", "train_accuracy")
            histories[run] = [{name: float(row[name]) for name in names} for row in rows]
        except (KeyError, ValueError, TypeError, csv.Error) as error:
            raise UserError(
                f"{shown(path)} is not a valid training history: delete it or repair it"
            ) from error
    return histories


def save(figure: Figure, path: Path) -> None:
    """Write the figure to a PNG file, in one atomic replacement, and close it."""
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=150)
    plt.close(figure)


def per_class_accuracy(results: Results) -> Figure:
    """Top-1 accuracy of each class, with 95 % intervals, one row per class.

    Pale: not significantly different from the first network, by the interval of the difference.
    """
    metrics, labels, classes = results.metrics, results.nets.labels, results.test.classes
    by_class = metrics["per_class"]  # of the classes that are there
    right = {name: results.nets.right(name) for name in ("teacher", *SELECTED) if name in by_class}
    right |= {name: results.outcomes[name].right for name in ("routed", "cascade")}
    first, *_ = right
    title, names = f"{metrics['dataset']}, {metrics['images']:,} images", list(by_class[first])
    if len(names) > MOST:
        title += f"\n{MOST} of {len(names):,} classes: those on which the students differ most"
        shares = np.array([[by_class[arch][label] for label in names] for arch in SELECTED])
        most = np.argsort(-np.ptp(shares, axis=0), kind="stable")[:MOST]
        names = [names[k] for k in most]
    names.sort(key=lambda label: -by_class[first][label])
    members = [labels >= 0, *(labels == classes.index(label) for label in names)]

    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.52 * len(members)), layout="constrained")
    for k, name in enumerate(right):
        style = {"color": COLORS[name], "marker": MARKERS[name], "ms": 5}
        axes.plot([], [], ls="", label=LABELS[name], **style)
        for row, of in enumerate(members):
            place = row + 0.16 * (k - (len(right) - 1) / 2)
            ours = right[name][of]
            low, high = paired_interval(ours, right[first][of])
            style["alpha"] = 1 if name == first or low > 0 or high < 0 else 0.25
            ends = [100 * end for end in wilson_interval(share(ours), len(ours))]
            axes.plot(ends, [place, place], lw=1, color=COLORS[name], alpha=style["alpha"])
            axes.plot(100 * share(ours), place, clip_on=False, **style)
    for place in np.arange(len(names)) + 0.5:
        axes.axhline(place, color="black" if place < 1 else "#cccccc", lw=0.8)
    axes.set_yticks(range(len(members)), ["all", *names])
    axes.grid(axis="x", alpha=0.3)
    axes.grid(False, axis="y")
    axes.set(xlim=(None, 100), ylim=(len(members) - 0.5, -0.5), title=title)
    axes.set_xlabel(
        "top-1 accuracy, %, with 95 % intervals\n"
        f"pale: not significantly different from {LABELS[first]}"
    )
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def samples(results: Results) -> Figure:
    """The first twelve images that only one student, or none, classifies correctly."""
    right = results.nets.students_right()
    alone = right & (right.sum(dim=0) == 1)
    groups = {f"Only {NETWORKS[arch].title} is right": alone[k] for k, arch in enumerate(SELECTED)}
    none = "Neither" if len(SELECTED) == 2 else "No"
    groups[f"{none} student is right"] = ~right.any(dim=0)
    more = 0.18 * (len(SELECTED) - 2)  # room for the answers of more than two students
    figure = plt.figure(figsize=(9, (4 + 2 * more) * len(groups)))
    head, *parts = figure.subfigures(1 + len(groups), height_ratios=[0.15, *[1] * len(groups)])
    numbered = ", ".join(f"{k}: {NETWORKS[arch].title}" for k, arch in enumerate(SELECTED, 1))
    text = "Above each image: its class. Below: the students' predictions, with probabilities in %."
    text += f"\n{numbered}. Triangle: chosen by the selector. \N{BALLOT X}: wrong."
    head.text(0.03, 0.1, text, fontsize=11)
    for part, (title, where) in zip(parts, groups.items(), strict=True):
        text = f"{title}: {100 * share(where):.1f} % of the images"
        part.text(0.03, 0.95, text, fontweight="bold", fontsize=11)
        grid = part.subplots(2, 6).ravel()
        edges = {"left": 0.03, "right": 0.99, "bottom": 0.11 + more / 5, "top": 0.87}
        part.subplots_adjust(**edges, hspace=0.56 + more, wspace=0.1)
        for axes in grid:
            axes.axis("off")
        for axes, place in zip(grid, where.nonzero()[:, 0].tolist(), strict=False):
            _draw_sample(axes, results, place)
    return figure


def _draw_sample(axes: Axes, results: Results, place: int) -> None:
    classes, label = results.test.classes, results.nets.labels[place].item()
    axes.imshow(results.test.images[place].cpu().numpy())
    axes.set_title(_short(classes[label]), loc="center", fontsize=10)
    for row, arch in enumerate(SELECTED):
        predictions = results.predictions[arch]
        answer, percent = predictions.labels[place], 100 * predictions.probabilities[place]
        text = f"{row + 1} {_short(classes[answer], 10)} {percent:.0f}"
        style = {"transform": axes.transAxes, "va": "top", "fontsize": 8.5}
        if answer != label:
            text, style["color"] = f"{text} \N{BALLOT X}", WRONG
        axes.text(0.1, -0.04 - 0.14 * row, text, **style)
        if results.outcomes["routed"].choice[place] == row:
            axes.text(0, -0.04 - 0.14 * row, "\N{BLACK RIGHT-POINTING TRIANGLE}", **style)


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def confusion(results: Results) -> Figure:
    """Confusion matrix of the routed system, and its difference from the teacher's."""
    labels, count = results.nets.labels.numpy(), len(results.test.classes)

    def matrix(name: str) -> np.ndarray:
        pairs = labels * count + results.predictions[name].labels.numpy()
        return np.bincount(pairs, minlength=count**2).reshape(count, count)

    routed = matrix("routed")
    errors = routed.sum(axis=1) - routed.diagonal()
    kept = np.sort(np.argsort(-errors, kind="stable")[:MOST])
    names = [_short(results.test.classes[k], 12) for k in kept]
    panels = {"Routed system: number of images": routed}
    if "teacher" in results.predictions:
        title = "Difference from the teacher\n+ purple: more images, \N{MINUS SIGN} orange: fewer"
        panels[title] = routed - matrix("teacher")
    figure, grid = plt.subplots(
        1, len(panels), figsize=(4.6 * len(panels), 5.1), layout="compressed", squeeze=False
    )
    for axes, (title, whole) in zip(grid.flat, panels.items(), strict=True):
        cells = whole[np.ix_(kept, kept)]
        wrong = cells * (1 - np.eye(len(kept), dtype=cells.dtype))
        top, colors = max(1, np.abs(wrong).max()), "Blues" if whole is routed else "PuOr"
        axes.imshow(wrong, cmap=colors, vmin=0 if whole is routed else -top, vmax=top)
        for row, column in np.argwhere(cells):
            value = cells[row, column]
            text = f"{value}" if whole is routed else f"{value:+d}".replace("-", "\N{MINUS SIGN}")
            style = {"ha": "center", "va": "center", "fontsize": 7}
            style["color"] = "white" if abs(wrong[row, column]) > 0.6 * top else "black"
            style["fontweight"] = "bold" if row == column else "normal"
            axes.text(column, row, text, **style)
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_title(title, fontsize=11)
        axes.set(xlabel="prediction", ylabel="class")
    if len(kept) < count:
        figure.suptitle(f"{len(kept)} of {count:,} classes: those with the most errors")
    return figure


def reliability_diagrams(results: Results) -> Figure:
    """Accuracy against predicted probability, and images per bin, one panel per classifier."""
    names = [name for name in COLORS if name in results.predictions]
    down = -(-len(names) // 3)
    figure, grid = plt.subplots(
        down, 3, figsize=(9, 3.3 * down), layout="constrained", sharex=True, sharey=True
    )
    for axes in grid.flat[len(names) :]:
        axes.axis("off")
    for place, (axes, name) in enumerate(zip(grid.flat, names, strict=False)):
        predictions = results.predictions[name]
        right = predictions.labels == results.nets.labels
        error = results.metrics["calibration_error"][name]
        axes.plot([0, 100], [0, 100], color="#767676", lw=1)
        for when, probabilities, style in (
            ("raw", predictions.confidences, {"mfc": "white", "ls": "--", "lw": 1}),
            ("scaled", predictions.probabilities, {"lw": 2}),
        ):
            rows = np.array(reliability(probabilities, right))
            said, true, _ = 100 * rows[rows[:, 2] >= 0.002 * len(right)].T
            label = f"{when} {100 * error[when]:.1f} %"
            axes.plot(said, true, marker="o", ms=4, color=COLORS[name], label=label, **style)
        counts = axes.twinx()
        counts.bar(100 * rows[:, 0], rows[:, 2], 5, color=COLORS[name], alpha=0.25)
        counts.set(yscale="log", ylim=(0.8, max(10, len(right)) ** 3), yticks=[])
        counts.minorticks_off()
        counts.grid(False)
        if place % 3 == 2:  # the last column
            counts.set_yticks([1, 100, 10_000], ["1", "100", "10,000"], fontsize=8)
            counts.set_ylabel("images per bin", y=0, ha="left", fontsize=9)
        axes.set_title(LABELS[name], fontsize=9)
        axes.legend(loc="upper left", fontsize=9, frameon=False, title="calibration error")
        axes.grid(axis="both", alpha=0.3)
    grid.flat[0].set(xlim=(20, 100), ylim=(20, 100))
    figure.supxlabel("predicted probability, %", fontsize=10)
    figure.supylabel("correct predictions, %", fontsize=10)
    return figure


def accuracy_per_epoch(histories: dict[str, History]) -> Figure:
    """Top-1 accuracy on validation and training images after each epoch of each run."""
    figure, axes = plt.subplots(figsize=(9, 5.2), layout="constrained")
    for run, rows in histories.items():
        arch, alone, _ = run.partition("_alone")
        epochs, val, train = np.array([[*row.values()] for row in rows]).reshape(-1, 3).T
        color, dashes = COLORS[arch], ":" if alone else "-"
        axes.plot(epochs, 100 * train, dashes, lw=0.8, color=color)
        style = {"marker": MARKERS[arch], "markevery": [-1], "color": color, "label": LABELS[run]}
        axes.plot(epochs, 100 * val, dashes, lw=2, **style)
    low, high = np.minimum(axes.get_ylim(), 100)
    axes.set_ylim(max(low, high - 30), high)  # low first epochs would compress the rest
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set(xlabel="epoch", ylabel="top-1 accuracy, %")
    axes.set_title("Thick lines: validation images. Thin lines: augmented training images.")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure
