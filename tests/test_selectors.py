"""The selector study finds a signal in the images if there is one, and none otherwise."""

import json
from argparse import Namespace
from dataclasses import replace

import pytest
import torch
from programs import call

from models import SELECTED, network
from studies import selectors
from studies.selectors import Variant, images_of, out_of_fold, shifted, study, train_selector
from utils import cli
from utils.checkpoint import ALONE, FILES, save_checkpoint
from utils.data import load_sample, load_splits, named_images
from utils.files import UserError
from utils.logits import predict


@pytest.fixture
def split(pair):
    """200 images of class 0, every second one darkened."""
    sample = load_sample(200)
    sample.images[::2] //= 6
    return replace(sample, labels=torch.zeros_like(sample.labels))


DARK = torch.arange(200) % 2 == 0


def answered(split, first_right):
    """Two students: the first is correct on the given images, the second on the others."""
    good, bad = torch.tensor([4.0, 0.0]), torch.tensor([0.0, 2.0])
    logits = [torch.where(right[:, None], good, bad) for right in (first_right, ~first_right)]
    return images_of(split, logits)


@pytest.mark.parametrize(
    "variant", [Variant("train"), Variant("augmented", weighted=True, depth=1)]
)
def test_a_student_that_is_right_in_the_dark_is_found_by_the_image(variant, split):
    images = answered(split, DARK)
    (row,) = study((variant,), {variant.labels: images}, images, images, seeds=2, steps=30)
    assert row["auroc"]["mean"] > 0.95 and row["accuracy"]["mean"] > 0.9
    assert [run["seed"] for run in row["runs"]] == [0, 1]
    for facts in (row["auroc"], row["accuracy"]):
        assert facts["interval"][0] <= facts["mean"] <= facts["interval"][1]
    assert row["auroc"]["mean"] == pytest.approx(sum(run["auroc"] for run in row["runs"]) / 2)
    assert all(run["mcnemar_p"] < 1e-6 for run in row["runs"])


def test_what_is_no_matter_of_the_image_is_a_coin_on_other_images(split):
    random = torch.rand(200, generator=torch.Generator().manual_seed(1)) < 0.5
    seen, unseen = slice(100), slice(100, None)
    parts = [answered(split.take(part), random[part]) for part in (seen, unseen)]
    (row,) = study((Variant("train"),), {"train": parts[0]}, *parts, seeds=2, steps=20)
    assert 0.3 < row["auroc"]["mean"] < 0.7


def test_an_image_on_which_both_err_alike_counts_nothing_where_weighted(split):
    images = answered(split, DARK)
    # The published labels give these ties to student 2, dark or not: they would drown the others.
    for arch in SELECTED:
        images.nets.logits[arch][20:] = torch.zeros(2)
    plain, weighted = (
        predict(train_selector(Variant("train", each), images, seed=0, steps=30), split.take(DARK))
        for each in (False, True)
    )
    assert plain[:, 0].mean() < plain[:, 1].mean() and weighted[:, 0].mean() > weighted[:, 1].mean()


def test_shifted_images_are_others_of_the_same_kind(split):
    moved = shifted(split).images
    assert moved.shape == split.images.shape and moved.dtype == torch.uint8
    assert not torch.equal(moved, split.images) and torch.equal(moved, shifted(split).images)


def test_images_that_tell_the_students_never_apart_are_refused(split):
    images = answered(split, torch.ones(200, dtype=torch.bool))
    with pytest.raises(UserError):
        next(study((Variant("train"),), {"train": images}, images, images, seeds=1, steps=1))


def test_a_trained_selector_is_told_with_its_intervals():
    row = {
        "labels": "train",
        "weighted": True,
        "depth": 3,
        "batch_norm": False,
        "accuracy": {"mean": 0.9061, "std": 0.001, "interval": [0.9002, 0.9116]},
        "auroc": {"mean": 0.5123, "std": 0.0104, "interval": [0.461, 0.563]},
        "runs": [{"mcnemar_p": 0.91}, {"mcnemar_p": 0.034}],
    }
    assert selectors.table({"variants": [row]})[1] == [
        [
            "train, weighted",
            "3, no batch norm",
            "90.61",
            "0.512 (0.46 to 0.56)",
            "0.034 to 0.91",
        ]
    ]


def test_the_command_learns_from_students_that_saw_the_other_half_only(
    toys, small_npz, tmp_path, monkeypatch
):
    """Out of fold, the students are trained on one half and their logits are of the other."""
    train, trained_on = load_splits(small_npz, 200)[0], []

    def run_script(script, flags):
        flags = dict(zip(flags[::2], flags[1::2], strict=True))
        trained_on.append(set(named_images(train, flags["--indices"]).indices))
        arch = SELECTED[int(flags["--model"]) - 1]
        path = tmp_path / flags["--checkpoint-dir"] / ALONE[arch]
        save_checkpoint(path, network(arch), {"arch": arch, "stem": "cifar-pool"}, 1, 0.1)

    for arch in SELECTED:
        made = {"arch": arch, "stem": "cifar-pool"}
        save_checkpoint(tmp_path / FILES[arch], network(arch), made, 1, 0.1)

    def command(*words):
        flags = f"--data-dir {small_npz} --device cpu --seeds 2 --subset 200"
        flags += f" --out {tmp_path} --checkpoint-dir {tmp_path}"
        out, _ = call("studies.selectors", *flags.split(), *words)
        return json.loads((tmp_path / "selectors.json").read_text()), out

    monkeypatch.setattr(cli, "run_script", run_script)
    monkeypatch.setattr(selectors, "HALF", tmp_path / "half")
    monkeypatch.setattr(selectors, "STEPS", 2)
    variants = Variant("train"), Variant("out of fold"), Variant("held out", weighted=True)
    monkeypatch.setattr(selectors, "VARIANTS", variants)
    results, out = command()
    assert [row["labels"] for row in results["variants"]] == ["train", "held out"]
    assert "--out-of-fold" in out and (tmp_path / "selectors.png").stat().st_size > 10_000
    results, _ = command("--out-of-fold")
    assert [len(row["runs"]) for row in results["variants"]] == [2, 2, 2]
    assert {name: facts["images"] for name, facts in results["told"].items()} == {
        "train": 200,
        "augmented": 200,
        "held out": 30,
        "out of fold": 100,
    }
    args = Namespace(out=tmp_path, out_of_fold=False)
    of = out_of_fold(args, train).split.indices
    assert len(trained_on) == len(SELECTED) and all(not seen & set(of) for seen in trained_on)
    assert set(of) | trained_on[0] == set(train.indices)
    assert "--out-of-fold" not in command()[1]  # the stored logits are enough
    train.labels[0] = (train.labels[0] + 1) % 10
    assert out_of_fold(args, train) is None  # they are of other images
