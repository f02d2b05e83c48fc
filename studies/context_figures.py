"""The figures of the context study, one function per figure."""

from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from evaluation.figures import COLORS, save
from evaluation.testset import LABELS
from models import NAMES, STUDENTS, MultiStudent
from utils.answers import predict
from utils.contexts import DEGRADED, GROUPS, UNSEEN, degrade
from utils.data import Split

KINDS = ("clean", *DEGRADED, *UNSEEN)
SEVERITY = 3  # of the example images, 1 to 5


def draw_all(out: Path, study: dict, system: MultiStudent, test: Split) -> list[Path]:
    """Draw all figures, save them in `out`, and return their paths."""
    figures = {
        "contexts_accuracy.png": accuracy(study),
        "contexts_share.png": shares(study),
        "contexts_pictures.png": pictures(system, test),
    }
    for name, figure in figures.items():
        save(figure, out / name)
    return [out / name for name in figures]


def accuracy(study: dict) -> Figure:
    """A grid of accuracies: one row per network or policy, one column per context."""
    columns = [*GROUPS, *(kind for kind in KINDS if kind != "clean")]
    rows = {
        LABELS["teacher"]: study["teacher"],
        **{
            f"{NAMES[arch]}, {facts['trained']['context']}": facts
            for arch, facts in study["students"].items()
        },
        **{
            f"{NAMES[name.partition(',')[0]]}, mixed {name.partition(', ')[2]}": facts
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


def shares(study: dict) -> Figure:
    """For each context, the share of images that the selector sends to each student."""
    facts = study["policies"]["selector"][f"share_{STUDENTS[0]}"]
    names = [kind for kind in KINDS if kind in facts]
    first = 100 * np.array([facts[kind] for kind in names])
    figure, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
    for arch, widths, left in zip(STUDENTS, (first, 100 - first), (0, first), strict=True):
        context = study["students"][arch]["trained"]["context"]
        label = f"{NAMES[arch]}, trained on {context} images"
        axes.barh(names, widths, left=left, color=COLORS[arch], label=label)
    for place, value in enumerate(first):
        axes.text(1, place, f"{value:.0f} %", va="center", size=9, color="white")
    axes.grid(False)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("images that the selector sends to each student, %")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    return figure


def pictures(system: MultiStudent, test: Split, count: int = 3) -> Figure:
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
            answer, arch = answers[row][column], STUDENTS[students[row][column]]
            right = answer == test.labels[place].item()
            axes.set_title(kind if row == 0 else "", fontsize=10)
            for height, text, color in (
                (
                    -0.04,
                    test.classes[answer] + ("" if right else " (wrong)"),
                    "black" if right else "#c1121f",
                ),
                (-0.2, NAMES[arch], COLORS[arch]),
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
