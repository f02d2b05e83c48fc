"""The study finds what there is to be found, and nothing where there is nothing."""

import json
import sys

import pytest
import torch

from utils import cli, selector_study
from utils.data import load_sample
from utils.selector_study import Answers, Variant, shifted, study, train_selector
from utils.train import predict


def told(images, first_right, labels=None):
    """Two students, of which the first is right where told and the second elsewhere."""
    labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
    good, bad = torch.tensor([4.0, 0.0]), torch.tensor([0.0, 2.0])
    logits = [torch.where(right[:, None], good, bad) for right in (first_right, ~first_right)]
    return Answers(images, labels, tuple(logits))


@pytest.fixture(scope="module")
def images():
    """200 images, every other one of them darkened."""
    pixels = load_sample(200).images.clone()
    pixels[::2] //= 6
    return pixels


@pytest.mark.parametrize(
    "variant", [Variant("train"), Variant("augmented", weighted=True, depth=1)]
)
def test_a_student_that_is_right_in_the_dark_is_found_by_the_image(variant, images):
    dark = torch.arange(len(images)) % 2 == 0
    data = told(images, dark)
    (row,) = study((variant,), {variant.labels: data}, data, data, seeds=2, steps=60)
    assert row["auroc"]["mean"] > 0.95 and row["accuracy"]["mean"] > 0.9
    assert [run["seed"] for run in row["runs"]] == [0, 1]
    assert row["auroc"]["mean"] == pytest.approx(sum(run["auroc"] for run in row["runs"]) / 2)
    assert all(run["mcnemar_p"] < 1e-6 for run in row["runs"])


def test_what_is_no_matter_of_the_image_is_a_coin_on_other_images(images):
    random = torch.rand(len(images), generator=torch.Generator().manual_seed(1)) < 0.5
    data = told(images, random)
    parts = data.part(0, 100), data.part(100)
    (row,) = study((Variant("train"),), {"train": parts[0]}, *parts, seeds=2, steps=20)
    assert 0.3 < row["auroc"]["mean"] < 0.7


def test_an_image_on_which_both_err_alike_counts_nothing_where_weighted(images):
    dark = torch.arange(len(images)) % 2 == 0
    data = told(images, dark)
    # The published labels give these ties to student 2, dark or not: they would drown the others.
    data.logits[0][20:], data.logits[1][20:] = torch.zeros(2), torch.zeros(2)
    plain, weighted = (
        predict(train_selector(Variant("train", each), data, seed=0, steps=60), images[dark])
        for each in (False, True)
    )
    assert plain.mean() < 0 < weighted.mean()


def test_shifted_images_are_others_of_the_same_kind(images):
    moved = shifted(images)
    assert moved.shape == images.shape and moved.dtype == torch.uint8
    assert not torch.equal(moved, images) and torch.equal(moved, shifted(images))


@pytest.fixture
def command(small_npz, tmp_path, monkeypatch, capsys):
    """The study of three small variants on so many images: its exit status and what it told."""

    def command(subset):
        variants = Variant("train"), Variant("augmented"), Variant("held out", weighted=True)
        for name, value in {"VARIANTS": variants, "SEEDS": 2, "STEPS": 2}.items():
            monkeypatch.setattr(selector_study, name, value)
        words = ["--data-dir", small_npz, "--out", tmp_path, "--device", "cpu", "--subset", subset]
        monkeypatch.setattr(sys, "argv", ["selector_study.py", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.run(selector_study.main)
        return stop.value.code or 0, capsys.readouterr()

    return command


def test_too_few_images_to_tell_the_students_apart_are_refused(command, tmp_path):
    status, told = command(4)
    assert status == 2 and "is one student alone right: take more" in told.err
    assert not (tmp_path / "selectors.json").exists()


def test_the_command_writes_numbers_and_a_figure(command, tmp_path):
    status, told = command(400)
    assert status == 0 and "held out" in told.out
    result = json.loads((tmp_path / "selectors.json").read_text())
    assert [row["labels"] for row in result["variants"]] == ["train", "augmented", "held out"]
    assert result["told"]["held out"]["images"] == 30 and result["images"] == 400
    assert (tmp_path / "selectors.png").stat().st_size > 10_000
