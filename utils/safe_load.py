"""Reading of .pth, .npz and .npy files: no code is run, and each error is one line.

All functions raise UserError if the file is missing, damaged, larger than MAX_BYTES, or of another
kind. PyTorch and NumPy decide what a file may contain: `torch.load(weights_only=True)` and
`numpy.load(allow_pickle=False)`. A file may request much memory; trust files of strangers only so
far.
"""

import contextlib
import os
import pickle
import stat
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
    """Read a dictionary that `torch.save` wrote, with tensors on the CPU."""
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
    """Read those of the named arrays that are in the .npz file at `path`."""
    with (
        _one_line(path, "is damaged or not an .npz file"),
        np.load(path, allow_pickle=False) as file,
    ):
        return {name: file[name] for name in names if name in file.files}


def read_array(path: str | Path) -> np.ndarray:
    """Read a .npy file."""
    with _one_line(path, "is damaged or not a .npy file"):
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it has several arrays")
        return array


def read_logits(path: str | Path, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Read the arrays that are the keys of `shapes` from the .npz file at `path`, as float32.

    Raises UserError also if one is missing, or not of finite floating-point numbers in its shape.
    """
    arrays = read_arrays(path, shapes)
    for name, shape in shapes.items():
        array = arrays.get(name)
        if array is None or array.shape != shape or array.dtype.kind != "f":
            raise UserError(f"{path} has no {name} of shape {shape}")
        if not np.isfinite(array).all():
            raise UserError(f"{path}: its {name} has numbers that are not finite")
    return {name: torch.from_numpy(array.astype(np.float32)) for name, array in arrays.items()}


@contextlib.contextmanager
def _one_line(path: str | Path, damaged: str) -> Iterator[None]:
    """Refuse what is not a regular file. Convert errors in the block to a one-line UserError."""
    try:
        about = os.stat(path)
        if not stat.S_ISREG(about.st_mode):  # reading a pipe would wait for its writer
            raise UserError(f"{path} is a folder, device or pipe, not a file")
        if about.st_size > MAX_BYTES:
            raise UserError(f"{path} has {about.st_size:,} bytes, more than {MAX_BYTES:,}")
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
