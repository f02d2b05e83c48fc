"""Read image files of any size and of the usual formats as small square images."""

import contextlib
import os
import stat
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from utils.files import UserError

# Formats of cameras and browsers (JPEG includes MPO). For EPS, Pillow would run Ghostscript.
FORMATS = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"]


def image_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files named by `paths`. A folder stands for all files below it, except hidden ones.

    The files of a folder come first, then its subfolders, both sorted by name; subfolders that are
    links are left out. A folder without files, and one that cannot be listed, are yielded
    themselves; `read_image` then raises an error that names them.
    """
    for path in paths:
        refused: list[OSError] = []
        empty = True
        for folder, below, names in os.walk(path, onerror=refused.append):
            below[:] = sorted(name for name in below if not name.startswith("."))
            for name in sorted(names):
                if not name.startswith("."):
                    empty = False
                    yield Path(folder, name)
        yield from [Path(error.filename) for error in refused] or ([path] if empty else [])


def read_image(path: Path, size: int = 32) -> np.ndarray:
    """Read an image file, crop the central square and resize it: uint8 (size, size, 3) RGB.

    The EXIF orientation is applied. Transparent pixels become white. Of gray levels with more than
    8 bits, the smallest becomes black and the largest white.

    Raises UserError, with a one-line message that names the file, if it cannot be read, is not an
    image, or has more than twice Image.MAX_IMAGE_PIXELS pixels.
    """
    try:
        if os.path.isdir(path):
            os.listdir(path)  # raises an error if this is not permitted
            raise UserError("a folder that has no images")
        if not stat.S_ISREG(os.stat(path).st_mode):  # reading a pipe would wait for its writer
            raise UserError("not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                return _shrink(image, size)
    except (UserError, Image.DecompressionBombError) as error:
        reason = str(error)
    except UnidentifiedImageError:
        reason = f"not an image that can be read: none of {', '.join(FORMATS)}, or damaged"
    except Exception as error:  # for damaged files, decoders raise many types of errors
        reason = (
            getattr(error, "strerror", None) or f"not an image that can be read: {error!r:.200}"
        )
    raise UserError(f"{one_line(path)}: {one_line(reason)}")


def _shrink(image: Image.Image, size: int) -> np.ndarray:
    """Decode to uint8 (size, size, 3)."""
    image.draft("RGB", (8 * size, 8 * size))  # decode a large JPEG at reduced size
    with contextlib.suppress(Exception):  # damaged EXIF data
        ImageOps.exif_transpose(image, in_place=True)
    if image.mode[0] in "IF":  # one channel of more than 8 bits
        levels = np.asarray(image).astype(np.float64)
        low, high = levels.min(), levels.max()
        if not np.isfinite([low, high]).all():
            raise UserError("some of its pixels are NaN or infinite")
        scale = 255 / ((high - low) or 1)
        image = Image.fromarray(((levels - low) * scale).round().astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
    elif image.mode in ("1", "P"):  # Pillow resizes these without interpolation
        image = image.convert("RGB")
    image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image.convert("RGB"))


def one_line(text: object) -> str:
    """`text` as one line without control characters; quoted and escaped if necessary."""
    text = str(text)
    return text if text.isprintable() else repr(text)
