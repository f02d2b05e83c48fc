"""The figures of inference.py, and checks before it starts."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import call

from evaluation import figures
from evaluation.policies import Networks
from evaluation.testset import evaluate, print_tables
from models import STUDENTS
from utils.data import CIFAR10, Split

ROOT = Path(__file__).resolve().parent.parent


def test_figures_are_drawn_whatever_the_environment_says(tmp_path):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: no such\n")
    code = "from evaluation.figures import plt; plt.title('a title'); plt.savefig('figure.png')"
    where = {"MPLBACKEND": "module://none", "MATPLOTLIBRC": str(tmp_path), "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=os.environ | where, check=True)
    assert (tmp_path / "figure.png").stat().st_size > 5000


def results_of(classes, teacher=True):
    """Two images per class. Student 1 is wrong on the first half of the classes only."""
    labels = torch.arange(len(classes)).repeat(2)
    sure = 9.0 * torch.nn.functional.one_hot(labels, len(classes))
    wrong = sure.roll(1, dims=1)
    early = labels < len(classes) // 2
    logits = {
        **({"teacher": sure} if teacher else {}),
        "densenet121": torch.where(early[:, None], wrong, sure),
        "googlenet": sure,
        **dict.fromkeys(STUDENTS[2:], 0.1 * wrong),
        "selector": torch.where(early[:, None], *torch.eye(2)),
    }
    images = torch.zeros(len(labels), 32, 32, 3, dtype=torch.uint8)
    data = replace(CIFAR10, name="mine", classes=tuple(classes))
    test = Split(images, labels, np.arange(len(labels)), data)
    results = evaluate(
        Networks(logits, dict.fromkeys(logits, 1.0), labels),
        {"selector": [0.5], "cascade": [0.9] * (len(STUDENTS) - 1)},
        dict.fromkeys(logits, 1.0),
        dict.fromkeys([*logits, "routed", "cascade"], 1.0),
        test,
        ["clean"] * len(labels),
    )
    results.metrics = {"dataset": "mine", "context": "clean", **results.metrics}
    return results


def test_of_many_classes_those_are_drawn_that_tell_most():
    names = tuple(f"class {k} of a rather long name" for k in range(1000))
    results = results_of(names)
    axes = figures.per_class_accuracy(results).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all", *names[:20]]
    assert "20 of 1,000 classes" in axes.get_title("left")
    assert "20 of 1,000 classes" in figures.confusion(results).get_suptitle()


def test_of_many_classes_the_worst_ten_and_all_are_printed_in_percent(capsys):
    metrics = results_of([f"class {k}" for k in range(100)]).metrics
    metrics["per_class"]["routed"]["class 0"] = 1.0  # as if it was not among the worst
    print_tables(metrics)
    rows = re.findall(r"^(class \d+|all) +(.*)$", capsys.readouterr().out, re.MULTILINE)
    assert [name for name, _ in rows] == [*(f"class {k}" for k in range(1, 11)), "all"]
    others = ["0.0"] * len(STUDENTS[2:])
    assert rows[0][1].split() == ["100.0", "0.0", "100.0", *others, "0.0", "100.0"]
    assert rows[-1][1].split() == ["100.0", "50.0", "100.0", *others, "50.0", "50.0"]


def test_without_a_teacher_the_figures_are_of_the_students(tmp_path):
    results = results_of(("a", "b", "c", "d"), teacher=False)
    assert len(figures.confusion(results).axes) == 1
    axes = figures.per_class_accuracy(results).axes[0]
    # Sorted by the accuracy of the first network, student 1, which is wrong on a and b.
    assert [label.get_text() for label in axes.get_yticklabels()] == ["all", "c", "d", "a", "b"]
    assert figures.draw_all(tmp_path, results, {})


def cells(axes):
    return {text.get_position(): text.get_text() for text in axes.texts}


def test_the_confusion_matrix_counts_what_was_routed():
    results = results_of(("a", "b", "c", "d"))
    routed, less = figures.confusion(results).axes
    # Images of a and b go to student 1, which predicts the next class. Keys: (answer, class).
    assert cells(routed) == {(1, 0): "2", (2, 1): "2", (2, 2): "2", (3, 3): "2"}
    minus = "\N{MINUS SIGN}2"
    assert cells(less) == {(0, 0): minus, (1, 0): "+2", (1, 1): minus, (2, 1): "+2"}


def test_samples_are_in_groups_with_both_answers_and_the_choice():
    results = results_of(("a", "b", "c", "d"))
    titles, *groups = figures.samples(results).subfigs
    named = [group.texts[0].get_text() for group in groups]
    for title, who, share in zip(named, ("DenseNet-121", "GoogLeNet", ""), (0, 50, 0), strict=True):
        assert who in title and f" {share}.0 %" in title
    first = [text.get_text() for text in groups[1].axes[0].texts]
    assert first[:3] == ["1 b 100 \N{BALLOT X}", "\N{BLACK RIGHT-POINTING TRIANGLE}", "2 a 100"]


@pytest.mark.parametrize("script", ["inference.py", "studies.policies", "studies.selectors"])
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_read(tmp_path, script):
    (tmp_path / "file").touch()
    words = ["--out", tmp_path / "file" / "out", "--checkpoint-dir", tmp_path / "none"]
    assert "file/out" in call(script, *words, status=2)[1]


@pytest.mark.parametrize("content", ["epoch,loss\n1,2\n", "epoch,val_accuracy,train_accuracy\n1\n"])
def test_a_damaged_history_is_told_before_anything_is_measured(tmp_path, content):
    (tmp_path / "teacher.csv").write_text(content)
    words = ["--checkpoint-dir", tmp_path, "--out", tmp_path / "out"]
    assert "teacher.csv" in call("inference.py", *words, status=2)[1]
    assert not list((tmp_path / "out").iterdir())
