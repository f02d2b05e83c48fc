"""Pictures of any size and kind, from files, as the networks want them."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from utils.files import UserError

SIZE = 32  # pixels, the side of a CIFAR-10 image


def image_files(paths: Iterable[Path]) -> Iterator[Path]:
    """The files that `paths` name: a folder stands for all files below it but hidden ones."""
    for path in paths:
        if path.is_dir():
            for below in sorted(path.rglob("*")):
                hidden = any(part.startswith(".") for part in below.relative_to(path).parts)
                if below.is_file() and not hidden:
                    yield below
        else:
            yield path


def read_image(path: Path) -> np.ndarray:
    """The middle square of a picture, 32x32, as uint8 (32, 32, 3) RGB.

    Turned as its EXIF data say; transparency is put on white; 16-bit grays keep their eight high
    bits. Raises UserError, naming the file, where it is missing or no image.
    """
    if not path.is_file():
        raise UserError(f"{path}: {'not a regular file' if path.exists() else 'no such file'}")
    try:
        with Image.open(path) as image:
            image.draft("RGB", (8 * SIZE, 8 * SIZE))  # a large JPEG is decoded at reduced size
            return np.asarray(ImageOps.fit(_rgb(image), (SIZE, SIZE), Image.Resampling.BICUBIC))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: not an image that can be read ({error})") from error


def _rgb(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":
        values = np.asarray(image, dtype=np.float64)
        image = Image.fromarray((values / 256).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")
