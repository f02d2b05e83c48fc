"""CIFAR-10, CIFAR-100 or your own data set as tensors, and the fixed validation split."""

import functools
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import CIFAR100

from models import CLASS_COUNTS
from utils.distributed import by_first
from utils.download import arrays_of, fetch
from utils.files import UserError, replacing, shown
from utils.safe_load import read_array, read_arrays

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FOLDER = Path(__file__).resolve().parent.parent / "data"  # downloads go to no other folder
SAMPLE = FOLDER / "sample.npz"
SIZES = range(32, 97)  # pixels, of your own images
SHA256 = {
    "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}
SPLIT_SEED = 0  # not the seed of a run, so that all runs have the same validation images

MEAN = (0.4914, 0.4822, 0.4465)  # of CIFAR-10's training images, per channel, in [0, 1]
STD = (0.2470, 0.2435, 0.2616)


@dataclass(frozen=True)
class DataSet:
    """What networks and images have in common."""

    name: str  # for messages
    classes: tuple[str, ...]  # their names, in the order of the labels
    mean: tuple[float, ...]  # of the training images, per channel, in [0, 1], for normalization
    std: tuple[float, ...]
    size: int  # height and width of the images, in pixels


CIFAR10 = DataSet("CIFAR-10", CLASSES, MEAN, STD, 32)


@dataclass
class Split:
    """Images of one split."""

    images: torch.Tensor  # uint8 (N, size, size, 3)
    labels: torch.Tensor  # int64 (N,)
    indices: np.ndarray  # (N,), the index of each image in the training or test set
    data: DataSet = CIFAR10
    context: str = "clean"  # a key of utils.contexts.CONTEXTS, that the images are in

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.data.classes

    @property
    def name(self) -> str:
        return self.data.name

    def take(self, places: slice | np.ndarray) -> "Split":
        """The images at `places` (from 0), in that order."""
        images, labels, indices = (
            each[places] for each in (self.images, self.labels, self.indices)
        )
        return replace(self, images=images, labels=labels, indices=indices)


def listed(classes: Sequence[str]) -> str:
    """The number of classes and their names; of more than ten, only some names."""
    names = classes if len(classes) <= 10 else [*classes[:3], "...", classes[-1]]
    return f"{len(classes):,} classes: {', '.join(names)}"


def described(*splits: Split) -> str:
    """One line: data set, number of images in these splits, classes."""
    images = sum(map(len, splits))
    return f"{splits[0].name}, {images:,} images, {listed(splits[0].classes)}"


def numbered(count: int) -> list[str]:
    """Names for `count` classes without names."""
    return [f"class {k}" for k in range(count)]


# ------------------------------------------------------------------ loading and splitting


def load_splits(
    data: str | Path,
    subset: int | None = None,
    device: torch.device | str = "cpu",
    seen_by: Mapping[str, Any] | None = None,
) -> tuple[Split, Split, Split]:
    """Load the training, validation and test split. The validation split is a tenth of each class.

    Raises UserError if the data set is not available or damaged, or has the wrong shape or type.

    Args:
        data: "cifar10" or "cifar100", which are downloaded to FOLDER; a folder with CIFAR-10; or an
            .npz file with `train_images`, `train_labels`, `test_images`, `test_labels` and
            optionally `classes`, the class names. The default names are "class 0", "class 1", ...
        subset: keep only this many images of each split, for a quick test.
        device: of the tensors.
        seen_by: the checkpoint of a network, whose mean and std the images get. None: those of all
            training images.
    """
    arrays, about = _arrays(data)
    if seen_by:
        about = replace(about, mean=tuple(seen_by["mean"]), std=tuple(seen_by["std"]))
    train, val = stratified_split(arrays["train_labels"])
    if not len(val):
        raise UserError(
            f"{data} has too few images per class: a tenth of them is needed for validation"
        )
    test = np.arange(len(arrays["test_labels"]))
    return tuple(
        Split(
            torch.from_numpy(arrays[f"{source}_images"][places]).to(device),
            torch.from_numpy(arrays[f"{source}_labels"][places].astype(np.int64)).to(device),
            places,
            about,
        )
        for source, places in (
            ("train", train[:subset]),
            ("train", val[:subset]),
            ("test", test[:subset]),
        )
    )


@by_first
def _arrays(data: str | Path) -> tuple[Mapping[str, np.ndarray], DataSet]:
    """The arrays of a data set, and what is known about it. Only the first process needs files."""
    if data == "cifar10":
        return _cifar10(FOLDER, download=True), CIFAR10
    if os.path.isdir(data):
        return _cifar10(Path(data), download=False), CIFAR10
    if data == "cifar100":
        arrays, name = _cifar100(), "CIFAR-100"
    elif os.path.exists(data):
        name, remedy = str(data), "see 'Your own data' in README.md"
        arrays = _read(Path(data), remedy, _check_own)
    else:
        raise UserError(f"--data {data}: no such file or folder; leave it out to use CIFAR-10")
    images, classes = arrays["train_images"], tuple(map(str, arrays["classes"]))
    return arrays, DataSet(name, classes, *mean_and_std(images), images.shape[1])


def named_images(split: Split, path: Path) -> Split:
    """The images of `split` whose indices are in a file. An index listed twice counts twice.

    The file is .npy, integers (M,). Raises UserError if it cannot be read, has the wrong shape or
    type, or has an index that is not in the split, for example of a validation image.
    """
    indices = read_array(path)
    if indices.ndim != 1 or indices.dtype.kind not in "iu" or not len(indices):
        raise UserError(f"--indices {path} must have one dimension and integers, one per image")
    order = np.argsort(split.indices)
    places = order[np.searchsorted(split.indices, indices, sorter=order) % len(order)]
    if strangers := indices[split.indices[places] != indices][:1].tolist():
        raise UserError(f"--indices {path}: {strangers[0]} is not the index of a training image")
    return split.take(places)


def load_sample(subset: int | None = None, device: torch.device | str = "cpu") -> Split:
    """The 1,000 test images (100 per class) in this repository, or the first `subset` of them."""
    with np.load(SAMPLE) as file:
        return Split(
            torch.from_numpy(file["images"][:subset]).to(device),
            torch.from_numpy(file["labels"][:subset].astype(np.int64)).to(device),
            file["indices"][:subset],
        )


def stratified_split(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split into training and validation indices; the validation part is a tenth of each class.

    Integers (N,) -> two disjoint int64 arrays, in a random order that is the same in every run.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    classes = [order[labels[order] == label] for label in np.unique(labels)]
    val = np.concatenate([places[: round(0.1 * len(places))] for places in classes])
    held_out = np.isin(order, val)
    return order[~held_out], order[held_out]


def mean_and_std(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation per channel, in [0, 1], to four digits.

    They come from counts of the 256 levels, so they are exact. A channel of one level gets 0.001.
    """
    levels, means, stds = np.arange(256) / 255, [], []
    for channel in range(3):
        counts = np.bincount(images[..., channel].ravel(), minlength=256)
        mean = np.average(levels, weights=counts)
        std = np.average((levels - mean) ** 2, weights=counts) ** 0.5
        means.append(round(float(mean), 4))
        stds.append(max(0.001, round(float(std), 4)))
    return tuple(means), tuple(stds)


def _cifar10(folder: Path, download: bool) -> dict[str, np.ndarray]:
    cache = folder / "cifar10.npz"
    if cache.exists():
        return _read(cache, f"delete {cache} and run again", check_cifar10)
    arrays = fetch(folder, check_cifar10, download)
    if download:  # no file is written to other folders
        with replacing(cache) as file:
            np.savez(file, **arrays, classes=CLASSES)  # uncompressed, to be read quickly
    return arrays


def _cifar100() -> dict[str, np.ndarray]:
    """CIFAR-100, by torchvision, which downloads the files and checks their sums."""
    try:
        train, test = (CIFAR100(FOLDER, train=part, download=True) for part in (True, False))
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(
            f"--data cifar100 cannot be loaded ({error}): put {CIFAR100.filename} from "
            f"{CIFAR100.url} into {shown(FOLDER)}"
        ) from error
    arrays = arrays_of(train.data, train.targets, test.data, test.targets)
    return arrays | {"classes": np.array(train.classes)}


def _read(
    path: Path, remedy: str, check: Callable[[dict[str, np.ndarray]], None]
) -> dict[str, np.ndarray]:
    """Those of the four arrays and `classes` that pass `check`. Errors end with `remedy`."""
    try:
        arrays = read_arrays(path, [*SHA256, "classes", "val_images"])
        if "val_images" in arrays:
            raise UserError(
                f"{path} has val_images: put them into train_images, a tenth of which is held out"
            )
        if missing := [name for name in SHA256 if name not in arrays]:
            raise UserError(f"{path} has no {', '.join(missing)}")
        check(arrays)
    except UserError as error:
        named = "" if str(path) in str(error) else f"{path}: "
        raise UserError(f"{named}{error}; {remedy}") from error
    return arrays


def check_cifar10(arrays: dict[str, np.ndarray]) -> None:
    """Raise UserError unless these are the four arrays of CIFAR-10, byte for byte."""
    for name, expected in SHA256.items():
        digest = hashlib.sha256(np.ascontiguousarray(arrays[name])).hexdigest()
        if digest != expected:
            raise UserError(f"{name} has SHA-256 {digest[:12]}..., expected {expected[:12]}...")


def _check_own(arrays: dict[str, np.ndarray]) -> None:
    """Raise UserError unless the arrays are valid. Add `classes` if missing."""
    for name in ("train", "test"):
        images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
        side = images.shape[1] if images.ndim > 1 else 0
        shape = (*labels.shape, side, side, 3)
        if labels.ndim != 1 or not labels.size or images.shape != shape or side not in SIZES:
            raise UserError(
                f"{name}_images has shape {images.shape} and {name}_labels {labels.shape}, "
                f"expected (N, S, S, 3) and (N,), S from {SIZES[0]} to {SIZES[-1]}"
            )
        if images.dtype != np.uint8 or labels.dtype.kind not in "iu" or labels.min() < 0:
            raise UserError(f"{name}_images must be uint8, and {name}_labels integers from 0")
    if arrays["train_images"].shape[1] != arrays["test_images"].shape[1]:
        raise UserError("train_images and test_images have different sizes")
    count = 1 + max(int(arrays[f"{name}_labels"].max()) for name in ("train", "test"))
    named = arrays.get("classes")
    if (found := count if named is None else named.size) not in CLASS_COUNTS:
        raise UserError(f"number of classes: {found:,}, expected 2 to {CLASS_COUNTS[-1]:,}")
    names = arrays["classes"] = np.array(numbered(count)) if named is None else named
    if names.ndim != 1 or len(set(names.tolist())) < max(count, len(names)):
        raise UserError(f"classes must be different names, one for each label up to {count - 1}")


def fingerprint(tensors: Iterable[torch.Tensor]) -> str:
    """The first twelve hexadecimal digits of the SHA-256 of the tensors' bytes."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:12]


def data_facts(images: torch.Tensor, targets: torch.Tensor) -> str:
    """Description of the training images in a checkpoint: their number and fingerprint."""
    return f"{len(images)} images, SHA-256 {fingerprint([images, targets])}"


def normalize(images: torch.Tensor, data: DataSet = CIFAR10) -> torch.Tensor:
    """Normalize: uint8 (N, H, W, 3) -> float32 (N, 3, H, W), channels last in memory."""
    mean, std = _colors(data, images.device)
    return ((images - mean) / std).permute(0, 3, 1, 2)


@functools.lru_cache  # copying them to a GPU waits until it is idle
def _colors(data: DataSet, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (torch.tensor(color, device=device) * 255 for color in (data.mean, data.std))
    return mean, std
