"""Reading of arbitrary images, and the output of inference.py for them."""

import io
import os
import re
import socket
import struct
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from evaluation.classify import print_predictions
from evaluation.photos import image_files, read_image
from evaluation.policies import BOTH, System
from models import SELECTED, Cascade, MultiStudent
from utils import cli
from utils.data import CIFAR10
from utils.files import UserError

ROOT = Path(__file__).resolve().parent.parent
RGB, BLUE = (200, 30, 10), (10, 30, 200)


class Always(nn.Module):
    """A fake student that predicts the same class for every image."""

    def __init__(self, label):
        super().__init__()
        self.label = label

    def forward(self, images):
        return 9.0 * torch.nn.functional.one_hot(torch.full((len(images),), self.label), 10).float()


class Redness(nn.Module):
    """A fake selector that chooses student 1 for red images."""

    def forward(self, images):
        return 9 * images[:, [0, 2]].mean(dim=(2, 3))


@pytest.fixture
def system():
    return running(MultiStudent([Always(3), Always(8)], Redness()))


def running(net, answered=(("densenet121",), ("googlenet",))):
    return System(net.eval(), answered, answered, temperatures=[1.0] * len(answered))


def answer(system, *paths, batch_size=2, data=CIFAR10):
    return print_predictions(system, paths, data, batch_size, torch.device("cpu"))


def colored(path, color=RGB):
    Image.new("RGB", (40, 40), color).save(path)
    return path


@pytest.fixture
def red(tmp_path):
    return colored(tmp_path / "red.png")


PICTURES = {  # by file name: a picture and the color of the result
    "rgb.png": (Image.new("RGB", (40, 40), RGB), RGB),
    "palette.png": (Image.new("RGB", (40, 40), RGB).quantize(4), RGB),
    "gray.png": (Image.new("L", (40, 40), 200), (200, 200, 200)),
    "transparent.png": (Image.new("RGBA", (40, 40), (*RGB, 0)), (255, 255, 255)),
    "gray and alpha.png": (Image.new("LA", (40, 40), (200, 255)), (200, 200, 200)),
    "1-bit.png": (Image.new("1", (40, 40), 1), (255, 255, 255)),
    "1x1.png": (Image.new("RGB", (1, 1), RGB), RGB),
    "8000x1.png": (Image.new("RGB", (8000, 1), RGB), RGB),
    "8000x6000.jpg": (Image.new("RGB", (8000, 6000), RGB), RGB),
    "cmyk.jpg": (Image.new("CMYK", (64, 64), (0, 255, 255, 0)), (255, 0, 0)),
}


@pytest.mark.parametrize("name", PICTURES)
def test_every_kind_of_picture_becomes_32x32_rgb(tmp_path, name):
    picture, expected = PICTURES[name]
    picture.save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - expected).max() <= 4


def test_a_picture_is_turned_as_its_exif_data_say_unless_they_are_damaged(tmp_path):
    upright = np.zeros((32, 32, 3), np.uint8)
    upright[:16] = 255  # white above black
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: to be turned by 90 degrees clockwise
    damaged = b"Exif\0\0MM\0\xff" + b"\0" * 20
    for data, pixels in ((exif, np.rot90(upright).copy()), (damaged, upright)):
        Image.fromarray(pixels).save(tmp_path / "picture.png", exif=data)
        assert (read_image(tmp_path / "picture.png") == upright).all()


def test_the_middle_square_is_taken_and_an_image_of_cifar_stays_as_it_is(tmp_path, sample):
    wide, image = np.zeros((32, 96, 3), np.uint8), sample.images[0].numpy()
    wide[:, 32:64] = image
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (read_image(tmp_path / "wide.png") == image).all()


@pytest.mark.parametrize(
    "name, content",
    [
        ("empty.png", b""),
        ("notes.png", b"not an image"),
        ("rare.ppm", ("RGB", (40, 40))),  # Pillow reads it, as it has Ghostscript run EPS
        ("bomb.png", ("1", (20_000, 20_000))),  # too many pixels
    ],
)
def test_what_is_no_photo_is_named(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content) if isinstance(content, bytes) else Image.new(*content).save(path)
    with pytest.raises(UserError, match=f"{name}: "):
        read_image(path)


def test_half_transparent_edges_do_not_bleed_the_hidden_color(tmp_path):
    """Opaque red next to transparent green: on white, no green may be visible."""
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[:, :31] = (255, 0, 0, 255)
    pixels[:, 31:] = (0, 255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "edge.png")
    edge = read_image(tmp_path / "edge.png").astype(int)
    assert edge[..., 0].min() >= 250  # red and white both are full of red
    assert np.abs(edge[..., 1] - edge[..., 2]).max() <= 2


@pytest.mark.parametrize("error", [struct.error, MemoryError, OSError(22, "x\ny")])
def test_however_a_decoder_fails_it_is_told_in_one_line(monkeypatch, error, red):
    monkeypatch.setattr(Image, "open", Mock(side_effect=error))
    with pytest.raises(UserError, match="red.png: .*(Error|error|x)") as told:
        read_image(red)
    assert str(told.value).isprintable()


def test_what_is_no_regular_file_is_named_and_not_waited_for(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "fifo")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    socket.socket(socket.AF_UNIX).bind("socket")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    names = ["fifo", "socket", "/dev/zero", "loop", "dangling", "n" * 5000, "n/" * 5000]
    for path in map(Path, [*names, "gone.png"]):  # the last one between listing and reading
        assert list(image_files([path])) == [path]
        with pytest.raises(UserError, match=f"^{path}: "):
            read_image(path)


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    for name in ("a/1.png", "b/2.png", "c/3.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()

    def refuse(path, listed):
        if str(path) == str(tmp_path / "b"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    for name in ("scandir", "listdir"):  # root may list every folder
        monkeypatch.setattr(os, name, partial(refuse, listed=getattr(os, name)))
    files = list(image_files([tmp_path]))
    assert files == [tmp_path / "a/1.png", tmp_path / "c/3.png", tmp_path / "b"]
    with pytest.raises(UserError, match="b: Permission denied"):
        read_image(files[-1])


def test_a_folder_stands_for_the_files_below_it_and_links_to_files_but_not_to_folders(
    tmp_path, red
):
    for name in ("z.png", "deep/er/c.png", ".hidden.png", ".git/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "deep/link.png").symlink_to(red)
    (tmp_path / "deep/round").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path / "deep")
    found = [str(path.relative_to(tmp_path)) for path in image_files([tmp_path])]
    assert found == ["red.png", "z.png", "deep/link.png", "deep/er/c.png"]
    assert read_image(tmp_path / "deep/link.png").shape == (32, 32, 3)
    assert next(image_files([tmp_path / "again"])) == tmp_path / "again/link.png"


def test_good_pictures_are_answered_beside_bad_ones(tmp_path, capsys, system, red):
    colored(tmp_path / "blue.png", BLUE)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "empty/below").mkdir(parents=True)
    (tmp_path / "empty/.hidden.png").touch()
    assert answer(system, tmp_path, tmp_path / "empty", tmp_path / "missing.png") == 2
    out, err = capsys.readouterr()
    assert re.search(r"ship +99\.\d% +googlenet +\S*blue.png", out)
    assert re.search(r"cat +99\.\d% +densenet121 +\S*red.png", out)
    assert "notes.txt: not an image" in err and "missing.png: No such file" in err
    assert "empty: a folder that has no images" in err and "3 of the files" in err
    assert answer(system, red) == 0


def test_the_mean_of_a_cascade_is_named(capsys, red):
    cascade = Cascade([Always(3), Always(8)], [1.01])  # never sure enough
    assert answer(running(cascade, [("googlenet",), SELECTED]), red) == 0
    assert f" {BOTH} " in capsys.readouterr().out


def test_the_probability_is_that_of_the_temperature_of_who_answered(tmp_path, capsys, system, red):
    system.temperatures = (4.5, 9.0)
    assert answer(system, red, colored(tmp_path / "blue.png", BLUE)) == 0
    out = capsys.readouterr().out
    assert re.search(r"cat +45\.1% +densenet121", out)  # e^2 / (e^2 + 9)
    assert re.search(r"ship +23\.2% +googlenet", out)  # e / (e + 9)


EMOJI = "\U0001f600.png"
ODD_NAMES = [b"new\nline.png", b"esc\x1b[2J.png", EMOJI.encode(), b"\xff\xfe.png", b'"q",.png']


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_are_shown_on_one_line_whatever_is_in_them(
    tmp_path, monkeypatch, system, encoding, red
):
    for name in ODD_NAMES:
        os.link(red, os.fsencode(tmp_path) + b"/" + name)
        Path(os.fsdecode(b"%s/bad %s" % (os.fsencode(tmp_path), name))).touch()
    printed = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in ("stdout", "stderr")]
    printed[1].reconfigure(errors="backslashreplace")
    monkeypatch.setattr(sys, "stdout", printed[0])
    monkeypatch.setattr(sys, "stderr", printed[1])
    with pytest.raises(SystemExit, match="2"):
        cli.run(lambda: answer(system, tmp_path))
    sys.stderr.flush()
    out, err = (stream.buffer.getvalue().decode(encoding) for stream in printed)
    assert len(out.splitlines()) == 1 + 1 + len(ODD_NAMES)
    assert len(err.splitlines()) == len(ODD_NAMES) + 1
    assert r"new\nline.png'" in out and r"esc\x1b[2J.png'" in out and r"\udcff\udcfe.png'" in out
    assert "\x1b" not in out + err
    assert (EMOJI if encoding == "utf-8" else r"\U0001f600.png") in out


def test_pictures_become_what_the_networks_were_trained_on_in_batches_of_the_size_asked_for(
    tmp_path, system
):
    white = colored(tmp_path / "white.png", "white")
    seen, data = [], replace(CIFAR10, size=48, mean=(0.0, 0.0, 0.5), std=(1.0, 1.0, 0.5))
    system.net.selector.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    answer(system, *[white] * 7, batch_size=3, data=data)
    for images, count in zip(seen, (3, 3, 1), strict=True):
        assert torch.equal(images, torch.ones(count, 3, 48, 48))


def test_a_reader_that_has_had_enough_ends_it_quietly(tmp_path):
    for k in range(50):
        colored(tmp_path / f"{k}.png")
    with subprocess.Popen(
        [sys.executable, "inference.py", tmp_path, "--batch-size", "1", "--device", "cpu"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as running:
        assert running.stdout.readline().startswith(b"class ")
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 141
