"""What a file must be before it is read, when it may come from a stranger.

`torch.load(weights_only=True)` runs no code of the file, but it obeys the file: it allocates what
it is asked for, builds tuples that stand for billions, and hands an archive of TorchScript to the
loader that takes code. So the zip archive is looked through first, and its pickle instruction by
instruction: what `torch.save` does not write for tensors and plain values is refused. `torch.load`
then gets an archive in memory of what was looked at and nothing else: PyTorch and `zipfile` may
read one file differently, and it may change between two looks.

`numpy.load` obeys as well: it waits for a pipe and unpacks an archive to whatever size.
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

MAX_FILE = 2**29  # bytes; the largest that is written here, the teacher's state, has 190 MB
MAX_TEXT = 2**20  # bytes of an archive's index, and of a pickle; ours have a sixth of that
MAX_DEPTH = 20  # lists, tuples and dictionaries in one another; ours have 7
MAX_ARRAY = 2**26  # bytes of a .npy file
MAX_UNPACKED = 2**29  # bytes that an .npz file of any size may unpack to,
MAX_RATIO = 20  # and how many times its own size a larger one

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
TEXT = {"BINUNICODE", *GLOBALS}  # what may stand in a pickle twice: it holds nothing else
PUT, GET = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
FILL = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}  # these add to what is there
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
    """Why a file is not read."""


class _Short(reprlib.Repr):
    def repr_Tensor(self, tensor: torch.Tensor, _level: int) -> str:
        return f"a tensor of shape {tuple(tensor.shape)}"  # its numbers may take hours to print


_SHORT = _Short()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


def brief(value: Any) -> str:
    """`value` as Python would write it, on one line of at most 100 printable characters."""
    return " ".join(_SHORT.repr(value).split())[:100]


# ------------------------------------------------------------------ dictionaries


def read_dict(path: str | Path) -> dict[str, Any]:
    """The dictionary that `write_dict` saved in `path`, its tensors on the CPU.

    Runs no code, whatever the file holds. A parameter comes back as a tensor, an ordered dictionary
    as a dictionary. Raises UserError, in one line, where the file is missing, cut short, damaged,
    larger than 512 MB, or holds anything but a dictionary of plain values and tensors of real
    numbers, in which none of these stands twice.
    """
    with _told(path, "cut short or not a PyTorch checkpoint"):
        content = torch.load(_examined(path), map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise _Refused("it holds no dictionary")
        tensors: list[torch.Tensor] = []
        content = _plain(content, tensors)
        if sum(map(_bytes, tensors)) > MAX_FILE:  # many may share one record
            raise _Refused(f"its tensors have more than {MAX_FILE:,} bytes")
    return content


def _examined(path: str | Path) -> io.BytesIO:
    """What `torch.load` needs of the archive at `path`, if it is one as torch.save writes it.

    Each entry is read once, so that what is examined is what the copy holds.
    """
    copy = io.BytesIO()
    with _open(path) as (file, size), zipfile.ZipFile(copy, "w") as examined:
        start = file.read(2)
        if size > MAX_FILE:
            raise _Refused(f"it has {size:,} bytes, no checkpoint more than {MAX_FILE:,}")
        if start[:1] == b"\x80":
            raise _Refused(
                "it is a bare pickle, which can carry code; if you trust it, read it with PyTorch "
                "and save it again with torch.save, which writes a zip archive"
            )
        if start not in (b"PK", b"P", b""):
            raise _Refused("it is not a PyTorch checkpoint")
        archive = _index(file)
        for name, entry in _entries(archive, size).items():
            try:
                content = archive.read(entry.filename)  # which an error names
            except zipfile.BadZipFile as error:
                raise _Refused(f"it is damaged: {brief(str(error))}") from error
            if name == "data.pkl":
                _check_pickle(content)
            examined.writestr(f"archive/{name}", content)
        examined.writestr("archive/version", "3\n")
    copy.seek(0)
    return copy


def _entries(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The entries for the pickle and the tensors, by their names within the archive's folder."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    folders = [name[:-9] for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _Refused("its entries are compressed, and torch.save compresses none")
    if sum(entry.file_size for entry in entries) > size:
        raise _Refused("its entries overlap: together they are larger than the file")
    if len({name.lower() for name in names}) < len(names):  # PyTorch does not tell cases apart
        raise _Refused("two of its entries have the same name")
    if len(folders) != 1:
        raise _Refused("it is not a PyTorch checkpoint, but a zip archive of something else")
    inside = {entry.filename.removeprefix(f"{folders[0]}/"): entry for entry in entries}
    if inside["data.pkl"].file_size > MAX_TEXT:
        raise _Refused(f"its pickle has more than {MAX_TEXT:,} bytes")
    return {
        name: entry
        for name, entry in inside.items()
        if name in ("data.pkl", "byteorder") or name.startswith("data/")
    }


def _check_pickle(pickle: bytes) -> None:
    """Refuse a pickle that builds more than plain values and tensors, or shares what it builds.

    The pickle is run as Python runs it, except that the stack holds, of each object, only the
    instruction that made it and how deep it is.
    """
    stack: list[tuple[str, int]] = []
    below: list[list[tuple[str, int]]] = []  # the stacks under the marks
    memo: dict[int, tuple[str, int]] = {}
    for opcode, argument, _ in pickletools.genops(pickle):
        name, operands = opcode.name, opcode.stack_before
        if name not in INSTRUCTIONS or (name == "GLOBAL" and argument not in GLOBALS):
            what = brief(argument if name == "GLOBAL" else name)
            raise _Refused(f"it carries code or an unknown type, which is not loaded: {what}")
        if name == "PROTO" and argument != 2:
            raise _Refused("its pickle is of another protocol, which can carry code")
        if name == "MARK":
            below.append(stack)
            stack = []
        elif name in PUT:
            memo[argument] = stack[-1]
        elif name in GET:
            if memo[argument][0] not in TEXT:  # a few would stand for billions
                raise _Refused("a list, tuple, dictionary or tensor stands in it twice")
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
    """What an instruction leaves of the objects that it takes: their maker, and their depth."""
    depth = max((depth for _, depth in taken), default=0)
    if name == "GLOBAL":
        name = argument
    elif name == "REDUCE":
        name = f"{taken[0][0]}()"
    elif name in FILL:
        if name == "BUILD" and taken[0][0] != "collections OrderedDict()":
            raise _Refused("it carries code: the state of an object")
        name, depth = taken[0][0], max(depth, 1 + max((d for _, d in taken[1:]), default=0))
    elif name.startswith(("EMPTY", "TUPLE")):
        depth += 1
    if depth > MAX_DEPTH:  # to hash, to print or to compare it would exhaust the stack
        raise _Refused(f"lists and dictionaries are nested more than {MAX_DEPTH} deep")
    return name, depth


def _plain(value: Any, tensors: list[torch.Tensor]) -> Any:
    """`value` without the attributes that its parts may have; its tensors are added to the list."""
    if isinstance(value, torch.Tensor):
        if _bytes(value) > value.untyped_storage().nbytes() or value.is_neg():
            raise _Refused("a tensor in it is no plain record of numbers")
        tensors.append(value)
        return value.detach()
    if isinstance(value, dict):
        if any(type(key) not in (str, int) for key in value):
            raise _Refused("a name in it is neither text nor a whole number")
        return {key: _plain(item, tensors) for key, item in dict.items(value)}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item, tensors) for item in value)
    if value is not None and type(value) not in (bool, int, float, str):
        raise _Refused(f"it holds a bare {type(value).__name__}")
    return value


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


# ------------------------------------------------------------------ arrays


def read_arrays(path: str | Path, names: Iterable[str]) -> dict[str, np.ndarray]:
    """Those of the named arrays that the .npz file at `path` holds.

    Raises UserError, in one line, where the file is missing, damaged, not one that NumPy writes, or
    unpacks to more than 512 MB and 20 times its size, which images do not.
    """
    with _told(path, "damaged or incomplete"), _open(path) as (file, size):
        archive = _index(file)
        held = {entry.filename: entry for entry in archive.infolist()}
        entries = {name: held[f"{name}.npy"] for name in names if f"{name}.npy" in held}
        kinds = {entry.compress_type for entry in entries.values()}
        if not kinds <= {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:  # zipfile bounds these two
            raise _Refused("it is compressed in a way that NumPy does not use")
        unpacked = sum(entry.file_size for entry in entries.values())
        if unpacked > max(MAX_UNPACKED, MAX_RATIO * size):
            raise _Refused(f"its {size:,} bytes unpack to {unpacked:,}")
        return {name: _array(archive.open(entry)) for name, entry in entries.items()}


def read_array(path: str | Path) -> np.ndarray:
    """The array in the .npy file at `path`; UserError as of `read_arrays`, and above 64 MB."""
    with _told(path, "damaged or not a .npy file"), _open(path) as (file, size):
        if size > MAX_ARRAY:
            raise _Refused(f"it has {size:,} bytes, more than {MAX_ARRAY:,}")
        return _array(io.BytesIO(file.read(size)))


def _array(file: IO[bytes]) -> np.ndarray:
    return np.lib.format.read_array(file, allow_pickle=False)


# ------------------------------------------------------------------ files


class _File(io.FileIO):
    """A file of which no piece longer than `longest` bytes is read at once."""

    longest: float = MAX_TEXT

    def read(self, size: int = -1) -> bytes:
        if size > self.longest:
            raise _Refused("the zip archive's index is too long")
        return super().read(size)


@contextlib.contextmanager
def _open(path: str | Path) -> Iterator[tuple[_File, int]]:
    """Open a regular file; the file and its size in bytes."""
    _check_kind(os.stat(path))  # to open a pipe would wait for its writer
    nonblock = getattr(os, "O_NONBLOCK", 0)  # Windows has none
    with _File(path, opener=lambda name, flags: os.open(name, flags | nonblock)) as file:
        found = os.fstat(file.fileno())
        _check_kind(found)  # it may be another by now
        yield file, found.st_size


def _check_kind(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        folder = stat.S_ISDIR(found.st_mode)
        raise _Refused(f"it is a {'folder' if folder else 'device, pipe or socket'}, no file")


def _index(file: _File) -> zipfile.ZipFile:
    """The zip archive in `file`, whose index zipfile reads in one piece, however long."""
    archive = zipfile.ZipFile(file)
    file.longest = math.inf
    return archive


@contextlib.contextmanager
def _told(path: str | Path, damaged: str) -> Iterator[None]:
    """Turn what goes wrong in reading `path` into a UserError of one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd in the file is refused or harmless
            yield
    except _Refused as error:
        raise UserError(f"{path} is refused: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    # A damaged file can fail in any of the ways of zipfile, pickletools, NumPy and PyTorch.
    except Exception as error:
        reason = f"{type(error).__name__}, {brief(str(error))}"
        raise UserError(f"{path} is {damaged}: {reason}") from error
