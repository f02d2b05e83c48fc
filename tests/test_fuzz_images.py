"""Thousands of damaged images; FUZZ=50000 in the environment sets another number."""

import io
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.photos import read_image
from utils.files import UserError

ROOT = Path(__file__).resolve().parent.parent
FILES = int(os.environ.get("FUZZ", 2000))
SECONDS = 60  # for one file, before it counts as a hang
NUMBERS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 9000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


class Hang(BaseException):
    """Not a subclass of Exception, which read_image would treat as a decoder error."""


def corpus(sample):
    """Valid images as (format, bytes), of every kind with separate code in a decoder."""
    color = Image.fromarray(sample.images[0].numpy()).resize((48, 40))
    other = Image.fromarray(sample.images[1].numpy()).resize((48, 40))
    clear = color.copy()
    clear.putalpha(other.convert("L"))
    palette, gray, bits = color.quantize(16), color.convert("L"), color.convert("1")
    deep = Image.fromarray(np.asarray(gray).astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a picture"
    frames = {"save_all": True, "append_images": [other]}
    kinds = {
        "PNG": [
            (color, {"exif": exif}),
            (palette, {"transparency": 3}),
            (clear, {}),
            (deep, {}),
            (bits, {"icc_profile": b"icc" * 50}),
            (color, {"transparency": (0, 0, 0)}),
            (color, frames),
        ],
        "JPEG": [
            (color, {"exif": exif}),
            (color, {"progressive": True, "icc_profile": b"icc" * 50}),
            (gray, {}),
            (color.convert("CMYK"), {}),
            (color, {"restart_marker_rows": 1}),
        ],
        "MPO": [(color, frames)],
        "WEBP": [
            (color, {"exif": exif}),
            (clear, {}),
            (color, {"lossless": True}),
            (color, frames),
        ],
        "GIF": [(palette, {}), (palette, {"transparency": 3}), (color, frames)],
        "BMP": [(color, {}), (palette, {}), (bits, {}), (clear, {})],
        "TIFF": [
            (color, {"exif": exif}),
            (color, {"compression": "tiff_lzw"}),
            (deep, {}),
            (clear, {"compression": "tiff_adobe_deflate"}),
            (color, {"compression": "jpeg"}),
            (palette, {"compression": "packbits"}),
            (bits, {"compression": "group4"}),
            (gray.convert("F"), {}),
            (color, {"big_tiff": True}),
        ],
    }
    for kind, pictures in kinds.items():
        for picture, options in pictures:
            file = io.BytesIO()
            picture.save(file, kind, **options)
            yield kind, file.getvalue()


def mutate(rng, content, others):
    """`content` after one to three random edits."""
    data = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(data) + 1)
        length = rng.randint(1, 64)
        edit = rng.randrange(8)
        if edit == 0:
            for _ in range(rng.randint(1, 20)):
                if data:
                    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        elif edit == 1:
            del data[at:]
        elif edit == 2:
            donor = rng.choice(others)
            data[at:] = donor[rng.randrange(len(donor)) :]
        elif edit in (3, 4):  # a field of the header, or anywhere: a length, a size, an offset
            layout = rng.choice((">I", "<I", ">H", "<H", "B"))
            size = struct.calcsize(layout)
            field = rng.randrange(64) if edit == 3 else at
            number = rng.choice(NUMBERS) & (256**size - 1)
            data[field : field + size] = struct.pack(layout, number)
        elif edit == 5:
            data[at:at] = data[at : at + length] * rng.randint(1, 50)
        elif edit == 6:
            data[at:at] = rng.randbytes(length)
        else:
            del data[at : at + length]
    return with_checksums(data) if data.startswith(b"\x89PNG") and rng.random() < 0.7 else data


def with_checksums(data):
    """The PNG with corrected checksums, so that the decoder does not stop there."""
    at = 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return data


def mutated(sample, count):
    """`count` damaged images as (format, bytes), the same in every run."""
    sound = list(corpus(sample))
    by_kind = {kind: [content for k, content in sound if k == kind] for kind, _ in sound}
    rng = random.Random(0)
    for k in range(count):
        kind = list(by_kind)[k % len(by_kind)]
        others = by_kind[kind] if rng.random() < 0.8 else [content for _, content in sound]
        yield kind, bytes(mutate(rng, rng.choice(by_kind[kind]), others))


def test_broken_pictures_are_read_or_refused_in_one_line(tmp_path, sample, capfd, record_property):
    def alarm(*_):
        raise Hang

    path = tmp_path / "picture"
    counts = {"mutated": Counter(), "read": Counter(), "refused": Counter()}
    before = signal.signal(signal.SIGALRM, alarm)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        for kind, content in mutated(sample, FILES):
            path.write_bytes(content)
            counts["mutated"][kind] += 1
            signal.alarm(SECONDS)
            try:
                image = read_image(path)
                counts["read"][kind] += 1
                assert image.shape == (32, 32, 3) and image.dtype == np.uint8
            except UserError as error:
                counts["refused"][kind] += 1
                assert str(error).startswith(f"{path}: ") and str(error).isprintable()
            finally:
                signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, before)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024
    out, err = capfd.readouterr()
    assert out == err == ""
    for kind in counts["mutated"]:
        told = ", ".join(f"{count[kind]:,} {name}" for name, count in counts.items())
        record_property("counted", f"{kind}: {told}")
    told = ", ".join(f"{count.total():,} {name}" for name, count in counts.items())
    record_property("counted", f"pictures: {told}; peak memory grew by {grown:.0f} MiB")
    assert counts["mutated"].total() == FILES and counts["read"].total() > FILES / 20
    assert grown < 16 * Image.MAX_IMAGE_PIXELS / 2**20 + 200


def test_every_sound_picture_among_broken_ones_is_answered(tmp_path, sample):
    """The script itself, on a terminal that only supports ASCII."""
    for k, (_, content) in enumerate(mutated(sample, 200)):
        (tmp_path / f"broken{k:03}").write_bytes(content)
    for k, (kind, content) in enumerate(corpus(sample)):
        (tmp_path / f"sound{k:02} \N{CAT}.{kind}").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "inference.py", str(tmp_path), "--device", "cpu"],
        cwd=ROOT,
        capture_output=True,
        timeout=280,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    out, err = done.stdout.decode("ascii").splitlines(), done.stderr.decode("ascii").splitlines()
    assert done.returncode == 2
    assert all(line.startswith("inference.py: ") for line in err)
    assert sum(": error: " in line for line in err) + len(out) - 1 == len(list(tmp_path.iterdir()))
    for k, (kind, _) in enumerate(corpus(sample)):
        assert sum(line.endswith(rf"sound{k:02} \U0001f408.{kind}") for line in out) == 1
