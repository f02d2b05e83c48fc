"""Reading of .pth, .npz and .npy files: no code is run, and each error is one line.

PyTorch and NumPy decide what a file may contain: `torch.load(weights_only=True)` and
`numpy.load(allow_pickle=False)`. A file may request much memory; trust files of strangers only so
far.
"""

import contextlib
import os
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.files import UserError

MAX_BYTES = 2**32  # of a file: 1.4 million images; this project's largest has 190 MB


def brief(value: Any) -> str:
    """The repr of `value`, shortened to one line of at most 100 characters."""
    return " ".join(repr(value).split())[:100]


def read_dict(path: str | Path) -> dict[str, Any]:
    """Read a dictionary that `torch.save` wrote, with tensors on the CPU.

    Raises UserError, with a one-line message, if the file is missing, damaged or larger than
    MAX_BYTES, contains code, or is not a dictionary.
    """
    with _one_line(path, "is damaged or not a PyTorch checkpoint"):
        # PyTorch does not compare the checksums of its archives.
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if entry := archive.testzip():
                    raise ValueError(f"{entry} has another checksum")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError("it does not contain a dictionary")
    return content


def read_arrays(path: str | Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read those of the named arrays that are in the .npz file at `path`.

    Raises UserError, with a one-line message, if the file is missing, damaged, larger than
    MAX_BYTES or not written by NumPy.
    """
    with (
        _one_line(path, "is damaged or not an .npz file"),
        np.load(path, allow_pickle=False) as file,
    ):
        return {name: file[name] for name in names if name in file.files}


def read_array(path: str | Path) -> np.ndarray:
    """Read a .npy file. Raises UserError as `read_arrays` does."""
    with _one_line(path, "is damaged or not a .npy file"):
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it has several arrays")
        return array


def read_logits(
    path: str | Path,
    shapes: Mapping[str, tuple[int | str, ...]],
    classes: int | None = None,
) -> dict[str, torch.Tensor]:
    """Read stored logits, and the labels of their images if "labels" is in `shapes`.

    Args:
        path: an .npz file.
        shapes: the shape of each array. A letter stands for a size of at least 2, the same
            wherever this letter occurs.
        classes: the number of classes, for the range of the labels.

    Returns:
        float32 logits and int64 labels.

    Raises:
        UserError: as `read_arrays`; or an array is missing or has another shape; or logits are not
            finite floating-point numbers; or labels are not whole numbers from 0 to `classes` - 1.
    """
    arrays = read_arrays(path, shapes)
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if name not in arrays:
            raise UserError(f"{path} has no array {name}")
        array = arrays[name]
        wanted = [
            sizes.setdefault(size, max(2, found)) if isinstance(size, str) else size
            for size, found in zip(shape, array.shape, strict=False)
        ]
        if list(array.shape) != wanted or len(shape) != array.ndim:
            said = ", ".join(str(sizes.get(size, size)) for size in shape)
            raise UserError(f"{path}: its {name} has shape {array.shape}, expected ({said})")
        if name == "labels":
            if array.dtype.kind not in "iu" or array.min() < 0 or array.max() >= classes:
                raise UserError(f"{path}: its labels are not whole numbers from 0 to {classes - 1}")
        elif array.dtype.kind != "f" or not np.isfinite(array).all():
            raise UserError(f"{path}: its {name} has numbers that are not finite, or not real")
        kind = np.int64 if name == "labels" else np.float32
        arrays[name] = torch.from_numpy(array.astype(kind))
    return arrays


@contextlib.contextmanager
def _one_line(path: str | Path, damaged: str) -> Iterator[None]:
    """Refuse what is not a regular file. Convert errors in the block to a one-line UserError."""
    try:
        size = os.stat(path).st_size
        if not os.path.isfile(path):  # reading a pipe would wait for its writer
            raise UserError(f"{path} is a folder, device or pipe, not a file")
        if size > MAX_BYTES:
            raise UserError(f"{path} has {size:,} bytes, more than {MAX_BYTES:,}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or brief(str(error))}") from error
    except pickle.UnpicklingError as error:  # PyTorch's message advises to run the code
        raise UserError(f"{path} {damaged}, or it contains code, which is not run") from error
    # zipfile, NumPy and PyTorch raise many types of errors for a damaged file.
    except Exception as error:
        raise UserError(f"{path} {damaged}: {type(error).__name__}, {brief(str(error))}") from error
