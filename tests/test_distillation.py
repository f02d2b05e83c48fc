"""The distillation study: its numbers, checked by hand, and runs that are stopped and resumed."""

import json

import pytest
from loop import Pixels
from programs import call

from evaluation.significance import t_interval
from studies import distillation
from studies.distillation import PAIRS, read, summary, table
from utils import cli
from utils.checkpoint import amend_checkpoint, save_checkpoint
from utils.files import UserError


def test_the_interval_of_a_mean_is_students():
    low, high = t_interval([1.0, 2.0, 6.0])  # mean 3, deviation sqrt(7)
    assert (low, high) == pytest.approx((3 - 4.303 * (7 / 3) ** 0.5, 3 + 4.303 * (7 / 3) ** 0.5))
    assert t_interval([0.5, 0.5]) == (0.5, 0.5)


def run(student, loss, seed, val, test):
    names = ("student", "distill_loss", "seed", "val_accuracy", "test_accuracy")
    return dict(zip(names, (student, loss, seed, val, test), strict=True))


def test_the_gain_is_that_of_the_same_seed():
    runs = [
        run("googlenet", "none", 1, 0.91, 0.90),
        run("googlenet", "none", 0, 0.89, 0.88),
        run("googlenet", "mse", 0, 0.90, 0.89),
        run("googlenet", "mse", 1, 0.92, 0.92),
        *[run("googlenet", "mse", 2, 0.91, 0.91)] * 2,  # not trained alone; counts once
        run("googlenet", "kl", 0, 0.5, 0.5),  # one seed tells nothing
    ]
    alone, taught = summary(runs)
    assert (alone["seeds"], taught["seeds"]) == (2, 3)
    assert "gain" not in alone and taught["gain"]["each"] == pytest.approx([0.01, 0.02])
    assert alone["test_accuracy"] == pytest.approx({"mean": 0.89, "std": 0.0002**0.5})
    # The gains are 1 and 2 points: 1.5 +- 12.706 * 0.5.
    assert table(runs)[1] == [
        ["GoogLeNet, alone", "2", "90.00 ± 1.41", "89.00 ± 1.41", ""],
        [
            "GoogLeNet, MSE between logits",
            "3",
            "91.00 ± 1.00",
            "90.67 ± 1.53",
            "+1.50 (-4.85 to +7.85)",
        ],
    ]


@pytest.fixture
def study(monkeypatch, tmp_path, small_npz):
    """Run the study; students are made in place of being trained: commands, runs, output."""
    teacher = Pixels().eval()
    monkeypatch.setattr(distillation, "load_network", lambda *_: (teacher, {}))
    monkeypatch.setattr(distillation, "RUNS", tmp_path / "runs")

    def study(*words, stop_after=99, status=0):
        commands = []

        def train(script, flags):
            commands.append(dict(zip(flags[::2], flags[1::2], strict=True)))
            if len(commands) > stop_after:
                raise UserError("stopped")
            folder, model = (commands[-1][name] for name in ("--checkpoint-dir", "--model"))
            alone = "_alone" if commands[-1]["--distill-loss"] == "none" else ""
            path = tmp_path / folder / f"{distillation.STUDENTS[int(model) - 1]}{alone}.pth"
            save_checkpoint(path, Pixels(), {"arch": "resnet50", "stem": "cifar"}, 1, 0.4)
            amend_checkpoint(path, test_accuracy=0.5)

        monkeypatch.setattr(cli, "run_script", train)
        flags = f"--data-dir {small_npz} --device cpu --out {tmp_path} --seeds 2 --epochs 1"
        said = call("studies.distillation", *flags.split(), *words, status=status)
        path = tmp_path / "distillation.json"
        return commands, json.loads(path.read_text()) if path.exists() else None, "".join(said)

    return study


def test_runs_that_are_done_are_not_done_again(study, tmp_path):
    _, runs, _ = study(stop_after=3, status=2)
    assert len(runs) == 3
    commands, runs, out = study()
    assert len(commands) == 2 * len(PAIRS) - 3 and "GoogLeNet, alone" in out
    assert [(run["student"], run["distill_loss"], run["seed"]) for run in runs] == [
        (*pair, seed) for seed in (0, 1) for pair in PAIRS
    ]
    assert all((run["test_accuracy"], run["val_accuracy"]) == (0.5, 0.4) for run in runs)
    assert (tmp_path / "distillation.png").stat().st_size > 1000
    assert study()[0] == []
    commands, _, err = study("--batch-size", "2", status=2)
    assert not commands and "distillation.json" in err and "batch_size 128, not 2" in err


def test_a_run_that_was_stopped_is_not_continued_by_another_study(study):
    folders = set()
    for more in ([], ["--epochs", "2"], ["--batch-size", "60"], ["--subset", "60"]):
        (command,), *_ = study(*more, stop_after=0, status=2)
        folders.add(command["--checkpoint-dir"])
        assert command.get("--subset") == ("60" if "--subset" in more else None)
    assert len(folders) == 4


@pytest.mark.parametrize("content", [{}, [], [1], [{"student": 1}]])
def test_a_damaged_list_of_runs_is_refused_and_kept(content, tmp_path):
    path = tmp_path / "distillation.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="distillation.json"):
        read(path, {})
    assert json.loads(path.read_text()) == content
