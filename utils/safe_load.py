"""What a file must be before `torch.load` reads it, when it may come from a stranger.

`torch.load(weights_only=True)` runs no code of the file, but it obeys the file: it allocates what
it is asked for, builds tuples that stand for billions, and hands an archive of TorchScript to the
loader that takes code. So the zip archive is looked through first, and its pickle instruction by
instruction: what `torch.save` does not write for tensors and plain values is refused.
"""

import io
import os
import pickletools
import reprlib
import stat
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from utils.files import UserError

MAX_FILE = 2**29  # bytes; the largest that is written here, the teacher's state, has 190 MB
MAX_TEXT = 2**20  # bytes of the archive's index, and of its pickle; ours have a sixth of that
MAX_DEPTH = 20  # dictionaries and lists in one another; ours have 5

GLOBALS = {
    "torch HalfStorage", "torch FloatStorage", "torch LongStorage", "torch ByteStorage",
    "torch._utils _rebuild_tensor_v2", "collections OrderedDict",
}  # fmt: skip
TEXT = {"BINUNICODE", "GLOBAL"}  # what may stand in a pickle twice: it holds nothing else
PUT, GET = {"BINPUT", "LONG_BINPUT"}, {"BINGET", "LONG_BINGET"}
INSTRUCTIONS = TEXT | PUT | GET | {
    "PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2",
    "BINFLOAT", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINPERSID", "REDUCE", "BUILD",
}  # fmt: skip
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 80, 80


class _Refused(Exception):
    """Why a file is not read."""


def read_dict(path: str | Path) -> dict[str, Any]:
    """The dictionary that `write_dict` saved in `path`, its tensors on the CPU.

    Runs no code, whatever the file holds. Raises UserError, in one line, where the file is missing,
    cut short, damaged, larger than 512 MB, or holds anything but a dictionary of plain values and
    float16, float32, int64 or uint8 tensors, in which no list, tuple or dictionary stands twice.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is odd in the file is refused or harmless
            _look_through(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise _Refused("it holds no dictionary")
        _check_depth(content, MAX_DEPTH)
    except _Refused as error:
        raise UserError(f"{path} is refused: {error}") from error
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    # A damaged file can fail in any of the ways of zipfile, pickletools and torch.
    except Exception as error:
        reason = f"{type(error).__name__}, {brief(str(error))}"
        raise UserError(f"{path} is cut short or not a PyTorch checkpoint: {reason}") from error
    return content


def brief(value: Any) -> str:
    """`value` as Python would write it, on one line of at most 100 printable characters."""
    return " ".join(_SHORT.repr(value).split())[:100]


class _File(io.FileIO):
    """A file of which no long piece is read until its index is: zipfile takes that in one piece."""

    longest = MAX_TEXT

    def read(self, size: int = -1) -> bytes:
        if size > self.longest:
            raise _Refused("the zip archive's index is too long")
        return super().read(size)


def _look_through(path: str | Path) -> None:
    """Refuse the file unless it is an archive as torch.save writes it, whole and undamaged."""
    found = os.stat(path)
    if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for its writer
        folder = stat.S_ISDIR(found.st_mode)
        raise _Refused(f"it is a {'folder' if folder else 'device, pipe or socket'}, no file")
    if found.st_size > MAX_FILE:
        raise _Refused(f"it has {found.st_size:,} bytes, no checkpoint more than {MAX_FILE:,}")
    with _File(path) as file:
        start = file.read(2)
        if start[:1] == b"\x80":
            raise _Refused(
                "it is a bare pickle, which can carry code; torch.save writes zip archives"
            )
        if start not in (b"PK", b"P", b""):
            raise _Refused("it is not a PyTorch checkpoint")
        archive = zipfile.ZipFile(file)
        file.longest = found.st_size
        folder = _check_archive(archive, found.st_size)
        _check_pickle(archive.read(f"{folder}/data.pkl"))


def _check_archive(archive: zipfile.ZipFile, size: int) -> str:
    """The folder in `archive` that holds the pickle and its records, once all is in order."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    folders = [name[:-9] for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _Refused("its entries are compressed, and torch.save compresses none")
    if sum(entry.file_size for entry in entries) > size:
        raise _Refused("its entries overlap: together they are larger than the file")
    if len(set(names)) < len(names):
        raise _Refused("two of its entries have the same name")
    if len(folders) != 1:
        raise _Refused("it is not a PyTorch checkpoint, but a zip archive of something else")
    if f"{folders[0]}/constants.pkl" in names:
        raise _Refused("it is an archive of TorchScript, which carries code")
    if damaged := archive.testzip():
        raise _Refused(f"it is damaged: {brief(damaged)} does not match its checksum")
    if archive.getinfo(f"{folders[0]}/data.pkl").file_size > MAX_TEXT:
        raise _Refused(f"its pickle has more than {MAX_TEXT:,} bytes")
    return folders[0]


def _check_pickle(pickle: bytes) -> None:
    """Refuse a pickle that builds more than plain values and tensors, or shares what it builds."""
    latest = ""  # the instruction that made the top of the stack
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(pickle):
        name = opcode.name
        if name not in INSTRUCTIONS or (name == "GLOBAL" and argument not in GLOBALS):
            what = brief(argument if name == "GLOBAL" else name)
            raise _Refused(f"it carries code or an unknown type, which is not loaded: {what}")
        if name == "PROTO" and argument != 2:
            raise _Refused("its pickle is of another protocol, which can carry code")
        if name in PUT:
            memo[argument] = latest
        elif name in GET and memo[argument] not in TEXT:  # a few would stand for billions
            raise _Refused("a list, tuple or dictionary stands in it twice")
        else:
            latest = memo[argument] if name in GET else name


def _check_depth(value: Any, left: int) -> None:
    """Refuse what is nested so deep that to print or to compare it would exhaust the stack."""
    if isinstance(value, (dict, list, tuple)):
        if not left:
            raise _Refused(f"lists and dictionaries are nested more than {MAX_DEPTH} deep")
        for item in value.values() if isinstance(value, dict) else value:
            _check_depth(item, left - 1)
