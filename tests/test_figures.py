"""What the end of inference.py needs is there when it starts."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import inference
from evaluation import figures
from models import STUDENTS
from studies import policies, selectors, specialize
from utils.checkpoint import FILES
from utils.files import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.parametrize("backend", ["module://matplotlib_inline.backend_inline", "no such"])
def test_figures_are_drawn_whatever_the_environment_says(tmp_path, backend):
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: no such\n")
    code = (
        "import pathlib, sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from evaluation import figures\n"
        "rows = [{'epoch': 1, 'val_accuracy': 0.5, 'train_accuracy': 0.4}]\n"
        "figure = figures.accuracy_per_epoch({'teacher': rows})\n"
        "figures.save(figure, pathlib.Path('figure.png'))\n"
    )
    environment = {**os.environ, "MPLBACKEND": backend, "MATPLOTLIBRC": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_of_many_classes_those_are_drawn_on_which_the_students_differ_most(tmp_path):
    names = [f"class {k} of a rather long name" for k in range(1000)]
    share = {name: (k + 0.5) / 1000 for k, name in enumerate(names)}
    per_class = {
        "densenet121": share,
        "googlenet": {name: 0.5 for name in names},
        "routed": share,
    }
    metrics = {
        "dataset": "mine",
        "images": 2000,
        "accuracy": dict.fromkeys(per_class, 0.5),
        "per_class": per_class,
        "route_share": dict.fromkeys(STUDENTS, 0.5),
        "route_share_per_class": share,
    }
    for draw in (figures.per_class_accuracy, figures.route_share):
        figure = draw(metrics)
        axes = figure.axes[0]
        labels = (
            axes.get_xticklabels() if draw is figures.per_class_accuracy else axes.get_yticklabels()
        )
        assert [label.get_text() for label in labels] == [*names[:10], *names[-10:]]
        assert "20 of 1,000 classes on which the students differ most" in (
            axes.get_title("left") + axes.get_xlabel()
        )
        figures.save(figure, tmp_path / "figure.png")


def test_without_matplotlib_nothing_is_begun():
    code = (
        "import sys\n"
        "sys.modules['matplotlib'] = None\n"  # importing it fails
        "import inference\n"
        "from utils import cli\n"
        "sys.argv = ['inference.py', '--checkpoint-dir', 'none']\n"
        "cli.run(inference.main)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("inference.py: error: the figures need Matplotlib: pip install")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("main", [inference.main, policies.main, selectors.main, specialize.main])
def test_a_folder_that_cannot_be_written_is_told_before_anything_is_read(
    tmp_path, monkeypatch, main
):
    (tmp_path / "file").touch()
    words = ["halves"] if main is specialize.main else []
    words += ["--out", tmp_path / "file" / "out", "--checkpoint-dir", tmp_path / "none"]
    monkeypatch.setattr(sys, "argv", ["script.py", *map(str, words)])
    with pytest.raises(UserError, match="cannot write into .*file/out: Not a directory"):
        main()


@pytest.mark.parametrize("content", ["epoch,loss\n1,2\n", "epoch,val_accuracy,train_accuracy\n1\n"])
def test_a_damaged_history_is_told_before_anything_is_measured(
    tmp_path, monkeypatch, small_npz, content
):
    for file in FILES.values():
        (tmp_path / file).symlink_to(ROOT / "checkpoints" / file)
    (tmp_path / "teacher.csv").write_text(content)
    out = tmp_path / "out"
    words = ["inference.py", "--checkpoint-dir", tmp_path, "--out", out, "--data-dir", small_npz]
    monkeypatch.setattr(sys, "argv", list(map(str, words)))
    with pytest.raises(UserError, match="teacher.csv is no history of a training: delete it"):
        inference.main()
    assert not list(out.iterdir())
