"""Errors a user can mend, and files that are whole or absent, never half-written."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


class UserError(Exception):
    """Something the user can put right: the message names the file or flag and what to do.

    The scripts print it without a traceback and exit with status 2 (`utils.cli.main`).
    """


@contextlib.contextmanager
def replacing(path: Path, binary: bool = True) -> Iterator:
    """Open a file beside `path` for writing and rename it into place once it is whole.

    A crash, a full disk or an exception inside the block leaves what stood at `path` untouched.

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
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"cannot write {path}: {reason}") from error
    finally:
        partial.unlink(missing_ok=True)


def shown(path: Path) -> str:
    """The path as a user would type it: relative where it lies below the current folder."""
    path = path.resolve()
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
