"""The selector study finds a signal in the images if there is one, and none otherwise."""

import json
from dataclasses import replace

import pytest
import torch
from programs import call

from evaluation.policies import Networks
from models import SELECTED, network
from studies import selectors
from studies.selectors import Variant, study, train_selector
from utils.checkpoint import FILES, save_checkpoint
from utils.data import load_sample
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
    work = dict.fromkeys((*SELECTED, "selector"), 0)
    return split, Networks(dict(zip(SELECTED, logits, strict=True)), work, split.labels)


@pytest.mark.parametrize("variant", [Variant("train"), Variant("held out", weighted=True, depth=1)])
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
        images[1].logits[arch][20:] = torch.zeros(2)
    plain, weighted = (
        predict(train_selector(Variant("train", each), images, seed=0, steps=30), split.take(DARK))
        for each in (False, True)
    )
    assert plain[:, 0].mean() < plain[:, 1].mean() and weighted[:, 0].mean() > weighted[:, 1].mean()


def test_images_that_tell_the_students_never_apart_are_refused(split):
    images = answered(split, torch.ones(200, dtype=torch.bool))
    with pytest.raises(UserError):
        next(study((Variant("train"),), {"train": images}, images, images, seeds=1, steps=1))


def test_the_command_trains_each_variant_with_each_seed(toys, small_npz, tmp_path, monkeypatch):
    for arch in SELECTED:
        made = {"arch": arch, "stem": "cifar-pool"}
        save_checkpoint(tmp_path / FILES[arch], network(arch), made, 1, 0.1)
    monkeypatch.setattr(selectors, "STEPS", 2)
    variants = Variant("train"), Variant("held out", weighted=True)
    monkeypatch.setattr(selectors, "VARIANTS", variants)
    flags = f"--data-dir {small_npz} --device cpu --seeds 2 --subset 200"
    flags += f" --out {tmp_path} --checkpoint-dir {tmp_path}"
    call("studies.selectors", *flags.split())
    rows = json.loads((tmp_path / "selectors.json").read_text())["variants"]
    assert [(row["labels"], len(row["runs"])) for row in rows] == [("train", 2), ("held out", 2)]
    assert (tmp_path / "selectors.png").stat().st_size > 10_000
