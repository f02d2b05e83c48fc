"""Read image files of any size and format, also from untrusted sources, as 32x32 images."""

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
# Usual formats of cameras and browsers (JPEG includes MPO). For EPS, Pillow would run Ghostscript.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
MAX_BYTES = 1 << 28  # maximum file size
MAX_HEAD = 1 << 27  # bytes read before the pixels (TIFF: twice); each may take 10 bytes of memory
SECONDS = 2  # CPU time for the head of a file, and again for its pixels
SECONDS_A_PIXEL = 2e-7  # additional CPU time per pixel: ten times what large photos need

logging.getLogger("PIL").setLevel(logging.CRITICAL)  # its errors contain what matters
# Pillow's own reader for uncompressed TIFF files creates an object of 250 bytes per strip.
TiffImagePlugin.READ_LIBTIFF = True
# libtiff returns numbers in the byte order of this machine. Pillow assumes this for unsigned 16-bit
# numbers only, and the byte order of the file for all others.
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
    """Yield the files named by `paths`. A folder stands for all files below it, except hidden ones.

    The files of a folder come first, then its subfolders, both sorted by name. Links to folders are
    not followed. Only the names of one folder are in memory at a time. A folder without files, or
    that cannot be listed, is yielded itself; `read_image` then raises an error for it.
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
    """Read an image file, crop the central square and resize it: uint8 (32, 32, 3) RGB.

    The EXIF orientation is applied. Transparent pixels become white. Gray levels with more than 8
    bits are scaled, see `to_8_bits`. At most Image.MAX_IMAGE_PIXELS pixels are decoded, with at
    most 16 bytes of memory each (WebP), within the time limit of SECONDS and SECONDS_A_PIXEL.

    Raises UserError, with a one-line message that names the file, if it cannot be read or is not an
    image.
    """
    try:
        _check_file(path)
        # Opened here, because Pillow maps files opened by name into memory: if such a file is
        # truncated in the meantime, the process crashes.
        with _File(path) as file:
            return _decode(file)
    except UserError as error:
        reason = str(error)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    raise UserError(f"{one_line(path)}: {one_line(reason)}")


def to_8_bits(values: np.ndarray, bits: int) -> np.ndarray:
    """Convert numbers to gray levels: uint8 of the same shape, 0 for black, 255 for white.

    Args:
        values: floats or integers. For floats, black and white are 0 and 1 if all values are in
            [0, 1], else the minimum and maximum value. For integers, they are the minimum and
            maximum of `bits` bits; if no value is negative, black is 0.
        bits: number of bits of each integer. Some programs store levels of 8 or 16 bits in 32 bits:
            if all values fit into 8 or 16 bits, that maximum is white.

    Raises UserError if a float is NaN or infinite.
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
    for start in range(0, len(numbers), 1 << 20):  # blocks, as float64 needs much memory
        block = slice(start, start + (1 << 20))
        levels[block] = (numbers[block].astype(np.float64) - black) * scale + 0.5
    return levels.reshape(values.shape)


def one_line(text: object) -> str:
    """`text` as one line without control characters; quoted and escaped if necessary."""
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
    if status.st_size == 0:  # also files of /proc, which may never end
        raise UserError("not an image: the file is empty")
    if status.st_size > MAX_BYTES:
        raise UserError(f"not read: more than {MAX_BYTES >> 20} MiB")


class _File(io.BufferedReader):
    """A file that can be read for a limited time: a malicious file of 1 MB may take hours.

    The limit is for the CPU time of this thread, so it does not depend on the load of the machine.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self.allow(SECONDS, MAX_HEAD)

    def allow(self, seconds: float, size: float) -> None:
        """Allow reading for `seconds` from now on, and at most `size` bytes."""
        self._seconds, self._end = seconds, time.thread_time() + seconds
        self._left = size

    def read(self, size: int | None = -1) -> bytes:
        """Read as usual. Raises UserError if the limit of seconds or bytes is exceeded."""
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
    except Exception as error:  # for damaged files, decoders raise many types of errors
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"not an image that can be read ({reason:.200})") from error


def _shrink(image: Image.Image) -> np.ndarray:
    """Decode to uint8 (SIZE, SIZE, 3), with few copies at full size."""
    image.draft("RGB", (8 * SIZE, 8 * SIZE))  # decode a large JPEG at reduced size
    # The time is checked before each block. A block of 4 KiB has up to 300 scans of a JPEG.
    image.decodermaxblock = 4096
    tags = getattr(image, "tag_v2", {})  # of a TIFF
    if image.format == "TIFF":
        image.tile = [
            tile._replace(args=(NATIVE.get(tile.args[0], tile.args[0]), *tile.args[1:]))
            for tile in image.tile
        ]
    with _silent() if image.format == "TIFF" else contextlib.nullcontext():
        image.load()
    with contextlib.suppress(Exception):  # ignore damaged EXIF data
        ImageOps.exif_transpose(image, in_place=True)
    signed = SIGNED in tags.get(SAMPLE_FORMAT, ())
    if image.mode[0] in "IF" or (signed and image.mode == "L"):
        image = _gray(image, tags.get(BITS, (16,))[0], signed, tags.get(PHOTOMETRIC))
    if image.mode == "La":
        image = image.convert("LA")
    if image.has_transparency_data and image.mode != "RGBA":
        image = image.convert("RGBA")
    elif image.mode in ("1", "P"):  # Pillow resizes these without interpolation
        image = image.convert("RGB")
    image = ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.BICUBIC)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def _gray(image: Image.Image, bits: int, signed: bool, photometric: int | None) -> Image.Image:
    """Convert a single-channel image with more than 8 bits, or signed, to 8-bit gray levels."""
    values = np.asarray(image)
    if values.dtype.kind != "f":
        kind = np.dtype(f"{'i' if signed else 'u'}{values.itemsize}")
        values = values.view(kind.newbyteorder(values.dtype.byteorder))
    levels = to_8_bits(values, bits)
    gray = Image.fromarray(~levels if photometric == WHITE_IS_ZERO else levels)
    if (clear := image.info.get("transparency")) is not None:  # PNG: the transparent gray level
        gray.putalpha(Image.fromarray((values != clear) * np.uint8(255)))
    return gray


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Suppress what libtiff writes to stderr."""
    stderr, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(null)
