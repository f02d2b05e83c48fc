"""The selector study finds a signal in the images if there is one, and none otherwise."""

import json
import sys

import numpy as np
import pytest
import torch

from models import STUDENTS, network
from studies import selectors
from studies.selectors import Variant, answers_of, out_of_fold, shifted, study, train_selector
from studies.specialize import halves
from utils import cli
from utils.checkpoint import ALONE, load_network, save_checkpoint
from utils.data import data_facts, fingerprint, load_sample, load_splits
from utils.files import UserError
from utils.logits import predict


def told(images, first_right, labels=None):
    """Two students: the first is correct on the given images, the second on the others."""
    labels = torch.zeros(len(images), dtype=torch.long) if labels is None else labels
    good, bad = torch.tensor([4.0, 0.0]), torch.tensor([0.0, 2.0])
    logits = [torch.where(right[:, None], good, bad) for right in (first_right, ~first_right)]
    return answers_of(images, labels, logits)


@pytest.fixture(scope="module")
def images():
    """200 images, every second one darkened."""
    pixels = load_sample(200).images.clone()
    pixels[::2] //= 6
    return pixels


@pytest.mark.parametrize(
    "variant", [Variant("train"), Variant("augmented", weighted=True, depth=1)]
)
def test_a_student_that_is_right_in_the_dark_is_found_by_the_image(variant, images):
    dark = torch.arange(len(images)) % 2 == 0
    data = told(images, dark)
    (row,) = study((variant,), {variant.labels: data}, data, data, seeds=2, steps=30)
    assert row["auroc"]["mean"] > 0.95 and row["accuracy"]["mean"] > 0.9
    assert [run["seed"] for run in row["runs"]] == [0, 1]
    for measured in (row["auroc"], row["accuracy"]):
        assert measured["interval"][0] <= measured["mean"] <= measured["interval"][1]
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
        predict(train_selector(Variant("train", each), data, seed=0, steps=30), images[dark])
        for each in (False, True)
    )
    assert plain[:, 0].mean() < plain[:, 1].mean() and weighted[:, 0].mean() > weighted[:, 1].mean()


def test_shifted_images_are_others_of_the_same_kind(images):
    moved = shifted(images)
    assert moved.shape == images.shape and moved.dtype == torch.uint8
    assert not torch.equal(moved, images) and torch.equal(moved, shifted(images))


def test_images_that_tell_the_students_never_apart_are_refused(images):
    data = told(images, torch.ones(len(images), dtype=torch.bool))
    with pytest.raises(
        UserError, match="student 2 must be correct on at least one on which student 1 is not"
    ):
        next(study((Variant("train"),), {"train": data}, data, data, seeds=1, steps=1))


@pytest.fixture
def fold(small_npz, tmp_path):
    """The training images, and a folder of students whose facts say that they used one half."""
    train = load_splits(small_npz)[0]
    half = halves(train)[1]
    facts = {"data": data_facts(half.images, half.labels)}
    for arch, file in ALONE.items():
        save_checkpoint(
            tmp_path / file, network(arch), facts | {"arch": arch, "stem": "cifar-pool"}, 1, 0.1
        )
    return train, tmp_path


def test_students_answer_for_the_half_that_they_never_saw(fold):
    train, folder = fold
    saved = folder / "out_of_fold.npz"
    assert out_of_fold(None, saved, train) is None
    made = out_of_fold(folder, saved, train)
    first = halves(train)[0]
    for arch, logits in zip(STUDENTS, made, strict=True):
        student = load_network(folder / ALONE[arch])[0]
        expected = predict(student, first.images)
        assert (logits - expected).abs().max() < 0.03 * expected.abs().max()
    again = out_of_fold(None, saved, train)
    assert all(torch.equal(one.half().float(), two) for one, two in zip(made, again, strict=True))


def test_answers_for_other_images_are_not_taken(fold, capsys):
    train, folder = fold
    saved = folder / "out_of_fold.npz"
    out_of_fold(folder, saved, train)
    train.labels[0] = (train.labels[0] + 1) % 10
    assert out_of_fold(None, saved, train) is None
    assert "no out-of-fold logits" in capsys.readouterr().out
    saved.write_bytes(saved.read_bytes()[:100])
    assert out_of_fold(None, saved, train) is None
    of = fingerprint([train.images, train.labels])
    for logits in (np.full((2, 100, 10), np.nan, np.float16), np.zeros((2, 100, 1), np.float16)):
        np.savez(saved, of=of, logits=logits)
        assert out_of_fold(None, saved, train) is None


def test_students_that_saw_the_images_are_refused(fold):
    train, folder = fold
    with pytest.raises(UserError, match="densenet121_alone.pth was not trained on the second half"):
        out_of_fold(
            folder, folder / "out_of_fold.npz", train.take(np.arange(len(train))[::-1].copy())
        )
    assert not (folder / "out_of_fold.npz").exists()


# ------------------------------------------------------------------ the command


@pytest.fixture
def command(small_npz, tmp_path, monkeypatch, capsys):
    """Run the study with three small variants: exit status and output."""

    def command(subset):
        variants = Variant("train"), Variant("out of fold"), Variant("held out", weighted=True)
        monkeypatch.setattr(selectors, "VARIANTS", variants)
        monkeypatch.setattr(selectors, "STEPS", 2)
        words = ["--data-dir", small_npz, "--out", tmp_path, "--device", "cpu", "--seeds", "2"]
        monkeypatch.setattr(sys, "argv", ["study.py", *map(str, words), "--subset", subset])
        with pytest.raises(SystemExit) as stop:
            cli.run(selectors.main)
        return stop.value.code or 0, capsys.readouterr()

    return command


def test_too_few_images_to_tell_the_students_apart_are_refused(command, tmp_path):
    status, told = command("4")
    assert status == 2 and "on at least one on which student" in told.err
    assert not list(tmp_path.iterdir())


def test_answers_out_of_fold_that_lie_there_are_learned_from(command, small_npz, tmp_path):
    train = load_splits(small_npz, 200)[0]
    logits = torch.randn(2, 100, 10, generator=torch.Generator().manual_seed(0)).half().numpy()
    of = fingerprint([train.images, train.labels])
    np.savez(tmp_path / "out_of_fold.npz", of=of, logits=logits)
    status, told = command("200")
    assert status == 0 and "no out-of-fold logits" not in told.out
    trained = json.loads((tmp_path / "selectors.json").read_text())
    assert [row["labels"] for row in trained["variants"]] == ["train", "out of fold", "held out"]
    assert trained["told"]["out of fold"]["images"] == 100


def test_the_command_writes_numbers_and_a_figure(command, tmp_path):
    status, told = command("200")
    assert status == 0 and "no out-of-fold logits" in told.out
    trained = json.loads((tmp_path / "selectors.json").read_text())
    assert [row["labels"] for row in trained["variants"]] == ["train", "held out"]
    assert [len(row["runs"]) for row in trained["variants"]] == [2, 2]
    assert trained["told"]["held out"]["images"] == 30
    assert (tmp_path / "selectors.png").stat().st_size > 10_000
