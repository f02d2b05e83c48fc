"""The training images chosen for each student."""

import sys

import numpy as np
import pytest
import torch

from models import STUDENTS
from studies import specialize
from studies.specialize import favoring, halves, vehicles
from utils import cli
from utils.data import CLASSES, Split, load_splits, named_images


def split(labels, indices=None):
    labels = torch.tensor(labels)
    indices = np.arange(len(labels)) if indices is None else np.array(indices)
    return Split(torch.zeros(len(labels), 32, 32, 3, dtype=torch.uint8), labels, indices)


def test_halves_are_disjoint_and_hold_every_image():
    first, second = halves(split([0] * 5, [30, 10, 50, 20, 40]))
    assert first.indices.tolist() == [30, 10] and second.indices.tolist() == [50, 20, 40]
    assert len(first.images) == 2 and len(second.labels) == 3


def test_a_favored_image_counts_thrice():
    part = favoring(split([0] * 3, [30, 10, 50]), torch.tensor([False, True, True]))
    assert sorted(part.tolist()) == [10, 10, 10, 30, 50, 50, 50]


def test_each_class_is_a_vehicle_or_an_animal():
    there, animals = vehicles(split(list(range(10))))
    names = [name for name, is_vehicle in zip(CLASSES, there, strict=True) if is_vehicle]
    assert names == ["airplane", "automobile", "ship", "truck"]
    assert torch.equal(animals, ~there)


@pytest.mark.parametrize("kind", ["halves", "vehicles"])
def test_the_command_writes_what_a_student_can_learn_from(
    kind, small_npz, tmp_path, monkeypatch, capsys
):
    words = [kind, "--data-dir", small_npz, "--out", tmp_path, "--device", "cpu", "--subset", "60"]
    monkeypatch.setattr(sys, "argv", ["specialize.py", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.run(specialize.main)
    assert not stop.value.code, capsys.readouterr().err
    train = load_splits(small_npz, 60)[0]
    parts = [named_images(train, tmp_path / f"{kind}-{k}.npy") for k in (1, 2)]
    assert set(np.concatenate([part.indices for part in parts])) == set(train.indices)
    told = capsys.readouterr().out
    for arch, part in zip(STUDENTS, parts, strict=True):
        assert f"for {arch}, {len(part):,} images" in told
