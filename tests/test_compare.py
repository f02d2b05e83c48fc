"""Evaluations of eight images beside each other, worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from programs import call, rows

from models import STUDENTS

RIGHT = {"a": "11110000", "b": "11111110", "c": "00000000"}


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Write an evaluation of the run `name`, whose routed system is right as RIGHT says."""
    monkeypatch.chdir(tmp_path)

    def made(name, seed=0, epochs=10, **changes):
        folder = tmp_path / name / "inference"
        folder.mkdir(parents=True)
        right = np.array([each == "1" for each in RIGHT[name]])
        parts = [*STUDENTS, "selector"]
        recipes = {arch: {"epochs": 48, "seed": 0} for arch in STUDENTS}
        weights = {arch: f"{k:012}" for k, arch in enumerate(STUDENTS)}
        recipes["selector"] = {"epochs": epochs, "seed": seed, "students": list(weights.values())}
        metrics = {
            "dataset": "CIFAR-10 test set",
            "context": "clean",
            "accuracy": {**dict.fromkeys(STUDENTS, 1.0), "routed": right.mean(), "oracle": 1.0},
            "macs_per_image": {**dict.fromkeys(parts, 100_000_000), "routed": 110_000_000},
            "weights": weights | {"selector": f"{name:>012}"},
            "hyperparameters": recipes,
            "thresholds": {"selector": [0.5], "cascade": [0.9]},
            "val_accuracy_per_epoch": {part: [0.5, 0.6] for part in parts},
        }
        (folder / "metrics.json").write_text(json.dumps(metrics | changes))
        arrays = {f"predictions/{arch}": np.zeros(8, int) for arch in STUDENTS}
        arrays |= {f"logits/{part}": np.zeros((8, 2), np.float16) for part in parts}
        arrays |= {"labels": np.zeros(8, int), "indices": np.arange(8)}
        np.savez(folder / "predictions.npz", **arrays, **{"predictions/routed": 1 - right})
        return folder

    return made


def compared(*folders):
    """The rows of compare.csv, and what is printed."""
    out, _ = call("studies.compare", *folders)
    return rows("runs/compare/compare.csv"), out


def test_two_seeds_are_compared_and_averaged(made):
    made("a", seed=1)
    made("b", seed=2)
    (*students, first, second, mean), out = compared("a", "b")
    assert [row["name"] for row in students] == list(STUDENTS)  # once: the weights are the same
    assert {row["run"] for row in students} == {"a"}
    assert [first["run"], second["run"], mean["run"]] == ["a", "b", "mean of 2 seeds"]
    assert [float(row["top1"]) for row in (first, second, mean)] == [50, 87.5, 68.75]
    assert first["difference"] == "" and float(second["difference"]) == 37.5
    assert float(second["mcnemar_p"]) == 0.25  # three heads, or tails, of three coins
    assert float(mean["deviation"]) == pytest.approx(37.5 / 2**0.5)
    assert float(mean["mmacs"]) == 110
    tex = Path("runs/compare/compare.tex").read_text()
    for text in (out, tex):
        assert "50.00" in text and "+37.50" in text and "0.25" in text
    assert r"68.75 $\pm$ 26.52" in tex and r"\begin{tabular}" in tex and r"top-1 \%" in tex
    assert Path("runs/compare/compare.png").read_bytes().startswith(b"\x89PNG")


def test_only_folders_that_differ_by_the_seed_alone_are_averaged(made):
    made("a", seed=1)
    made("b", seed=2, epochs=20)
    made("c", seed=3, epochs=20)
    (*_, mean), _ = compared("a", "b", "c")
    assert mean["run"] == "mean of 2 seeds" and float(mean["top1"]) == 43.75  # of b and c


def test_students_of_other_seeds_count_as_the_seed(made):
    """The selector's hyperparameters name its students by their fingerprints."""
    for name, seed in (("a", 1), ("b", 2)):
        weights = {arch: f"{seed}{k:011}" for k, arch in enumerate((*STUDENTS, "selector"))}
        recipes = {arch: {"seed": seed} for arch in STUDENTS}
        recipes["selector"] = {"seed": seed, "students": [weights[arch] for arch in STUDENTS]}
        made(name, weights=weights, hyperparameters=recipes)
    found, _ = compared("a", "b")
    means = [row["name"] for row in found if row["run"].startswith("mean")]
    assert means == [*STUDENTS, "routed"]


def test_folders_that_cannot_be_compared_are_refused_with_what_to_do(made, tmp_path):
    made("a")
    made("b", context="fog")
    for folder, advice in (("b", "--context"), ("runs/new", "python inference.py --run new")):
        _, err = call("studies.compare", "a", folder, status=2)
        assert folder in err and advice in err and len(err.splitlines()) == 1
    (tmp_path / "a" / "inference" / "predictions.npz").unlink()
    _, err = call("studies.compare", "a", status=2)
    assert "a/inference/predictions.npz is missing" in err
    assert not (tmp_path / "runs" / "compare").exists()
