"""The CSV file of inference.py: one row per image, written batch by batch."""

import resource
import signal
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from programs import rows
from torch import nn

import inference
from models import SELECTED, STUDENTS
from utils import checkpoint
from utils.data import CLASSES, MEAN, STD, fingerprint
from utils.files import UserError


class Student(nn.Module):
    """A fake student: the class is the mean red value, from 0 to 9."""

    def forward(self, images):
        red = images[:, 0].mean(dim=(1, 2))
        return 9.0 * torch.nn.functional.one_hot((2 * red + 4).long().clamp(0, 9), 10).float()


class Selector(nn.Module):
    """A fake selector that sends the signal `number` after two batches."""

    def __init__(self, number=0):
        super().__init__()
        self.number, self.batches = number, 0

    def forward(self, images):
        self.batches += 1
        if self.number and self.batches == 3:
            signal.raise_signal(self.number)
        red = images[:, 0].mean(dim=(1, 2))
        return torch.stack([red, torch.zeros_like(red)], dim=1)


@pytest.fixture
def run(monkeypatch):
    """Run inference.py with fake networks. Returns the exit status."""

    def run(*argv, selector=None):
        nets = {arch: Student() for arch in STUDENTS} | {"selector": selector or Selector()}
        weights = [fingerprint(nets[arch].state_dict().values()) for arch in STUDENTS]
        facts = {"classes": CLASSES, "mean": MEAN, "std": STD}
        made = {"students": weights, "selected": [*SELECTED]}
        facts |= {"hyperparameters": made, "threshold": 0.5}
        monkeypatch.setattr(checkpoint, "load_network", lambda path, arch: (nets[arch], facts))
        # The copy made by for_inference would lose the side effects of the fake networks.
        monkeypatch.setattr(inference, "for_inference", lambda net, device: net.eval())
        monkeypatch.setattr(sys, "argv", ["inference.py", "--device", "cpu", *map(str, argv)])
        try:
            return inference.main()
        except SystemExit as leaving:
            return leaving.code

    return run


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


def test_every_file_has_its_row_in_the_order_of_the_folders(folder, tmp_path, run, capsys):
    table = tmp_path / "new" / "table.csv"
    assert run(folder, "--csv", table, "--batch-size", 6) == 2
    out, err = capsys.readouterr()
    assert out.startswith("39 images answered, 2 files failed: ") and "table.csv" in out
    assert "img/s" in err and len(out.splitlines()) == 1
    found = rows(table)
    assert [row["file"] for row in found] == sorted(map(str, folder.rglob("*.*")))
    weights = fingerprint(Student().state_dict().values())
    for row in found:
        assert row["policy"] == "selector" and row["threshold"] == "0.5"
        assert f"{STUDENTS[1]} {weights}" in row["weights"]
        if row["file"].endswith(("07.png", "notes.txt")):
            assert row["error"].startswith("not an image")
            assert row["class"] == row["probability"] == row["student"] == ""
        else:
            assert row["error"] == "" and row["student"] in STUDENTS
            assert 0.99 < float(row["probability"]) <= 1


def test_the_rows_of_a_stopped_run_are_in_the_file(folder, tmp_path, run):
    with pytest.raises(KeyboardInterrupt):
        run(folder, "--csv", tmp_path / "a.csv", "--batch-size", 6, selector=Selector(2))
    assert len(rows(tmp_path / "a.csv")) == 12


def test_file_names_of_all_kinds_come_back(tmp_path, run, sample):
    names = ["new\nline.png", 'quo"te.png', "comma,.png", "\udcff"]
    for name in names:
        Image.fromarray(sample.images[0].numpy()).save(tmp_path / name, "PNG")
    assert run(tmp_path, "--csv", tmp_path / "table.csv") == 0  # which is no row of its own
    assert {Path(row["file"]).name for row in rows(tmp_path / "table.csv")} == set(names)


def test_a_file_that_stands_there_is_not_lost(folder, tmp_path, run):
    table = tmp_path / "table.csv"
    table.write_text("epoch,loss\n1,2\n")
    for there in (table, tmp_path):
        with pytest.raises(UserError, match=f"{there} exists"):
            run(folder, "--csv", there)
    assert table.read_text() == "epoch,loss\n1,2\n"


def test_a_full_disk_is_told_with_the_name_of_the_file(folder, tmp_path, run):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write .*table.csv: File too large"):
            run(folder, "--csv", tmp_path / "table.csv")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
