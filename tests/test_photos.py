"""Images with all types of numbers, compared with image viewers; and files that take forever."""

import contextlib
import io
import struct
import time
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image

from evaluation import photos
from evaluation.photos import read_image
from utils.files import UserError

SHORT, LONG, RATIONAL = 3, 4, 5  # TIFF's types
UNSIGNED, SIGNED, FLOAT = 1, 2, 3  # TIFF's sample formats


def tiff(pixels, width, height, bits, *more, order="<"):
    """A gray TIFF with these pixel bytes and more tags (tag, type, count, value or bytes)."""
    tags = {
        tag: (tag, kind, 1, value)
        for tag, kind, value in (
            (256, LONG, width),
            (257, LONG, height),
            (258, SHORT, bits),
            (259, SHORT, 1),
            (262, SHORT, 1),
            (273, LONG, 0),
            (277, SHORT, 1),
            (278, LONG, height),
            (279, LONG, len(pixels)),
        )
    }
    tags.update((each[0], each) for each in more)
    behind = 8 + 2 + 12 * len(tags) + 4
    if tags[273][2] == 1:
        tags[273] = (273, LONG, 1, behind)
    head = struct.pack(f"{order}2sHIH", b"II" if order == "<" else b"MM", 42, 8, len(tags))
    for tag, kind, count, value in sorted(tags.values()):
        if isinstance(value, int):
            value = struct.pack(f"{order}{'H2x' if kind == SHORT else 'I'}", value)
        elif len(value) > 4:
            pixels, place = pixels + value, behind + len(pixels)
            value = struct.pack(f"{order}I", place)
        head += struct.pack(f"{order}HHI", tag, kind, count) + value
    return head + bytes(4) + pixels


def packed_12_bit(numbers):
    """Pack rows of 12-bit numbers, two in three bytes."""
    rows = ("".join(f"{number:012b}" for number in row) for row in numbers)
    return b"".join(int(row, 2).to_bytes(len(row) // 8, "big") for row in rows)


def chunk(name, content):
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))


@pytest.fixture(scope="module")
def gray(sample):
    """An 8-bit picture of 48x40 with every level from black to white: int64."""
    picture = Image.fromarray(sample.images[1].numpy()).resize((48, 40)).convert("L")
    levels = np.asarray(picture).astype(int)
    return (levels - levels.min()) * 255 // (levels.max() - levels.min())


def as_read(path, content):
    path.write_bytes(content)
    return read_image(path).astype(int)


def as_shown(tmp_path, gray):
    """The expected result for the 8-bit image."""
    file = io.BytesIO()
    Image.fromarray(gray.astype(np.uint8)).save(file, "PNG")
    return as_read(tmp_path / "gray.png", file.getvalue())


KINDS = {  # how numbers stand for levels from 0 to 255: NumPy's type, and the numbers
    "uint8": ("u1", lambda levels: levels),
    "int8": ("i1", lambda levels: levels - 128),
    "uint16": ("u2", lambda levels: levels * 257),
    "int16": ("i2", lambda levels: levels * 257 - 32768),
    "int16 from 0 on": ("i2", lambda levels: levels * 32767 // 255),
    "uint32": ("u4", lambda levels: levels * 0x01010101),
    "int32": ("i4", lambda levels: levels * 0x01010101 - 2**31),
    "int32 from 0 on": ("i4", lambda levels: levels * (2**31 - 1) // 255),
    "int32 of 16 bits": ("i4", lambda levels: levels * 257),
    "int32 of 8 bits": ("i4", lambda levels: levels),
    "float32 from 0 to 1": ("f4", lambda levels: levels / 255),
    "float32 of 8 bits": ("f4", lambda levels: levels),
    "float32 of its own range": ("f4", lambda levels: 3e30 * levels - 2e32),
}


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_of_any_kind_are_the_picture_that_they_were_made_from(
    tmp_path, gray, kind, order, deflated
):
    if (kind, order) == ("uint32", ">"):
        pytest.skip("Pillow refuses it")
    name, numbers = KINDS[kind]
    pixels = numbers(gray).astype(order + name).tobytes()
    content = tiff(
        zlib.compress(pixels) if deflated else pixels,
        48,
        40,
        8 * int(name[1]),
        (259, SHORT, 1, 8 if deflated else 1),
        (339, SHORT, 1, {"u": UNSIGNED, "i": SIGNED, "f": FLOAT}[name[0]]),
        order=order,
    )
    assert np.abs(as_read(tmp_path / "numbers.tif", content) - as_shown(tmp_path, gray)).max() <= 1


@pytest.mark.parametrize("name", ["u1", "u2", "f4"])
def test_where_0_is_white_the_picture_is_no_negative(tmp_path, gray, name):
    white = {"u1": 255, "u2": 65535, "f4": 1}[name]
    pixels = (white - gray * white / 255).round(6).astype(f"<{name}").tobytes()
    sample_format = (339, SHORT, 1, FLOAT if name == "f4" else UNSIGNED)
    content = tiff(pixels, 48, 40, 8 * int(name[1]), (262, SHORT, 1, 0), sample_format)
    assert np.abs(as_read(tmp_path / "white.tif", content) - as_shown(tmp_path, gray)).max() <= 1


def test_12_bit_numbers_are_the_picture_that_they_were_made_from(tmp_path, gray):
    content = tiff(packed_12_bit(gray << 4 | gray >> 4), 48, 40, 12)
    assert np.abs(as_read(tmp_path / "12.tif", content) - as_shown(tmp_path, gray)).max() <= 1


def test_gray_with_premultiplied_alpha_is_read(tmp_path, gray):
    pixels = np.stack([gray, np.full_like(gray, 255)], axis=2).astype(np.uint8).tobytes()
    content = tiff(
        pixels, 48, 40, 8, (258, SHORT, 2, b"\x08\0\x08\0"), (277, SHORT, 1, 2), (338, SHORT, 1, 1)
    )
    assert np.abs(as_read(tmp_path / "La.tif", content) - as_shown(tmp_path, gray)).max() <= 1


def test_the_clear_number_of_a_16_bit_png_is_put_on_white(tmp_path):
    numbers = np.full((40, 40), 7, np.uint16)
    numbers[:, 20:] = 50 * 257
    file = io.BytesIO()
    Image.fromarray(numbers).save(file, "PNG")
    head, rest = file.getvalue()[:33], file.getvalue()[33:]
    image = as_read(tmp_path / "clear.png", head + chunk(b"tRNS", struct.pack(">H", 7)) + rest)
    assert (image[:, :14] == 255).all() and (image[:, 18:] == 50).all()


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_a_picture_of_numbers_that_are_none_is_refused(tmp_path, gray, number):
    numbers = (gray / 255).astype("<f4")
    numbers[20, 20] = number
    content = tiff(numbers.tobytes(), 48, 40, 32, (339, SHORT, 1, FLOAT))
    with pytest.raises(UserError, match="odd.tif: not read: some of its pixels are NaN or inf"):
        as_read(tmp_path / "odd.tif", content)


# ------------------------------------------------------------------ files made to take for ever


def jpeg(side, **options):
    file = io.BytesIO()
    Image.new("L", (side, side), 7).save(file, "JPEG", **options)
    return file.getvalue()


def before_the_pixels(content):
    start = content.index(b"\xff\xda")
    return content[: start + 2 + int.from_bytes(content[start + 2 : start + 4], "big")]


def png(side):
    size = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size)


def last_scan(content):
    return content[content.rindex(b"\xff\xda") : -2]


RLE = struct.pack(
    "<2sIHHIIiiHHIIiiII", b"BM", 0, 0, 0, 1078, 40, 2000, 2000, 1, 8, 1, 0, 0, 0, 256, 0
) + bytes(1024)
PROGRESSIVE = jpeg(2000, progressive=True)
GIF = b"GIF89a\x08\0\x08\0\xf0\0\0" + bytes(6)
SLOW = {
    "a JPEG's head before fill bytes": before_the_pixels(jpeg(64)) + b"\xff" * (24 << 20),
    "a JPEG without a head": b"\xff\xd8" + b"\xff" * (4 << 20),
    "a JPEG of 40,000 scans": PROGRESSIVE[:-2] + 40_000 * last_scan(PROGRESSIVE),
    "a PNG of empty chunks": png(8) + chunk(b"abCd", b"") * 400_000,
    "a PNG of empty chunks behind its pixels": png(8)
    + chunk(b"IDAT", zlib.compress(bytes(72)))
    + chunk(b"abCd", b"") * 400_000,
    "a GIF of nothing known": GIF + b"\1" * (4 << 20),
    "a BMP that moves on by nothing": RLE + b"\0\2\0\0" * 1_000_000,
}


@pytest.mark.parametrize("kind", SLOW)
def test_a_file_made_to_be_slow_is_given_up(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(photos, "SECONDS", 0.1)
    monkeypatch.setattr(photos, "SECONDS_A_PIXEL", 1e-9)
    (tmp_path / "slow").write_bytes(SLOW[kind])
    started = time.thread_time()
    with pytest.raises(UserError, match="slow: not read: decoding takes more than"):
        read_image(tmp_path / "slow")
    assert time.thread_time() - started < 2


def test_the_strips_that_a_tiff_states_take_no_memory(tmp_path):
    strips = bytes(4 << 20)
    content = tiff(bytes(64), 8, 8, 8, (273, LONG, 1 << 20, strips), (278, LONG, 1, 1))
    (tmp_path / "strips.tif").write_bytes(content)
    tracemalloc.start()
    try:
        with contextlib.suppress(UserError):
            read_image(tmp_path / "strips.tif")
        assert tracemalloc.get_traced_memory()[1] < 40e6  # 250 bytes each would be 260e6
    finally:
        tracemalloc.stop()


def test_a_head_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "MAX_HEAD", 1 << 20)
    content = tiff(bytes(64), 8, 8, 8, (282, RATIONAL, 1 << 17, bytes(1 << 20)))
    with pytest.raises(UserError, match="head.tif: not read: more than 1 MiB before its pixels"):
        as_read(tmp_path / "head.tif", content)
