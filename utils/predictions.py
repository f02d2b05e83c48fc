"""The CSV of `inference.py --csv`: a row a file, on disk a batch at a time, and resumable."""

import csv
import fcntl
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from utils.files import UserError
from utils.photos import one_line

HEADER = b"file,class,probability,student,error\n"


@dataclass
class Answer:
    """What the system says of a file: the class, its probability and the student, or the error."""

    file: Path
    label: str = ""
    probability: float | None = None
    student: str = ""
    error: str = ""

    def row(self) -> str:
        """The line of the CSV: the name as it is, four decimals, the error without the name."""
        probability = "" if self.probability is None else f"{self.probability:.4f}"
        error = self.error.removeprefix(f"{one_line(self.file)}: ")
        cells = (str(self.file), self.label, probability, self.student, error)
        return ",".join(map(_quoted, cells)) + "\n"


def _quoted(cell: str) -> str:
    """As csv.writer does it, which leaves a carriage return bare before Python 3.13."""
    return '"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\r\n') else cell


class Predictions:
    """The file, and how many of its rows are `answered` and `failed`. Locked until `close`.

    Names that are not UTF-8 stand in it byte for byte: read it with errors="surrogateescape".

    Args:
        path: of the CSV.
        resume: go on behind the last complete row of an earlier run; else there must be no file.

    Raises UserError, naming the file, where it exists, is another CSV, is being written by another
    process or cannot be written.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path, self.answered, self.failed = path, 0, 0
        self._earlier: Counter[str] = Counter()  # rows that an earlier run left, by file
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b" if resume else "x+b", buffering=0)  # noqa: SIM115
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            end = self._read_rows()
            self._file.truncate(end)
        except FileExistsError as error:
            raise UserError(
                f"{path} exists: add --resume to continue it, or give --csv another name"
            ) from error
        except BlockingIOError as error:
            raise UserError(f"another run is writing {path}: wait for it to end") from error
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
        if not end:
            self._append(HEADER)

    def close(self) -> None:
        """Let another process write the file."""
        self._file.close()

    def skips(self, file: Path) -> bool:
        """Whether `file` needs no row: it has one already, or is the CSV itself."""
        if self._earlier[str(file)]:
            self._earlier[str(file)] -= 1  # a file named twice has two rows
            return True
        return os.path.abspath(file) == os.path.abspath(self.path)

    def write(self, answers: Iterable[Answer]) -> None:
        """Add the rows. Raises UserError where the disk is full, and then adds none of them."""
        answers = list(answers)
        self._append("".join(each.row() for each in answers).encode("utf-8", "surrogateescape"))
        for answer in answers:
            self._count(answer.error)

    def _count(self, error: str) -> None:
        self.answered += not error
        self.failed += bool(error)

    def _append(self, content: bytes) -> None:
        end = self._file.seek(0, os.SEEK_END)
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError as error:
            self._file.truncate(end)
            raise UserError(
                f"cannot write {self.path}: {error.strerror}; its rows are complete, and --resume "
                "continues it"
            ) from error

    def _read_rows(self) -> int:
        """Count the complete rows; their end, in bytes."""
        self._file.seek(0)
        with open(self._file.fileno(), "rb", closefd=False) as file:
            start = file.read(len(HEADER))
            if start != HEADER:
                if HEADER.startswith(start):  # nothing, or a header cut short
                    return 0
                raise UserError(f"{self.path} is another CSV: give --csv another name")
            end, row = len(HEADER), b""
            for line in file:
                row += line
                if row.endswith(b"\n") and row.count(b'"') % 2 == 0:  # no newline within a name
                    name, *_, error = next(csv.reader([row.decode("utf-8", "surrogateescape")]))
                    self._earlier[name] += 1
                    self._count(error)
                    end, row = end + len(row), b""
        return end
