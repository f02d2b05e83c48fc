"""Scripts, run in this process or in one forked from a process that has imported PyTorch."""

import contextlib
import csv
import io
import multiprocessing
import os
import sys
import tarfile
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import fault_driver
import pytest

from utils import cli, files

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "torchvision", "numpy", "tqdm"])


def call(script, *flags, status=0):
    """Run the `main` of a script in this process. Returns what it prints to stdout and stderr."""
    printed = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as stop:
        patch.setattr(sys, "argv", [str(script), *map(str, flags)])
        with contextlib.redirect_stdout(printed[0]), contextlib.redirect_stderr(printed[1]):
            cli.run(import_module(Path(script).name.removesuffix(".py")).main)
    while files._claims:  # released at the end of a process
        files._claims.pop().release()
    out, err = (each.getvalue() for each in printed)
    assert (stop.value.code or 0) == status, out + err
    return out, err


def rows(path):
    """The rows of a CSV file: dictionaries of texts."""
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def targz(files):
    """The bytes of an archive with these files: bytes by name."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


@dataclass
class Done:
    status: int
    stdout: str
    stderr: str


class Run:
    """A script in a separate process; `limits` are called there before the script starts."""

    def __init__(self, function, *args, limits=()):
        pipes = [FORKS.Pipe(duplex=False) for _ in ("stdout", "stderr")]
        self.printed = [reader for reader, _ in pipes]
        writers = [writer for _, writer in pipes]
        self.process = FORKS.Process(
            target=fault_driver.child, args=(writers, limits, function, *args)
        )
        self.process.start()
        for writer in writers:
            writer.close()

    def wait(self):
        self.process.join(240)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        texts = []
        for reader in self.printed:
            with open(os.dup(reader.fileno())) as file:
                texts.append(file.read())
            reader.close()
        return Done(self.process.exitcode, *texts)
