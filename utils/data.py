"""CIFAR-10 or a data set of your own as arrays on the device, and its fixed split."""

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from models import CLASS_COUNTS
from utils.distributed import first_one_first
from utils.download import fetch
from utils.files import UserError, replacing, shown
from utils.safe_load import read_array, read_arrays

CLASSES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
MEAN = (0.4914, 0.4822, 0.4465)  # of the training images, per channel, in [0, 1]
STD = (0.2470, 0.2435, 0.2616)
FOLDER = Path(__file__).resolve().parent.parent / "data"  # the only one that is downloaded into
SAMPLE = FOLDER / "sample.npz"
MAX_NAME = 40  # characters
SHA256 = {
    "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}
SPLIT_SEED = 0  # not the run's: a validation image is never trained on, whatever the run


@dataclass
class Split:
    """Images of one split: uint8 (N, 32, 32, 3), labels int64 (N,), and their places in the set.

    classes: their names, in the order of the labels.
    name: of the data set.
    """

    images: torch.Tensor
    labels: torch.Tensor
    indices: np.ndarray
    classes: tuple[str, ...] = CLASSES
    name: str = "CIFAR-10"

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: slice | np.ndarray) -> "Split":
        """Those at `places`, counted from 0, in that order."""
        return replace(
            self,
            images=self.images[places],
            labels=self.labels[places],
            indices=self.indices[places],
        )


def listed(classes: Sequence[str]) -> str:
    """How many classes there are, and their names, of which more than ten are not all written."""
    names = classes if len(classes) <= 10 else [*classes[:3], "...", classes[-1]]
    return f"{len(classes):,} classes: {', '.join(names)}"


def described(*splits: Split) -> str:
    """The data set, its images in these splits, and its classes."""
    images = sum(map(len, splits))
    return f"{splits[0].name}, {images:,} images, {listed(splits[0].classes)}"


def numbered(count: int) -> list[str]:
    """The names of so many classes that have none."""
    return [f"class {k}" for k in range(count)]


# ------------------------------------------------------------------ the arrays and their split


def load_splits(
    data: Path, subset: int | None = None, device: torch.device | str = "cpu"
) -> tuple[Split, Split, Split]:
    """The images to train on (45,000), to validate on (5,000, never trained on), and to test on.

    Args:
        data: the folder of CIFAR-10, which is downloaded only into FOLDER, or an .npz file of your
            own with `train_images`, `train_labels`, `test_images`, `test_labels` and, if you like,
            `classes`: their names, else "class 0" and so on.
        subset: keep only so many images of each split, for a quick try.
        device: where the images are to lie.

    Raises:
        UserError: the images cannot be had, are damaged or have another shape or type.
    """
    with first_one_first():
        if is_default(data) or os.path.isdir(data):
            arrays, classes, name = _cifar10(data), CLASSES, "CIFAR-10"
        else:
            arrays, name = _own_arrays(data), str(data)
            classes = tuple(map(str, arrays["classes"]))
    train, val = stratified_split(arrays["train_labels"])
    if not len(val):
        raise UserError(f"{data} has too few images of each class to hold out a tenth to validate")
    test = np.arange(len(arrays["test_labels"]))
    return tuple(
        Split(
            torch.from_numpy(arrays[f"{source}_images"][places]).to(device),
            torch.from_numpy(arrays[f"{source}_labels"][places].astype(np.int64)).to(device),
            places,
            classes,
            name,
        )
        for source, places in (
            ("train", train[:subset]),
            ("train", val[:subset]),
            ("test", test[:subset]),
        )
    )


def named_images(split: Split, path: Path) -> Split:
    """The images of `split` whose indices, as in `Split.indices`, lie at `path`, as often as there.

    Args:
        path: a .npy file, integers (M,).

    Raises:
        UserError: it cannot be read, has another shape or type, or names an image that is not in
            the split, such as one held out for validation.
    """
    try:
        indices = read_array(path)
    except UserError as error:
        raise UserError(f"--indices {error}") from error
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise UserError(f"--indices {path} must hold whole numbers in one row, one an image")
    order = np.argsort(split.indices)
    places = order[np.searchsorted(split.indices, indices, sorter=order) % len(order)]
    if strangers := indices[split.indices[places] != indices][:1].tolist():
        raise UserError(f"--indices {path}: {strangers[0]} is no image to train on")
    if not len(indices):
        raise UserError(f"--indices {path} names no image")
    return split.take(places)


def load_sample(subset: int | None = None, device: torch.device | str = "cpu") -> Split:
    """The 1,000 test images, 100 a class, that come with the repository, or `subset` of them."""
    with np.load(SAMPLE) as file:
        return Split(
            torch.from_numpy(file["images"][:subset]).to(device),
            torch.from_numpy(file["labels"][:subset].astype(np.int64)).to(device),
            file["indices"][:subset],
        )


def stratified_split(labels: np.ndarray, share: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Places to train on and places to validate on, `share` of each class: the same in every run.

    Args:
        labels: integers (N,).

    Returns:
        Two disjoint int64 arrays in random order that together hold 0 .. N - 1 once each.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    val = np.concatenate(
        [places[: round(share * len(places))] for places in _by_class(order, labels)]
    )
    held_out = np.isin(order, val)
    return order[~held_out], order[held_out]


def _by_class(order: np.ndarray, labels: np.ndarray) -> list[np.ndarray]:
    return [order[labels[order] == label] for label in np.unique(labels)]


def is_default(data: Path) -> bool:
    """Whether it is FOLDER, whatever way it is written."""
    return os.path.realpath(data) == os.path.realpath(FOLDER)


def _cifar10(folder: Path) -> dict[str, np.ndarray]:
    cache, default = folder / "cifar10.npz", is_default(folder)
    if cache.exists():
        anew = "to download it anew" if default else "with another --data-dir"
        return _read(cache, f"delete {cache} and run again {anew}", check_cifar10)
    arrays = fetch(folder, check_cifar10, download=default)
    if default:  # no other folder is written to
        with replacing(cache) as file:
            # Uncompressed: the next start reads it in no time.
            np.savez(file, **arrays, classes=CLASSES)
    return arrays


def _own_arrays(path: Path) -> dict[str, np.ndarray]:
    """Its four arrays, and `classes`, made up where they are not in it."""
    if not path.exists():
        raise UserError(
            f"--data-dir {path}: no such file or folder; leave it out to download CIFAR-10 into "
            f"{shown(FOLDER)}"
        )
    remedy = "see 'Your own data' in README.md"
    if path.suffix.lower() == ".npy":
        raise UserError(f"{path} is one array: put all four into one .npz file; {remedy}")
    return _read(path, remedy, _check_own)


def _read(
    path: Path, remedy: str, check: Callable[[dict[str, np.ndarray]], None]
) -> dict[str, np.ndarray]:
    try:
        arrays = read_arrays(path, [*SHA256, "classes"])
        if missing := [name for name in SHA256 if name not in arrays]:
            raise UserError(f"{path} has no {', '.join(missing)}")
    except UserError as error:
        raise UserError(f"{error}; {remedy}") from error
    try:
        check(arrays)
    except UserError as error:
        raise UserError(f"{path}: {error}; {remedy}") from error
    return arrays


def check_cifar10(arrays: dict[str, np.ndarray]) -> None:
    """Raise UserError unless these are CIFAR-10's four arrays, byte for byte."""
    for name, expected in SHA256.items():
        digest = hashlib.sha256(np.ascontiguousarray(arrays[name])).hexdigest()
        if digest != expected:
            raise UserError(f"{name} has SHA-256 {digest[:12]}..., expected {expected[:12]}...")


def are_names(names: Sequence[object]) -> bool:
    """Whether they can be those of classes: 2 to 1,000 distinct ones of printable characters."""
    return (
        len(names) in CLASS_COUNTS
        and all(isinstance(it, str) and it.isprintable() and it.strip() for it in names)
        and max(map(len, names)) <= MAX_NAME
        and len(set(names)) == len(names)
    )


def _check_own(arrays: dict[str, np.ndarray]) -> None:
    """Raise UserError unless they are images, labels and classes; number the latter if missing."""
    named = arrays.get("classes")
    if named is not None and not (named.ndim == 1 and are_names(named.tolist())):
        raise UserError(
            f"classes must be 2 to {CLASS_COUNTS[-1]:,} different names in one row, each of 1 to "
            f"{MAX_NAME} printable characters"
        )
    top = CLASS_COUNTS[-1] - 1 if named is None else len(named) - 1
    for name in ("train", "test"):
        images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
        if labels.ndim != 1 or labels.size == 0:
            raise UserError(f"{name}_labels has shape {labels.shape}, expected one label an image")
        if images.dtype != np.uint8 or images.shape != (len(labels), 32, 32, 3):
            raise UserError(
                f"{name}_images is {images.dtype} {images.shape}, expected uint8 "
                f"({len(labels)}, 32, 32, 3) to go with its labels"
            )
        if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() > top:
            raise UserError(f"{name}_labels must be integers from 0 to {top}")
    if named is None:
        count = 1 + max(int(arrays[f"{name}_labels"].max()) for name in ("train", "test"))
        if count < 2:
            raise UserError("all images are of one class: there is nothing to tell apart")
        arrays["classes"] = np.array(numbered(count))


def fingerprint(tensors: Iterable[torch.Tensor]) -> str:
    """Twelve hexadecimal digits that differ where any byte of the tensors does (of SHA-256)."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:12]


def data_facts(images: torch.Tensor, targets: torch.Tensor) -> str:
    """What a checkpoint says of the images that it was trained on."""
    return f"{len(images)} images, SHA-256 {fingerprint([images, targets])}"


def normalize(images: torch.Tensor) -> torch.Tensor:
    """uint8 (N, 32, 32, 3) to float32 (N, 3, 32, 32) of mean 0 and deviation 1, channels last."""
    mean, std = (
        torch.tensor(color, device=images.device, dtype=torch.float32) * 255
        for color in (MEAN, STD)
    )
    return ((images - mean) / std).permute(0, 3, 1, 2)
