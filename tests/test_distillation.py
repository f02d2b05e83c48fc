"""The distillation study: its numbers, checked by hand, and runs that are stopped and resumed."""

import json
import subprocess
import sys
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from loop import Pixels

import StudentTrain
from evaluation.significance import t_interval
from studies import distillation, tables
from studies.distillation import PAIRS, Trained, read, summary
from utils import cli
from utils.checkpoint import amend_checkpoint
from utils.data import CLASSES, MEAN, STD
from utils.files import UserError


def test_the_interval_of_a_mean_is_students():
    low, high = t_interval([1.0, 2.0, 6.0])  # mean 3, deviation sqrt(7)
    assert (low, high) == pytest.approx((3 - 4.303 * (7 / 3) ** 0.5, 3 + 4.303 * (7 / 3) ** 0.5))
    assert t_interval([0.5, 0.5]) == (0.5, 0.5)


def run(student, loss, seed, val, test):
    return Trained(student, loss, seed, 10, 128, "teacher", "data", val, test)


def test_the_gain_is_that_of_the_same_seed():
    rows = summary(
        [
            run("googlenet", "none", 1, 0.90, 0.80),
            run("googlenet", "none", 0, 0.80, 0.70),
            run("googlenet", "mse", 0, 0.85, 0.73),
            run("googlenet", "mse", 1, 0.95, 0.81),
            run("googlenet", "mse", 2, 0.90, 0.95),  # not trained alone
            run("googlenet", "kl", 0, 0.5, 0.5),  # one seed tells nothing
        ]
    )
    alone, taught = rows
    assert (alone["distill_loss"], alone["seeds"], taught["seeds"]) == ("none", 2, 3)
    assert "gain" not in alone
    assert alone["test_accuracy"] == pytest.approx({"mean": 0.75, "std": 0.005**0.5})
    assert taught["val_accuracy"] == pytest.approx({"mean": 0.9, "std": 0.05})
    assert taught["gain"]["each"] == pytest.approx([0.03, 0.01])
    assert taught["gain"]["interval"] == pytest.approx(t_interval([0.03, 0.01]))


@pytest.fixture
def study(monkeypatch, tmp_path, small_npz):
    """Run the study with tiny students in this process: exit status, commands, results."""
    commands, teacher = [], Pixels().eval()
    facts = {"val_accuracy": 0.9, "classes": CLASSES, "mean": MEAN, "std": STD}
    monkeypatch.setattr(distillation, "load_network", lambda *_: (teacher, facts))
    monkeypatch.setattr(StudentTrain, "load_teacher", lambda *_: (teacher, facts))
    monkeypatch.setattr(distillation, "RUNS", tmp_path / "runs")
    monkeypatch.setattr("utils.checkpoint.QUICK", tmp_path / "quick")
    monkeypatch.setattr("utils.logits.for_inference", lambda net, device: net)
    monkeypatch.setattr(StudentTrain, "starting_network", lambda *_: (Pixels(), None))
    monkeypatch.setattr(
        StudentTrain, "report_accuracy", lambda path, *_: amend_checkpoint(path, test_accuracy=0.5)
    )

    def start(words, stop_after=99):
        commands.append(words[2:])
        if len(commands) > stop_after:
            return SimpleNamespace(wait=lambda: 130)
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", list(map(str, words[1:])))
            StudentTrain.main()
        return SimpleNamespace(wait=lambda: 0)

    def run_it(*words, stop_after=99, read=True):
        commands.clear()
        monkeypatch.setattr(subprocess, "Popen", lambda words: start(words, stop_after=stop_after))
        flags = f"--data-dir {small_npz} --device cpu --checkpoint-dir {tmp_path} --out {tmp_path}"
        monkeypatch.setattr(sys, "argv", ["distillation.py", *flags.split(), *words])
        with pytest.raises(SystemExit) as end:
            cli.run(distillation.main)
        path = tmp_path / "distillation.json"
        return end.value.code, list(commands), read and json.loads(path.read_text())

    return run_it


def test_runs_that_are_done_are_not_done_again(study, tmp_path, capsys):
    words = ["--epochs", "1", "--seeds", "2", "--batch-size", "50"]
    status, commands, runs = study(*words, stop_after=3)
    assert status == 2 and len(runs) == 3
    assert "ended with status 130: run this command again" in capsys.readouterr().err
    status, commands, runs = study(*words)
    assert not status and len(commands) == 7
    assert {(run["student"], run["distill_loss"], run["seed"]) for run in runs} == {
        (*pair, seed) for pair in PAIRS for seed in (0, 1)
    }
    assert all(run["test_accuracy"] == 0.5 and 0 <= run["val_accuracy"] <= 1 for run in runs)
    assert (tmp_path / "distillation.png").stat().st_size > 1000
    assert "GoogLeNet, alone" in capsys.readouterr().out
    assert study(*words)[1] == []
    for flag, message in (
        ("--epochs", "epochs 1, not 2"),
        ("--batch-size", "batch_size 50, not 2"),
    ):
        status, commands, _ = study(*words, flag, "2")
        assert status == 2 and not commands
        assert f"has runs with {message}: move it away" in capsys.readouterr().err


def test_a_run_that_was_stopped_is_not_continued_by_another_study(study, tmp_path):
    folders = []
    for more in ([], ["--epochs", "2"], ["--batch-size", "60"]):
        words = ["--epochs", "1", "--batch-size", "50", "--seeds", "2", *more]
        _, (command,), _ = study(*words, stop_after=0, read=False)
        folders.append(command[command.index("--checkpoint-dir") + 1])
    assert len(set(folders)) == 3


def test_a_quick_test_trains_every_student_on_its_subset(study):
    status, commands, runs = study(
        "--epochs", "1", "--seeds", "2", "--batch-size", "50", "--subset", "60"
    )
    assert not status and len(commands) == len(runs) == 2 * len(PAIRS)
    assert {words[words.index("--subset") + 1] for words in commands} == {"60"}


@pytest.mark.parametrize("content", ["{}", "[]", "[1]", '[{"student": 1}]', "\0", "[" * 100_000])
def test_a_damaged_list_of_runs_is_refused_and_kept(content, study, tmp_path, capsys):
    path = tmp_path / "distillation.json"
    path.write_text(content)
    assert study("--epochs", "1", read=False)[:2] == (2, [])
    assert str(path) in capsys.readouterr().err
    assert path.read_text() == content


def test_a_run_that_stands_there_twice_is_refused_by_name(tmp_path):
    path = tmp_path / "distillation.json"
    once = [asdict(run("googlenet", "mse", seed, 0.9, 0.8)) for seed in (0, 1)]
    path.write_text(json.dumps([*once, once[1]]))
    for reading in (lambda: read(path, {}), lambda: tables.distillation([*once, once[1]])):
        with pytest.raises(UserError, match="googlenet, mse, seed 1"):
            reading()
