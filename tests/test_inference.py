"""Pictures from users, and the tables of inference.py and utils.compression."""

import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import inference
from models import MultiStudent
from utils import compression
from utils.files import UserError
from utils.photos import image_files, read_image

RGB = (200, 30, 10)


class Always(nn.Module):
    """A stand-in for a student: sure of one class, whatever the image."""

    def __init__(self, label):
        super().__init__()
        self.label = label

    def forward(self, images):
        return 9.0 * torch.nn.functional.one_hot(torch.full((len(images),), self.label), 10).float()


class Redness(nn.Module):
    """A stand-in for a selector: student 1 for red images."""

    def forward(self, images):
        return 9 * (images[:, 0].mean(dim=(1, 2)) - images[:, 2].mean(dim=(1, 2)))


@pytest.fixture
def system():
    return MultiStudent([Always(3), Always(8)], Redness())


PICTURES = {
    "RGB": (Image.new("RGB", (40, 40), RGB), RGB),
    "palette": (Image.new("RGB", (40, 40), RGB).quantize(4), RGB),
    "gray": (Image.new("L", (40, 40), 200), (200, 200, 200)),
    "16-bit": (Image.fromarray(np.full((40, 40), 200 * 257, np.uint16)), (200, 200, 200)),
    "transparent": (Image.new("RGBA", (40, 40), (*RGB, 0)), (255, 255, 255)),
    "gray and alpha": (Image.new("LA", (40, 40), (200, 255)), (200, 200, 200)),
    "1-bit": (Image.new("1", (40, 40), 1), (255, 255, 255)),
    "1x1": (Image.new("RGB", (1, 1), RGB), RGB),
    "8000x1": (Image.new("RGB", (8000, 1), RGB), RGB),
    "8000x8000": (Image.new("RGB", (8000, 8000), RGB), RGB),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_every_kind_of_picture_becomes_32x32_rgb(tmp_path, kind):
    picture, expected = PICTURES[kind]
    picture.save(tmp_path / "picture.png")
    image = read_image(tmp_path / "picture.png")
    assert image.shape == (32, 32, 3) and image.dtype == np.uint8
    assert np.abs(image.astype(int) - expected).max() <= 2


def test_a_large_jpeg_is_read(tmp_path):
    Image.new("RGB", (8000, 6000), (200, 30, 10)).save(tmp_path / "large.jpg")
    assert np.abs(read_image(tmp_path / "large.jpg").astype(int) - (200, 30, 10)).max() <= 4


def test_a_cmyk_jpeg_is_read(tmp_path):
    Image.new("CMYK", (64, 64), (0, 255, 255, 0)).save(tmp_path / "print.jpg")
    red, green, blue = read_image(tmp_path / "print.jpg").mean(axis=(0, 1))
    assert red > 200 > 80 > max(green, blue)


def test_a_picture_is_turned_as_its_exif_data_say(tmp_path):
    upright = np.zeros((32, 32, 3), np.uint8)
    upright[:16] = 255  # white above black
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its left side: to be turned by 90 degrees clockwise
    stored = Image.fromarray(np.rot90(upright).copy())
    stored.save(tmp_path / "turned.png", exif=exif)
    assert (read_image(tmp_path / "turned.png") == upright).all()


def test_the_middle_square_is_taken(tmp_path):
    wide = np.zeros((32, 96, 3), np.uint8)
    wide[:, 32:64] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert (read_image(tmp_path / "wide.png") == 255).all()


def test_a_cifar_image_is_read_as_it_is(tmp_path, sample):
    image = sample.images[0].numpy()
    Image.fromarray(image).save(tmp_path / "cifar.png")
    assert (read_image(tmp_path / "cifar.png") == image).all()


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 50])
def test_what_is_no_image_is_named(tmp_path, content):
    (tmp_path / "notes.png").write_bytes(content)
    with pytest.raises(UserError, match="notes.png: not an image"):
        read_image(tmp_path / "notes.png")


def test_a_truncated_picture_is_named(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.png")
    content = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="cut.png: not an image"):
        read_image(tmp_path / "cut.png")


def test_a_folder_stands_for_the_files_below_it(tmp_path):
    for name in ("b.png", "a.png", "deep/er/c.png", ".hidden.png", ".git/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    names = [str(path.relative_to(tmp_path)) for path in image_files([tmp_path])]
    assert names == ["a.png", "b.png", "deep/er/c.png"]


def test_good_pictures_are_answered_beside_bad_ones(tmp_path, capsys, system):
    Image.new("RGB", (40, 40), RGB).save(tmp_path / "red.png")
    Image.new("RGB", (50, 50), (10, 30, 200)).save(tmp_path / "blue.png")
    (tmp_path / "notes.txt").write_text("no image")
    paths = [tmp_path, tmp_path / "missing.png"]
    status = inference.answer(system.eval(), paths, 2, torch.device("cpu"))
    out, err = capsys.readouterr()
    assert status == 2
    assert re.search(r"ship +99\.\d% +googlenet +\S*blue.png", out)
    assert re.search(r"cat +99\.\d% +densenet121 +\S*red.png", out)
    assert "notes.txt: not an image" in err and "missing.png: no such file" in err
    assert "Traceback" not in err
    good = [tmp_path / "red.png"]
    assert inference.answer(system.eval(), good, 2, torch.device("cpu")) == 0


def test_the_compression_tables_hold_the_published_figures_beside_ours(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["compression"])
    compression.main()
    out = capsys.readouterr().out
    rows = {line.split("  ")[0]: line for line in out.splitlines()}
    assert "70.4 % (87.3)" in rows["densenet121"] and "31.4 % (21.0)" in rows["densenet121"]
    assert "76.2 % (76.3)" in rows["googlenet"]
    assert "(61.4)" in rows["both + selector"] and "(40.6)" in rows["both + selector"]
