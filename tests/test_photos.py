"""Pictures with deep gray levels look as they should; damaged files are named."""

import io
import random

import numpy as np
import pytest
from PIL import Image

from evaluation.photos import read_image
from utils.files import UserError


@pytest.fixture(scope="module")
def gray(sample):
    """An 8-bit picture of 48x40 with every level from black to white: int64."""
    picture = Image.fromarray(sample.images[1].numpy()).resize((48, 40)).convert("L")
    levels = np.asarray(picture).astype(int)
    return (levels - levels.min()) * 255 // (levels.max() - levels.min())


def as_read(path, pixels):
    Image.fromarray(pixels).save(path)
    return read_image(path).astype(int)


KINDS = {  # how numbers stand for levels from 0 to 255: NumPy's type, and the numbers
    "16 bits": ("u2", lambda levels: levels * 257),
    "12 bits in 16": ("u2", lambda levels: levels * 4095 // 255),
    "32 bits from below 0 on": ("i4", lambda levels: levels * 0x01010101 - 2**31),
    "floats": ("f4", lambda levels: levels / 255),
}


@pytest.mark.parametrize("kind", KINDS)
def test_gray_levels_of_any_depth_are_the_picture_that_they_were_made_from(tmp_path, gray, kind):
    name, numbers = KINDS[kind]
    expected = as_read(tmp_path / "gray.png", gray.astype(np.uint8))
    for file in ["numbers.tif"] + ["numbers.png"] * (name == "u2"):
        assert np.abs(as_read(tmp_path / file, numbers(gray).astype(name)) - expected).max() <= 1


def test_a_picture_of_one_level_is_read(tmp_path):
    assert (as_read(tmp_path / "one.tif", np.full((40, 40), 200, np.uint16)) == 0).all()


def test_a_picture_of_numbers_that_are_none_is_refused(tmp_path, gray):
    numbers = (gray / 255).astype("f4")
    for numbers[20, 20] in (np.nan, np.inf):
        with pytest.raises(UserError, match="odd.tif"):
            as_read(tmp_path / "odd.tif", numbers)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_damaged_pictures_are_read_or_refused_in_one_line(tmp_path, sample, kind):
    """With flipped bits, or cut off."""
    file, path = io.BytesIO(), tmp_path / "picture"
    Image.fromarray(sample.images[0].numpy()).resize((48, 40)).save(file, kind)
    sound, rng = file.getvalue(), random.Random(0)
    for edit in range(20):
        content, at = bytearray(sound), rng.randrange(len(sound))
        if edit % 2:
            content[at] ^= 1 << rng.randrange(8)
        else:
            del content[at:]
        path.write_bytes(content)
        try:
            assert read_image(path).shape == (32, 32, 3)
        except UserError as error:
            assert str(error).startswith(f"{path}: ") and str(error).isprintable()
