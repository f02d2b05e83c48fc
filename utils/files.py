"""Errors that a user can fix, atomic writing of files, and locks against parallel runs."""

import contextlib
import errno
import glob
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from utils.distributed import by_first


class UserError(Exception):
    """An error that the user can fix. The message names the file or flag and says what to do.

    The scripts print it without a traceback and exit with status 2 (`utils.cli.run`).
    """


@contextlib.contextmanager
def replacing(path: Path, binary: bool = True) -> Iterator:
    """Write a file atomically: open a temporary file for writing, then rename it to `path`.

    After a crash, a power loss, a full disk or an exception in the block, the old file at `path`
    is unchanged. After the block, the new file is safe against a power loss.

    Yields the open file. Raises UserError, which names `path`, if it cannot be written.
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
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # do not hide the original error
            partial.unlink()


def write_json(path: Path, content: Any) -> None:
    """Write `content` as JSON, as `replacing` does."""
    with replacing(path, binary=False) as file:
        json.dump(content, file, indent=1)


def read_json(path: Path, kind: type) -> Any:
    """Read results that `write_json` wrote: a list or dict, as `kind` says, which is not empty.

    Raises UserError, which names the file, if it is missing, damaged or something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is missing or damaged ({type(error).__name__})") from error
    if not isinstance(content, kind) or not content:
        raise UserError(f"{path} is empty or holds no {kind.__name__}")
    return content


def previous(path: Path) -> Path:
    """Where the file of an earlier run is kept: NAME.previous.pth for NAME.pth."""
    return path.with_name(path.name.replace(".", ".previous.", 1))


def try_folder(folder: Path) -> None:
    """Create `folder`; UserError, before any work is done, if files cannot be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise UserError(
            f"cannot write to {shown(folder)}: {error.strerror or error}; choose another folder"
        ) from error


def _sync_folder(folder: Path) -> None:
    """Wait until renames in `folder` are on the disk, where the system can do that."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):  # shares refuse it
            raise
    finally:
        os.close(descriptor)


_claims: list[FileLock] = []  # held for as long as the process lives


@by_first
def claim(path: Path) -> None:
    """Lock `path`, so that no other run writes it or its siblings NAME.*, until the process ends.

    The lock file is NAME.lock. Temporary files of a killed run are deleted. On a file system
    without locks, a warning is printed. Raises UserError if another process holds the lock, or if
    the lock file cannot be written.
    """
    file = path.with_suffix(".lock")
    lock = FileLock(file)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"another run is writing {shown(path)}: wait until it has ended, or use another folder "
            "with --checkpoint-dir"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP):
            what = f"cannot lock {shown(file)} on this file system"
            print(f"warning: {what}: start no second run that writes it", file=sys.stderr)
            return
        raise UserError(
            f"cannot write {shown(file)}: {error.strerror or error}; use another folder with "
            "--checkpoint-dir"
        ) from error
    _claims.append(lock)
    for partial in path.parent.glob(f"{glob.escape(path.stem)}.*.part"):
        with contextlib.suppress(OSError):
            partial.unlink()


def shown(path: Path) -> str:
    """The path as a user would type it: relative if it is below the current folder."""
    path = path.parent.resolve() / path.name  # do not resolve the file itself if it is a link
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
