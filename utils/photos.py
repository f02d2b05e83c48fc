"""Pictures of any size and kind, from files of strangers, as the networks want them."""

import contextlib
import logging
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.files import UserError

SIZE = 32  # pixels, the side of a CIFAR-10 image
# What cameras and browsers write, MPO among the JPEGs. Pillow would also start Ghostscript for EPS.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]
MAX_BYTES = 1 << 28  # of a file: junk without end is searched at some 10 MB/s

logging.getLogger("PIL").setLevel(logging.CRITICAL)  # what matters is in the errors it raises


def image_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files that `paths` name: a folder stands for all files below it but hidden ones.

    A folder's own files come first, then its folders, both by name; links to folders are not
    followed. One folder's names are in memory at a time. A folder that cannot be listed is yielded
    itself, for `read_image` to refuse.
    """
    for path in paths:
        if os.path.isdir(path):
            yield from _below(path)
        else:
            yield path


def _below(top: Path) -> Iterator[Path]:
    closed: list[str] = []
    for folder, below, names in os.walk(top, onerror=lambda error: closed.append(error.filename)):
        below[:] = sorted(name for name in below if not name.startswith("."))
        yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))
    yield from map(Path, closed)


def read_image(path: Path) -> np.ndarray:
    """The middle square of a picture, 32x32, as uint8 (32, 32, 3) RGB.

    Turned as its EXIF data say; transparency is put on white; 16-bit grays keep their eight high
    bits. At most Image.MAX_IMAGE_PIXELS pixels are decoded, in 16 bytes each (WebP) or fewer.

    Raises UserError, one line that names the file, where it cannot be read or is no image.
    """
    try:
        _check_file(os.stat(path))
        # Opened here, as Pillow maps a file that it is given by name into memory: one cut short
        # meanwhile would end the process.
        with open(path, "rb") as file:
            return _decode(file)
    except UserError as error:
        reason = str(error)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
    raise UserError(f"{one_line(path)}: {one_line(reason)}")


def one_line(text: object) -> str:
    """`text` as a line that does nothing to a terminal: quoted and escaped where it has to be."""
    text = str(text)
    return text if text.isprintable() else repr(text)


def _check_file(status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise UserError("a folder that cannot be listed")
    if not stat.S_ISREG(status.st_mode):
        raise UserError("not a regular file")
    if status.st_size == 0:  # so are those of /proc, of which some never end
        raise UserError("not an image: the file is empty")
    if status.st_size > MAX_BYTES:
        raise UserError(f"not read: more than {MAX_BYTES >> 20} MiB")


def _decode(file: BinaryIO) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(file, formats=FORMATS) as image:
                return _shrink(image)
    except Image.DecompressionBombError as error:
        raise UserError(f"too large an image: {error}") from error
    except UnidentifiedImageError as error:
        raise UserError(f"not an image: none of {', '.join(FORMATS)}") from error
    except Exception as error:  # on broken files the decoders raise whatever comes to hand
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"not an image that can be read ({reason:.200})") from error


def _shrink(image: Image.Image) -> np.ndarray:
    """The image as uint8 (SIZE, SIZE, 3), with few copies of it at full size."""
    if image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise Image.DecompressionBombError(
            f"{image.width} x {image.height} pixels, more than {Image.MAX_IMAGE_PIXELS:,}"
        )
    image.draft("RGB", (8 * SIZE, 8 * SIZE))  # a large JPEG is decoded at reduced size
    with _silent() if image.format == "TIFF" else contextlib.nullcontext():
        image.load()
    with contextlib.suppress(Exception):  # damaged EXIF data leave the picture as it lies
        ImageOps.exif_transpose(image, in_place=True)
    deep = image.mode[0] in "IF"  # 16 or 32 bits
    if not deep and image.has_transparency_data and image.mode != "RGBA":
        image = image.convert("RGBA")
    elif image.mode in ("1", "P"):  # which are resized without interpolation
        image = image.convert("RGB")
    image = ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.BICUBIC)
    if deep:
        values = np.asarray(image, dtype=np.float64) / 256
        image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


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
