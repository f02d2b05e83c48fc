"""The CSV file of `inference.py --csv`: one row per image, written in batches, resumable."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from evaluation.photos import one_line
from utils.files import UserError, write_json
from utils.safe_load import brief

HEADER = b"file,class,probability,student,error\n"
MAX_ROW = 150_000  # bytes; Linux accepts file names of at most 131,071 on the command line
_PLAIN, _OPEN = rb'[^",\r\n]', rb'"[^"]*(?:""[^"]*)*'
_CELL = rb'(?:%b+|%b")' % (_PLAIN, _OPEN)
ROW = re.compile(rb"(%b),(?:%b,[01]\.\d{4},%b,|,,,(%b))\n" % (_CELL, _CELL, _CELL, _CELL))
UNFINISHED = re.compile(rb'(?:%b?,){0,4}(?:%b*|%b"?)' % (_CELL, _PLAIN, _OPEN))  # start of a row
END = re.compile(rb",(?:[^,]*,[01]\.\d{4},[^,]*,|,,,.+)\n")  # end of a row, whatever its quotes


@dataclass
class Answer:
    """The result for a file: class, probability and student; or an error."""

    file: Path
    label: str = ""
    probability: float | None = None
    student: str = ""
    error: str = ""

    def row(self) -> str:
        """The row of the CSV file; the error is written without the file name."""
        probability = "" if self.probability is None else f"{self.probability:.4f}"
        error = self.error.removeprefix(f"{one_line(self.file)}: ")
        cells = (str(self.file), self.label, probability, self.student, error)
        return ",".join(map(_quoted, cells)) + "\n"


def _quoted(cell: str) -> str:
    """Quote as csv.writer does (before Python 3.13, it does not quote a carriage return)."""
    return '"' + cell.replace('"', '""') + '"' if set(cell) & set(',"\r\n') else cell


def _unquoted(cell: bytes) -> str:
    if cell.startswith(b'"'):
        cell = cell[1:-1].replace(b'""', b'"')
    return cell.decode("utf-8", "surrogateescape")


class Predictions:
    """The CSV file, and its numbers of rows `answered` and `failed`. Locked until `close`.

    File names that are not UTF-8 are written byte for byte: read the file with
    errors="surrogateescape". The settings of the rows are stored in .NAME.json; the lock file is
    .NAME.lock.

    Args:
        path: of the CSV file.
        resume: continue after the last complete row of an earlier run. If False, the file must not
            exist.
        made_of: everything that the predictions depend on, except the images; must be valid JSON.

    Raises:
        UserError: the file exists, is another CSV file, has an invalid row, was written with other
            settings, is being written by another process, or cannot be written. The message names
            the file. The file is then unchanged.
    """

    def __init__(self, path: Path, resume: bool, made_of: Mapping[str, Any]) -> None:
        self.path, self.answered, self.failed = path, 0, 0
        self._earlier: Counter[str] = Counter()  # number of rows of an earlier run, by file
        self._facts_path = path.with_name(f".{path.name}.json")
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b" if resume else "x+b", buffering=0)  # noqa: SIM115
        except FileExistsError as error:
            raise UserError(
                f"{path} exists: add --resume to continue it, or use another name for --csv"
            ) from error
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror or error}") from error
        try:
            self._begin(made_of)
        except BaseException as error:
            self.close()
            if not resume:
                path.unlink(missing_ok=True)
            if isinstance(error, Timeout):
                raise UserError(f"another run is writing {path}: wait until it ends") from error
            if isinstance(error, OSError):
                raise UserError(f"cannot write {path}: {error.strerror or error}") from error
            raise

    def _begin(self, made_of: Mapping[str, Any]) -> None:
        """Lock the file, check its rows, and remove an incomplete last row."""
        self._lock.acquire(timeout=0)
        if end := self._read_rows():
            self._compare(made_of)
        else:
            write_json(self._facts_path, made_of)
        self._file.truncate(end)
        if not end:
            self._append(HEADER)

    def close(self) -> None:
        """Close the file and release the lock."""
        self._file.close()
        self._lock.release()

    def skips(self, file: Path) -> bool:
        """Whether `file` needs no row: it has one already, or is the CSV file itself."""
        if self._earlier[str(file)]:
            self._earlier[str(file)] -= 1  # a file named twice gets two rows
            return True
        return os.path.abspath(file) == os.path.abspath(self.path)

    def write(self, answers: Iterable[Answer]) -> None:
        """Append rows. If the disk is full, raises UserError and appends none of them."""
        answers = list(answers)
        self._append("".join(each.row() for each in answers).encode("utf-8", "surrogateescape"))
        for answer in answers:
            self._count(answer.error)

    def _count(self, error: str | bytes | None) -> None:
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
                f"cannot write {self.path}: {error.strerror}; its rows are complete: continue with "
                "--resume"
            ) from error

    def _compare(self, made_of: Mapping[str, Any]) -> None:
        """Raise UserError unless the rows were written with the same settings."""
        try:
            before = dict(json.loads(self._facts_path.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"--resume: {self._facts_path} with the settings of {self.path} is missing or "
                "damaged; use another name for --csv"
            ) from error
        now = json.loads(json.dumps(made_of))
        changed = [
            f"{one_line(name)} was {brief(before.get(name))}, is {brief(now.get(name))}"
            for name in sorted(before | now)
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise UserError(
                f"--resume continues {self.path} only with the same settings: "
                f"{'; '.join(changed)}; use another name for --csv"
            )

    def _read_rows(self) -> int:
        """Count the complete rows. Returns where they end, in bytes.

        After the end, there may be the start of one row, from a run that was killed. Raises
        UserError if a row is invalid.
        """
        self._file.seek(0)
        with open(self._file.fileno(), "rb", closefd=False) as file:
            start = file.read(len(HEADER))
            if start != HEADER:
                if HEADER.startswith(start):  # empty, or an incomplete header
                    return 0
                raise UserError(
                    f"{self.path} was not written by this program: use another name for --csv"
                )
            end, number, lines, size, quotes = len(HEADER), 2, [], 0, 0
            fits = True
            while fits and (line := file.readline(MAX_ROW + 1)):
                lines.append(line)
                size, quotes = size + len(line), quotes + line.count(b'"')
                if size > MAX_ROW:
                    fits = False
                elif line.endswith(b"\n") and quotes % 2:  # the newline is part of a file name
                    fits = not END.search(line)
                elif line.endswith(b"\n"):
                    row = ROW.fullmatch(b"".join(lines))
                    fits = row is not None
                    if row:
                        self._earlier[_unquoted(row[1])] += 1
                        self._count(row[2])
                        end, number, lines, size, quotes = end + size, number + len(lines), [], 0, 0
        rest = b"".join(lines)
        if not fits or (b"\n" in rest and not UNFINISHED.fullmatch(rest)):
            raise UserError(
                f"{self.path}: line {number} is not a valid row; repair it, or use another name "
                "for --csv"
            )
        return end
