"""The CSV file of inference.py: one row per image, written batch by batch."""

import resource
from pathlib import Path

import pytest
import torch
from PIL import Image
from programs import rows
from torch import nn

from evaluation.classify import write_predictions
from evaluation.policies import System
from utils.data import CIFAR10
from utils.files import UserError

MADE_BY = ("selector", "0.5", "densenet121 0123, googlenet 4567")


class Redness(nn.Module):
    """A fake system: class 3; student 1 for red images. It is stopped after `batches`."""

    def forward(self, images):
        if not self.batches:
            raise KeyboardInterrupt
        self.batches -= 1
        logits = 9.0 * nn.functional.one_hot(torch.full((len(images),), 3), 10)
        return logits, (images[:, 0].mean(dim=(1, 2)) < 0).long()


def write(table, *paths, batches=99):
    answered = [("densenet121",), ("googlenet",)]
    system = System(Redness(), answered, answered, temperatures=[1.0, 1.0])
    system.net.batches = batches
    return write_predictions(system, paths, table, MADE_BY, CIFAR10, 6, torch.device("cpu"))


@pytest.fixture
def folder(tmp_path, sample):
    """Forty image files in two folders, two of them invalid."""
    for k in range(40):
        path = tmp_path / "images" / str(k // 20) / f"{k:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample.images[k].numpy()).save(path)
    for name in ("0/07.png", "1/notes.txt"):
        (tmp_path / "images" / name).write_text("no image")
    return tmp_path / "images"


def test_every_file_has_its_row_in_the_order_of_the_folders(folder, tmp_path, capsys):
    table = tmp_path / "new" / "table.csv"
    assert write(table, folder) == 2
    out, err = capsys.readouterr()
    assert out.startswith("39 images answered, 2 files failed: ") and "table.csv" in out
    assert "img/s" in err and len(out.splitlines()) == 1
    found = rows(table)
    assert [row["file"] for row in found] == sorted(map(str, folder.rglob("*.*")))
    for row in found:
        assert (row["policy"], row["threshold"], row["weights"]) == MADE_BY
        if row["file"].endswith(("07.png", "notes.txt")):
            assert row["error"].startswith("not an image")
            assert row["class"] == row["probability"] == row["student"] == ""
        else:
            assert (row["error"], row["class"]) == ("", "cat")
            assert 0.99 < float(row["probability"]) <= 1
    assert {row["student"] for row in found} == {"densenet121", "googlenet", ""}


def test_the_rows_of_a_stopped_run_are_in_the_file(folder, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.csv", folder, batches=2)
    assert len(rows(tmp_path / "a.csv")) == 12


def test_file_names_of_all_kinds_come_back(tmp_path, sample):
    names = ["new\nline.png", 'quo"te.png', "comma,.png", "\udcff"]
    for name in names:
        Image.fromarray(sample.images[0].numpy()).save(tmp_path / name, "PNG")
    assert write(tmp_path / "table.csv", tmp_path) == 0  # which is no row of its own
    assert {Path(row["file"]).name for row in rows(tmp_path / "table.csv")} == set(names)


def test_a_file_that_stands_there_is_not_lost(folder, tmp_path):
    table = tmp_path / "table.csv"
    table.write_text("epoch,loss\n1,2\n")
    for there in (table, tmp_path):
        with pytest.raises(UserError, match=f"{there} exists"):
            write(there, folder)
    assert table.read_text() == "epoch,loss\n1,2\n"


def test_a_full_disk_is_told_with_the_name_of_the_file(folder, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write .*table.csv: File too large"):
            write(tmp_path / "table.csv", folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
