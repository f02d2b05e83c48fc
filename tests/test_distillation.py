"""The distillation study: its numbers, checked by hand, and the runs that it reads."""

import json
from pathlib import Path

import pytest
from loop import Pixels
from programs import call

from evaluation.significance import t_interval
from studies.distillation import PAIRS, summary, table
from utils.checkpoint import ALONE, FILES, amend_checkpoint, save_checkpoint


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


def save(folder, arch, loss, seed, test=0.5, epochs=10):
    """Write the checkpoint of a run."""
    made = {"arch": arch, "stem": "cifar-pool", "distill_loss": loss, "seed": seed}
    made |= {"epochs": epochs, "batch_size": 128, "data": "45000 images"}
    made["teacher"] = None if loss == "none" else "0123456789ab"
    path = folder / f"{loss}-{seed}" / (ALONE if loss == "none" else FILES)[arch]
    save_checkpoint(path, Pixels(), made, 1, 0.4)
    amend_checkpoint(path, test_accuracy=test)


def test_the_finished_runs_are_summarized_and_then_those_that_are_stored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("runs/distillation")
    for seed in (0, 1):
        for arch, loss in PAIRS:
            save(folder, arch, loss, seed, test=0.5 + 0.01 * seed + 0.1 * (loss != "none"))
    save(folder, "googlenet", "kl", 2, test=None)  # not finished
    out, _ = call("studies.distillation")
    runs = json.loads(Path("results/distillation.json").read_text())
    assert len(runs) == 2 * len(PAIRS) and {run["teacher"] for run in runs} == {
        None,
        "0123456789ab",
    }
    assert "40.00 ± 0.00  60.50 ± 0.71  +10.00 (+10.00 to +10.00)" in out
    assert Path("results/distillation.png").stat().st_size > 1000
    folder.rename("elsewhere")
    assert call("studies.distillation")[0] == out
    save(Path("elsewhere"), "googlenet", "mse", 1, epochs=9)
    _, err = call("studies.distillation", "--runs", "elsewhere", status=2)
    assert "elsewhere has runs with epochs 9 and 10" in err


def test_without_runs_the_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "results/distillation.json" in call("studies.distillation", status=2)[1]
