"""The CSV of `inference.py --csv`: a row a file, on disk a batch at a time, and resumable."""

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
from utils.files import UserError, replacing
from utils.safe_load import brief

HEADER = b"file,class,probability,student,error\n"
MAX_ROW = 150_000  # bytes: Linux takes no file name longer than 131,071
_PLAIN, _OPEN = rb'[^",\r\n]', rb'"[^"]*(?:""[^"]*)*'
_CELL = rb'(?:%b+|%b")' % (_PLAIN, _OPEN)
ROW = re.compile(rb"(%b),(?:%b,[01]\.\d{4},%b,|,,,(%b))\n" % (_CELL, _CELL, _CELL, _CELL))
UNFINISHED = re.compile(rb'(?:%b?,){0,4}(?:%b*|%b"?)' % (_CELL, _PLAIN, _OPEN))  # the start of one
END = re.compile(rb",(?:[^,]*,[01]\.\d{4},[^,]*,|,,,.+)\n")  # of a row, whatever its quotes are


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


def _unquoted(cell: bytes) -> str:
    if cell.startswith(b'"'):
        cell = cell[1:-1].replace(b'""', b'"')
    return cell.decode("utf-8", "surrogateescape")


class Predictions:
    """The file, and how many of its rows are `answered` and `failed`. Locked until `close`.

    Names that are not UTF-8 stand in it byte for byte: read it with errors="surrogateescape". What
    made the rows stands beside it, in .NAME.json; the lock is .NAME.lock.

    Args:
        path: of the CSV.
        resume: go on behind the last complete row of an earlier run; else there must be no file.
        made_of: all that an answer depends on but the image, as JSON can hold it.

    Raises UserError, naming the file, where it exists, is another CSV, has a row that is not of
    this program, was made by something else, is being written by another process or cannot be
    written. It then stays as it is.
    """

    def __init__(self, path: Path, resume: bool, made_of: Mapping[str, Any]) -> None:
        self.path, self.answered, self.failed = path, 0, 0
        self._earlier: Counter[str] = Counter()  # rows that an earlier run left, by file
        self._facts_path = path.with_name(f".{path.name}.json")
        self._lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, "a+b" if resume else "x+b", buffering=0)  # noqa: SIM115
        except FileExistsError as error:
            raise UserError(
                f"{path} exists: add --resume to continue it, or give --csv another name"
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
                raise UserError(f"another run is writing {path}: wait for it to end") from error
            if isinstance(error, OSError):
                raise UserError(f"cannot write {path}: {error.strerror or error}") from error
            raise

    def _begin(self, made_of: Mapping[str, Any]) -> None:
        """Lock the file, look through what is there, and cut off a row that is not complete."""
        self._lock.acquire(timeout=0)
        if end := self._read_rows():
            self._compare(made_of)
        else:
            with replacing(self._facts_path, binary=False) as file:
                json.dump(made_of, file)
        self._file.truncate(end)
        if not end:
            self._append(HEADER)

    def close(self) -> None:
        """Let another process write the file."""
        self._file.close()
        self._lock.release()

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
                f"cannot write {self.path}: {error.strerror}; its rows are complete, and --resume "
                "continues it"
            ) from error

    def _compare(self, made_of: Mapping[str, Any]) -> None:
        """Raise UserError unless the rows were made by the same, as the file beside them says."""
        try:
            before = dict(json.loads(self._facts_path.read_bytes()))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(
                f"--resume: {self._facts_path}, which says how {self.path} was made, is missing or "
                "damaged; give --csv another name"
            ) from error
        now = json.loads(json.dumps(made_of))
        changed = [
            f"{one_line(name)} was {brief(before.get(name))}, is {brief(now.get(name))}"
            for name in sorted(before | now)
            if before.get(name) != now.get(name)
        ]
        if changed:
            raise UserError(
                f"--resume continues {self.path} only as it was begun: {'; '.join(changed)}; give "
                "--csv another name"
            )

    def _read_rows(self) -> int:
        """Count the complete rows; their end, in bytes. UserError where one is not of this program.

        Behind the end is nothing, or the start of one row, which a killed run leaves.
        """
        self._file.seek(0)
        with open(self._file.fileno(), "rb", closefd=False) as file:
            start = file.read(len(HEADER))
            if start != HEADER:
                if HEADER.startswith(start):  # nothing, or a header cut short
                    return 0
                raise UserError(f"{self.path} is another CSV: give --csv another name")
            end, number, lines, size, quotes = len(HEADER), 2, [], 0, 0
            fits = True
            while fits and (line := file.readline(MAX_ROW + 1)):
                lines.append(line)
                size, quotes = size + len(line), quotes + line.count(b'"')
                if size > MAX_ROW:
                    fits = False
                elif line.endswith(b"\n") and quotes % 2:  # the line feed belongs to a name
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
                f"{self.path}: line {number} is no row of this program; mend it, or give --csv "
                "another name"
            )
        return end
