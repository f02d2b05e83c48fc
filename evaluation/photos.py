"""Pictures of any size and kind, from files of strangers, as the networks want them."""

import contextlib
import io
import logging
import math
import os
import stat
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from utils.files import UserError

SIZE = 32  # pixels, the side of a CIFAR-10 image
# What cameras and browsers write, MPO among the JPEGs. Pillow would also start Ghostscript for EPS.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
MAX_BYTES = 1 << 28  # of a file
MAX_HEAD = 1 << 27  # bytes read before the pixels, a TIFF's twice: up to 10 of memory for each
SECONDS = 2  # of one processor, for the head of a file, and again for its pixels
SECONDS_A_PIXEL = 2e-7  # on top of that: ten times what large photos take

logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what matters is in the errors it raises
# Pillow's own reader of uncompressed TIFFs makes objects of 250 bytes for each strip that is named.
TiffImagePlugin.READ_LIBTIFF = True
# libtiff returns numbers in this machine's byte order. Pillow expects that of unsigned 16-bit ones
# only, and the file's order of all others.
NATIVE = {
    "I;16S": "I;16NS",
    "I;16BS": "I;16NS",
    "I;32S": "I;32NS",
    "I;32BS": "I;32NS",
    "F;32F": "F;32NF",
    "F;32BF": "F;32NF",
}
SAMPLE_FORMAT, PHOTOMETRIC, BITS = 339, 262, 258  # tags of TIFF
SIGNED, WHITE_IS_ZERO = 2, 0  # values of the first two


def image_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files that `paths` name: a folder stands for all files below it but hidden ones.

    A folder's own files come first, then its folders, both by name; links to folders are not
    followed. One folder's names are in memory at a time. A folder that has no files, or that cannot
    be listed, is yielded itself, for `read_image` to refuse.
    """
    for path in paths:
        if os.path.isdir(path):
            yield from _below(path)
        else:
            yield path


def _below(top: Path) -> Iterator[Path]:
    closed: list[str] = []
    empty = True
    for folder, below, names in os.walk(top, onerror=lambda error: closed.append(error.filename)):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                empty = False
                yield Path(folder, name)
    yield from map(Path, closed or ([top] if empty else []))


def read_image(path: Path) -> np.ndarray:
    """The middle square of a picture, 32x32, as uint8 (32, 32, 3) RGB.

    Turned as its EXIF data say; transparency is put on white. Gray levels of more than 8 bits are
    scaled as `to_8_bits` says. At most Image.MAX_IMAGE_PIXELS pixels are decoded, in 16 bytes each
    (WebP) or fewer, and in the time that SECONDS and SECONDS_A_PIXEL leave.

    Raises UserError, one line that names the file, where it cannot be read or is no image.
    """
    try:
        _check_file(path)
        # Opened here, as Pillow maps a file that it is given by name into memory: one cut short
        # meanwhile would end the process.
        with _File(path) as file:
            return _decode(file)
    except UserError as error:
        reason = str(error)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    raise UserError(f"{one_line(path)}: {one_line(reason)}")


def to_8_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Numbers of any type as gray levels: uint8 of the same shape, 0 for black, 255 for white.

    Args:
        values: floats, of which 0 is black and 1 white where none lies outside, else the smallest
            and the largest; or integers, whose type's smallest and largest are black and white.
            Where none is negative, 0 is black.
        bits: of each integer, where they are fewer than the type's. Programs store levels of 8 and
            16 bits in 32, too: where these hold all of them, their largest is white.

    Raises UserError where a float is NaN or infinite.
    """
    low, high = values.min().item(), values.max().item()
    signed = values.dtype.kind == "i"
    if values.dtype.kind == "f":
        if not (math.isfinite(low) and math.isfinite(high)):
            raise UserError("not read: some of its pixels are NaN or infinite")
        black, white = (0, 1) if low >= 0 and high <= 1 else (low, high)
    elif low < 0:
        black, white = -(1 << bits - 1), (1 << bits - 1) - 1
    else:
        widths = (8, 16, bits - signed) if bits == 32 else (bits - signed,)
        black, white = 0, next(top for width in widths if high <= (top := (1 << width) - 1))
    scale = 255 / (white - black) if white > black else 0
    levels, numbers = np.empty(values.size, np.uint8), values.reshape(-1)
    for start in range(0, len(numbers), 1 << 20):  # few in float64 at once
        block = slice(start, start + (1 << 20))
        levels[block] = (numbers[block].astype(np.float64) - black) * scale + 0.5
    return levels.reshape(values.shape)


def one_line(text: object) -> str:
    """`text` as a line that does nothing to a terminal: quoted and escaped where it has to be."""
    text = str(text)
    return text if text.isprintable() else repr(text)


def _check_file(path: Path) -> None:
    status = os.stat(path)
    if stat.S_ISDIR(status.st_mode):
        try:
            os.scandir(os.fspath(path)).close()
        except OSError as error:
            raise UserError("a folder that cannot be listed") from error
        raise UserError("no images in this folder")
    if not stat.S_ISREG(status.st_mode):
        raise UserError("not a regular file")
    if status.st_size == 0:  # so are those of /proc, of which some never end
        raise UserError("not an image: the file is empty")
    if status.st_size > MAX_BYTES:
        raise UserError(f"not read: more than {MAX_BYTES >> 20} MiB")


class _File(io.BufferedReader):
    """A file that can be read for some seconds: one of 1 MB can be made to take hours.

    The seconds are those that this thread computes, so that a busy machine changes nothing.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.allow(SECONDS, MAX_HEAD)

    def allow(self, seconds: float, size: float) -> None:
        """Let it be read for `seconds` from now on, and `size` bytes of it."""
        self._seconds, self._end = seconds, time.thread_time() + seconds
        self._left = size

    def read(self, size: int | None = -1) -> bytes:
        """As of any file. Raises UserError when the seconds or the bytes are used up."""
        if time.thread_time() > self._end:
            raise UserError(f"not read: decoding takes more than {self._seconds:.0f} s")
        content = super().read(size)
        self._left -= len(content)
        if self._left < 0:
            raise UserError(f"not read: more than {MAX_HEAD >> 20} MiB before its pixels")
        return content


def _decode(file: _File) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as image:
                pixels = image.width * image.height
                if pixels > Image.MAX_IMAGE_PIXELS:
                    raise Image.DecompressionBombError(
                        f"{image.width} x {image.height} pixels, more than "
                        f"{Image.MAX_IMAGE_PIXELS:,}"
                    )
                file.allow(SECONDS + SECONDS_A_PIXEL * pixels, math.inf)
                return _shrink(image)
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UserError(f"too large an image: {error}") from error
    except UnidentifiedImageError as error:
        file.seek(0)
        start = file.read(16)
        for name in FORMATS:
            if Image.OPEN[name][1](start):
                reason = f"not an image that can be read: a damaged {name}, or one of a rare kind"
                raise UserError(reason) from error
        raise UserError(f"not an image: none of {', '.join(FORMATS)}") from error
    except Exception as error:  # on broken files the decoders raise whatever comes to hand
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"not an image that can be read ({reason:.200})") from error


def _shrink(image: Image.Image) -> np.ndarray:
    """The image as uint8 (SIZE, SIZE, 3), with few copies of it at full size."""
    image.draft("RGB", (8 * SIZE, 8 * SIZE))  # a large JPEG is decoded at reduced size
    # The clock is looked at before each block. One of 4 KiB holds up to 300 scans of a JPEG.
    image.decodermaxblock = 4096
    tags = getattr(image, "tag_v2", {})  # TIFF's
    if image.format == "TIFF":
        image.tile = [
            tile._replace(args=(NATIVE.get(tile.args[0], tile.args[0]), *tile.args[1:]))
            for tile in image.tile
        ]
    with _silent() if image.format == "TIFF" else contextlib.nullcontext():
        image.load()
    with contextlib.suppress(Exception):  # damaged EXIF data leave the picture as it lies
        ImageOps.exif_transpose(image, in_place=True)
    signed = SIGNED in tags.get(SAMPLE_FORMAT, ())
    if image.mode[0] in "IF" or (signed and image.mode == "L"):
        image = _gray(image, tags.get(BITS, (16,))[0], signed, tags.get(PHOTOMETRIC))
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data and image.mode != "RGBA":
        image = image.convert("RGBA")
    elif image.mode in ("1", "P"):  # which are resized without interpolation
        image = image.convert("RGB")
    image = ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.BICUBIC)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _gray(image: Image.Image, bits: int, signed: bool, photometric: int | None) -> Image.Image:
    """A picture of one number a pixel, of more than 8 bits or signed, as gray levels of 8 bits."""
    values = np.asarray(image)
    if values.dtype.kind != "f":
        kind = np.dtype(f"{'i' if signed else 'u'}{values.itemsize}")
        values = values.view(kind.newbyteorder(values.dtype.byteorder))
    levels = to_8_bits(values, bits)
    gray = Image.fromarray(~levels if photometric == WHITE_IS_ZERO else levels)
    if (clear := image.info.get("transparency")) is not None:  # one of the numbers, in a PNG
        gray.putalpha(Image.fromarray((values != clear) * np.uint8(255)))
    return gray


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep off stderr what libtiff itself writes there."""
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
