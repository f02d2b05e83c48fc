"""Errors a user can mend, files that are whole or absent, and one run a checkpoint."""

import contextlib
import glob
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from utils.distributed import by_first


class UserError(Exception):
    """Something the user can put right: the message names the file or flag and what to do.

    The scripts print it without a traceback and exit with status 2 (`utils.cli.main`).
    """


@contextlib.contextmanager
def replacing(path: Path, binary: bool = True) -> Iterator:
    """Open a file beside `path` for writing and rename it into place once it is whole.

    A crash, a power loss, a full disk or an exception inside the block leaves what stood at `path`
    untouched; once the block is left, the new file outlives a power loss.

    Yields the open file. Raises UserError, naming `path`, where it cannot be written.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb" if binary else "w", encoding=None if binary else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path}: {reason}") from error
    finally:
        with contextlib.suppress(OSError):  # the error that brought us here is the one to tell
            partial.unlink()


def move(path: Path, to: Path) -> None:
    """Rename a file, for good; UserError, naming it, where that fails."""
    try:
        os.replace(path, to)
        _sync_folder(to.parent)
    except OSError as error:
        raise UserError(f"cannot rename {path} to {to.name}: {error.strerror or error}") from error


def try_folder(folder: Path) -> None:
    """Make `folder` and, for a moment, a file in it, so that no result is lost for want of it.

    Raises UserError where either fails.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"cannot write into {shown(folder)}: {error.strerror or error}; name another folder"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Wait until the renames in `folder` are on the disk. Windows opens no folder, and need not."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_claims: list[FileLock] = []  # held for as long as the process lives


@by_first
def claim(path: Path) -> None:
    """Make this run the only one that writes `path` and its siblings, NAME.* and NAME_*.

    The claim is a lock on NAME.lock, which the system drops when the process ends, however it ends.
    What a killed run left half-written is removed. Raises UserError where another process has the
    claim or the folder cannot be written.
    """
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
        for partial in path.parent.glob(f"{glob.escape(path.stem)}[._]*.part"):
            partial.unlink(missing_ok=True)
    except Timeout as error:
        raise UserError(
            f"another run is writing {shown(path)}: wait for it to end, or give this one a "
            "folder of its own with --checkpoint-dir"
        ) from error
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    _claims.append(lock)


def shown(path: Path) -> str:
    """The path as a user would type it: relative where it lies below the current folder."""
    path = path.parent.resolve() / path.name  # a link is shown, not what it leads to
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
