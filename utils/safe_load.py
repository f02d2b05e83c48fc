"""Safe reading of .pth, .npz and .npy files from untrusted sources.

`torch.load(weights_only=True)` runs no code from the file. But it allocates as much memory as the
file requests, builds nested tuples with billions of entries, and passes TorchScript archives to a
loader that does accept code. So this module first checks the zip archive, and every instruction of
its pickle, and refuses everything that `torch.save` does not write for tensors and plain values.
Then `torch.load` reads a copy in memory with the checked entries only, because PyTorch and
`zipfile` may read the same file differently, and the file may change in between.

`numpy.load` is not safe either: it waits for a pipe and unpacks an archive to any size.
"""

import contextlib
import io
import math
import os
import pickletools
import reprlib
import stat
import warnings
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from utils.files import UserError

MAX_FILE = 2**31  # bytes; the largest file of this project, the state of a VGG-11, has 1.5 GB
MAX_TEXT = 2**20  # bytes of an archive's index or pickle; this project's have a sixth of that
MAX_DEPTH = 20  # nested lists, tuples and dictionaries; this project's files have 7
MAX_ARRAY = 2**26  # bytes of a .npy file
MAX_UNPACKED = 2**29  # unpacked bytes that are allowed for every .npz file
MAX_RATIO = 20  # above MAX_UNPACKED, maximum ratio of unpacked bytes to file size

GLOBALS = {
    *(
        f"torch {kind}Storage"
        for kind in (
            "Half",
            "BFloat16",
            "Float",
            "Double",
            "Bool",
            "Byte",
            "Char",
            "Short",
            "Int",
            "Long",
        )
    ),
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "collections OrderedDict",
}
TEXT = {"BINUNICODE", *GLOBALS}  # may be referenced repeatedly, as they contain no other objects
PUT, GET = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
FILL = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}  # add to an existing object
INSTRUCTIONS = (
    PUT
    | GET
    | FILL
    | {
        "PROTO",
        "STOP",
        "MARK",
        "NONE",
        "NEWTRUE",
        "NEWFALSE",
        "BININT",
        "BININT1",
        "BININT2",
        "BINFLOAT",
        "BINUNICODE",
        "GLOBAL",
        "EMPTY_DICT",
        "EMPTY_LIST",
        "EMPTY_TUPLE",
        "TUPLE",
        "TUPLE1",
        "TUPLE2",
        "TUPLE3",
        "BINPERSID",
        "REDUCE",
    }
)


class _Refused(Exception):
    """The reason why a file is not read."""


class _Short(reprlib.Repr):
    def repr_Tensor(self, tensor: torch.Tensor, _level: int) -> str:
        return f"a tensor of shape {tuple(tensor.shape)}"  # printing the values may take hours


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


def brief(value: Any) -> str:
    """The repr of `value`, shortened to one line of at most 100 printable characters."""
    return " ".join(_SHORT.repr(value).split())[:100]


# ------------------------------------------------------------------ dictionaries


def read_dict(path: str | Path) -> dict[str, Any]:
    """Read a dictionary saved by `write_dict`, with tensors on the CPU.

    No code is run, whatever the file contains. Parameters are returned as tensors, and ordered
    dictionaries as dictionaries. Raises UserError, with a one-line message, if the file is missing,
    truncated, damaged or larger than 512 MB; or if it is not a dictionary of plain values and
    tensors of real numbers; or if an object in it occurs twice.
    """
    with _told(path, "truncated or not a PyTorch checkpoint"):
        content = torch.load(_examined(path), map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise _Refused("it does not contain a dictionary")
        tensors: list[torch.Tensor] = []
        content = _plain(content, tensors)
        if sum(map(_bytes, tensors)) > MAX_FILE:  # several tensors may share one storage
            raise _Refused(f"its tensors have more than {MAX_FILE:,} bytes")
    return content


def _examined(path: str | Path) -> io.BytesIO:
    """Check the archive at `path`, and return a copy in memory of the entries for `torch.load`.

    Each entry is read only once, so the copy contains exactly what was checked.
    """
    copy = io.BytesIO()
    with _open(path) as (file, size), zipfile.ZipFile(copy, "w") as examined:
        start = file.read(2)
        if size > MAX_FILE:
            raise _Refused(f"it has {size:,} bytes, but checkpoints have at most {MAX_FILE:,}")
        if start[:1] == b"\x80":
            raise _Refused(
                "it is a bare pickle, which can contain code; if you trust it, load it with "
                "PyTorch and save it again with torch.save, which writes a zip archive"
            )
        if start not in (b"PK", b"P", b""):
            raise _Refused("it is not a PyTorch checkpoint")
        archive = _index(file)
        for name, entry in _entries(archive, size).items():
            try:
                content = archive.read(entry.filename)  # not `entry`, for a readable error message
            except zipfile.BadZipFile as error:
                raise _Refused(f"it is damaged: {brief(str(error))}") from error
            if name == "data.pkl":
                _check_pickle(content)
            examined.writestr(f"archive/{name}", content)
        examined.writestr("archive/version", "3\n")
    copy.seek(0)
    return copy


def _entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The entries of the pickle and the tensors, by their names inside the archive's folder."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    folders = [name[:-9] for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _Refused("its entries are compressed, which torch.save never does")
    if sum(entry.file_size for entry in entries) > size:
        raise _Refused("its entries overlap: together they are larger than the file")
    if len({name.lower() for name in names}) < len(names):  # PyTorch ignores case in names
        raise _Refused("two of its entries have the same name")
    if len(folders) != 1:
        raise _Refused("it is a zip archive, but not a PyTorch checkpoint")
    inside = {entry.filename.removeprefix(f"{folders[0]}/"): entry for entry in entries}
    if inside["data.pkl"].file_size > MAX_TEXT:
        raise _Refused(f"its pickle has more than {MAX_TEXT:,} bytes")
    return {
        name: entry
        for name, entry in inside.items()
        if name in ("data.pkl", "byteorder") or name.startswith("data/")
    }


def _check_pickle(pickle: bytes) -> None:
    """Refuse a pickle that builds more than plain values and tensors, or uses an object twice.

    The pickle is simulated: for each object, the stack has only the instruction that created it
    and its nesting depth.
    """
    stack: list[tuple[str, int]] = []
    below: list[list[tuple[str, int]]] = []  # the stacks below the marks
    memo: dict[int, tuple[str, int]] = {}
    for opcode, argument, _ in pickletools.genops(pickle):
        name, operands = opcode.name, opcode.stack_before
        if name not in INSTRUCTIONS or (name == "GLOBAL" and argument not in GLOBALS):
            what = brief(argument if name == "GLOBAL" else name)
            raise _Refused(f"it contains code or an unknown type, which is not loaded: {what}")
        if name == "PROTO" and argument != 2:
            raise _Refused("its pickle has another protocol than 2, so it can contain code")
        if name == "MARK":
            below.append(stack)
            stack = []
        elif name in PUT:
            memo[argument] = stack[-1]
        elif name in GET:
            if memo[argument][0] not in TEXT:  # repeated references can grow to billions of objects
                raise _Refused("a list, tuple, dictionary or tensor occurs in it twice")
            stack.append(memo[argument])
        else:
            taken: list[tuple[str, int]] = []
            if pickletools.markobject in operands:
                taken, stack = stack, below.pop()
                operands = operands[: operands.index(pickletools.markobject)]
            taken = [stack.pop() for _ in operands][::-1] + taken
            if opcode.stack_after:
                stack.append(_made(name, argument, taken))


def _made(name: str, argument: Any, taken: list[tuple[str, int]]) -> tuple[str, int]:
    """The result of an instruction that takes these objects: its creator and nesting depth."""
    depth = max((depth for _, depth in taken), default=0)
    if name == "GLOBAL":
        name = argument
    elif name == "REDUCE":
        name = f"{taken[0][0]}()"
    elif name in FILL:
        if name == "BUILD" and taken[0][0] != "collections OrderedDict()":
            raise _Refused("it contains code: the state of an object")
        name, depth = taken[0][0], max(depth, 1 + max((d for _, d in taken[1:]), default=0))
    elif name.startswith(("EMPTY", "TUPLE")):
        depth += 1
    if depth > MAX_DEPTH:  # hashing, printing or comparing it would exhaust Python's stack
        raise _Refused(f"lists and dictionaries are nested more than {MAX_DEPTH} deep")
    return name, depth


def _plain(value: Any, tensors: list[torch.Tensor]) -> Any:
    """Copy `value` without extra attributes of its parts, and append its tensors to `tensors`."""
    if isinstance(value, torch.Tensor):
        if _bytes(value) > value.untyped_storage().nbytes() or value.is_neg():
            raise _Refused("a tensor in it is not a plain array of numbers")
        tensors.append(value)
        return value.detach()
    if isinstance(value, dict):
        if any(type(key) not in (str, int) for key in value):
            raise _Refused("a key in it is neither a string nor an integer")
        return {key: _plain(item, tensors) for key, item in dict.items(value)}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, tensors) for item in value)
    if value is not None and type(value) not in (bool, int, float, str):
        raise _Refused(f"it contains an object of type {type(value).__name__}")
    return value


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# ------------------------------------------------------------------ arrays


def read_arrays(path: str | Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Read those of the named arrays that are in the .npz file at `path`.

    Raises UserError, with a one-line message, if the file is missing, damaged, not written by
    NumPy, or unpacks to more than 512 MB and more than 20 times its size.
    """
    with _told(path, "damaged or incomplete"), _open(path) as (file, size):
        archive = _index(file)
        held = {entry.filename: entry for entry in archive.infolist()}
        entries = {name: held[f"{name}.npy"] for name in names if f"{name}.npy" in held}
        kinds = {entry.compress_type for entry in entries.values()}
        if not kinds <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:  # unpacked in small pieces
            raise _Refused("it is compressed with a method that NumPy does not use")
        unpacked = sum(entry.file_size for entry in entries.values())
        if unpacked > max(MAX_UNPACKED, MAX_RATIO * size):
            raise _Refused(f"its {size:,} bytes unpack to {unpacked:,}")
        return {name: _array(archive.open(entry)) for name, entry in entries.items()}


def read_array(path: str | Path) -> np.ndarray:
    """Read a .npy file. Raises UserError as `read_arrays` does, or if it is larger than 64 MB."""
    with _told(path, "damaged or not a .npy file"), _open(path) as (file, size):
        if size > MAX_ARRAY:
            raise _Refused(f"it has {size:,} bytes, more than {MAX_ARRAY:,}")
        return _array(io.BytesIO(file.read(size)))


def _array(file: IO[bytes]) -> np.ndarray:
    return np.lib.format.read_array(file, allow_pickle=False)


# ------------------------------------------------------------------ files


class _File(io.FileIO):
    """A file that refuses to read more than `longest` bytes at once."""

    longest: float = MAX_TEXT

    def read(self, size: int = -1) -> bytes:
        if size > self.longest:
            raise _Refused("the zip archive's index is too long")
        return super().read(size)


@contextlib.contextmanager
def _open(path: str | Path) -> Iterator[tuple[_File, int]]:
    """Open a regular file. Yields the file and its size in bytes."""
    _check_kind(os.stat(path))  # opening a pipe would wait for its writer
    nonblock = getattr(os, "O_NONBLOCK", 0)  # does not exist on Windows
    with _File(path, opener=lambda name, flags: os.open(name, flags | nonblock)) as file:
        found = os.fstat(file.fileno())
        _check_kind(found)  # the file may have been replaced in between
        yield file, found.st_size


def _check_kind(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        folder = stat.S_ISDIR(found.st_mode)
        raise _Refused(f"it is a {'folder' if folder else 'device, pipe or socket'}, not a file")


def _index(file: _File) -> zipfile.ZipFile:
    """Open the zip archive in `file`. The limit `longest` is for its index, read in one piece."""
    archive = zipfile.ZipFile(file)
    file.longest = math.inf
    return archive


@contextlib.contextmanager
def _told(path: str | Path, damaged: str) -> Iterator[None]:
    """Convert errors in reading `path` to a UserError with a one-line message."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # anything unusual in the file is refused or harmless
            yield
    except _Refused as error:
        raise UserError(f"{path} is refused: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    # zipfile, pickletools, NumPy and PyTorch raise many types of errors for a damaged file.
    except Exception as error:
        reason = f"{type(error).__name__}, {brief(str(error))}"
        raise UserError(f"{path} is {damaged}: {reason}") from error
