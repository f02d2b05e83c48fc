"""CIFAR-10 as arrays, its fixed split, and augmented batches made by whole-batch tensor operations.

The images lie on the device as uint8 and no worker process touches them: what a batch needs
(order, crop, flip, cutout) is drawn once an epoch from (seed, epoch), so that any batch of any
epoch can be made again, on the CPU and on a GPU alike.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch

from utils.distributed import first_one_first
from utils.download import fetch
from utils.files import UserError, replacing

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
MEAN = (0.4914, 0.4822, 0.4465)  # of the training images, per channel, in [0, 1]
STD = (0.2470, 0.2435, 0.2616)
SAMPLE = Path(__file__).resolve().parent.parent / "data" / "sample.npz"
SHA256 = {
    "train_images": "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a",
    "train_labels": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test_images": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "test_labels": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}
SPLIT_SEED = 0  # not the run's: a validation image is never trained on, whatever the run


@dataclass
class Split:
    """Images of one split: uint8 (N, 32, 32, 3), labels int64 (N,), and their places in the set."""

    images: torch.Tensor
    labels: torch.Tensor
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: slice | np.ndarray) -> "Split":
        """Those at `places`, counted from 0, in that order."""
        return Split(self.images[places], self.labels[places], self.indices[places])


# ------------------------------------------------------------------ the arrays and their split


def load_splits(
    data: Path, subset: int | None = None, device: torch.device | str = "cpu"
) -> tuple[Split, Split, Split]:
    """The images to train on (45,000), to validate on (5,000, never trained on), and to test on.

    Args:
        data: the folder of CIFAR-10, which is downloaded into it where it is missing, or an .npz
            file of your own with `train_images`, `train_labels`, `test_images`, `test_labels`.
        subset: keep only so many images of each split, for a quick try.
        device: where the images are to lie.

    Raises:
        UserError: the images cannot be had, are damaged or have another shape or type.
    """
    with first_one_first():
        arrays = _own_arrays(data) if data.suffix == ".npz" else _cifar10(data)
    train, val = stratified_split(arrays["train_labels"])
    if not len(val):
        raise UserError(f"{data} has too few images of each class to hold out a tenth to validate")
    test = np.arange(len(arrays["test_labels"]))
    return tuple(
        Split(
            torch.from_numpy(arrays[f"{source}_images"][places]).to(device),
            torch.from_numpy(arrays[f"{source}_labels"][places].astype(np.int64)).to(device),
            places,
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
    if not path.exists():
        raise UserError(f"--indices {path}: no such file")
    try:
        indices = np.load(path)
    # A damaged file can fail in any of the ways of NumPy and zipfile.
    except Exception as error:
        raise UserError(f"--indices {path} is no .npy file of numbers: {error}") from error
    if not isinstance(indices, np.ndarray) or indices.ndim != 1 or indices.dtype.kind not in "iu":
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


def _cifar10(folder: Path) -> dict[str, np.ndarray]:
    cache = folder / "cifar10.npz"
    if cache.exists():
        return _read(cache, f"delete {cache} and run again to download it anew", check_cifar10)
    arrays = fetch(folder, check_cifar10)
    with replacing(cache) as file:
        np.savez(file, **arrays)  # uncompressed: the next start reads it in a fraction of a second
    return arrays


def _own_arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        raise UserError(f"{path}: no such file; --data-dir takes a folder or an .npz file")
    return _read(path, "see 'Train on your own images' in README.md", _check_own)


def _read(
    path: Path, remedy: str, check: Callable[[dict[str, np.ndarray]], None]
) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            arrays = {name: file[name] for name in SHA256}
        check(arrays)
    except UserError as error:
        raise UserError(f"{path}: {error}; {remedy}") from error
    # A damaged archive can fail in any of the ways of zipfile, zlib and NumPy.
    except Exception as error:
        raise UserError(f"{path} is damaged or incomplete ({error}): {remedy}") from error
    return arrays


def check_cifar10(arrays: dict[str, np.ndarray]) -> None:
    """Raise UserError unless these are CIFAR-10's four arrays, byte for byte."""
    for name, expected in SHA256.items():
        digest = hashlib.sha256(np.ascontiguousarray(arrays[name])).hexdigest()
        if digest != expected:
            raise UserError(f"{name} has SHA-256 {digest[:12]}..., expected {expected[:12]}...")


def _check_own(arrays: dict[str, np.ndarray]) -> None:
    for name in ("train", "test"):
        images, labels = arrays[f"{name}_images"], arrays[f"{name}_labels"]
        if labels.ndim != 1 or labels.size == 0:
            raise UserError(f"{name}_labels has shape {labels.shape}, expected one label an image")
        if images.dtype != np.uint8 or images.shape != (len(labels), 32, 32, 3):
            raise UserError(
                f"{name}_images is {images.dtype} {images.shape}, expected uint8 "
                f"({len(labels)}, 32, 32, 3) to go with its labels"
            )
        if labels.dtype.kind not in "iu" or not np.isin(labels, range(len(CLASSES))).all():
            raise UserError(f"{name}_labels must be integers from 0 to 9")


def fingerprint(tensors: Iterable[torch.Tensor]) -> str:
    """Twelve hexadecimal digits that differ where any byte of the tensors does (of SHA-256)."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().numpy())
    return digest.hexdigest()[:12]


# ------------------------------------------------------------------ batches


def normalize(images: torch.Tensor) -> torch.Tensor:
    """uint8 (N, 32, 32, 3) to float32 (N, 3, 32, 32) of mean 0 and deviation 1, channels last."""
    mean = torch.tensor(MEAN, device=images.device) * 255
    std = torch.tensor(STD, device=images.device) * 255
    return ((images - mean) / std).permute(0, 3, 1, 2)


@dataclass
class Augmentation:
    """What happens to a training image: random crop, horizontal flip, cutout.

    crop: pixels of reflection around the image before a 32x32 crop is taken.
    flip: mirror every other image, at random.
    cutout: side of the square set to the mean color, in pixels (DeVries and Taylor 2017).
    """

    crop: int = 4
    flip: bool = True
    cutout: int = 0


class Batches:
    """A split in shuffled, augmented batches; `steps` of them an epoch hold every image once.

    Args:
        images: uint8 (N, 32, 32, 3), on the device that trains.
        targets: (N, ...), what belongs to each image, on the same device.
        batch_size: at most so many images a batch; batches of an epoch differ by one at most, so
            that none is too small for batch norm.
        share: (k, n) deals each batch out to n processes and yields the k-th part of it, from 0.
    """

    def __init__(
        self,
        images: torch.Tensor,
        targets: torch.Tensor,
        batch_size: int,
        seed: int,
        augmentation: Augmentation,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        self.images, self.targets, self.seed = images, targets, seed
        self.augmentation, self.share = augmentation, share
        self.steps = math.ceil(len(images) / batch_size)

    def size(self, step: int) -> int:
        """Images in the batch of a step, counted from 0, over all processes."""
        return len(self.images) // self.steps + (step < len(self.images) % self.steps)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield normalized images (B, 3, 32, 32) and their targets (B, ...), from step `start` on.

        The order and every crop, flip and cutout depend on (seed, epoch) alone, not on `share`.
        """
        count, augmentation, (part, parts) = len(self.images), self.augmentation, self.share
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        order = torch.randperm(count, generator=generator)
        shifts = torch.randint(0, 2 * augmentation.crop + 1, (count, 2), generator=generator)
        flips = torch.randint(0, 2, (count,), generator=generator).bool() & augmentation.flip
        centers = torch.randint(0, 32, (count, 2), generator=generator)
        draws = (
            draw.to(self.images.device).tensor_split(self.steps)
            for draw in (order, shifts - augmentation.crop, flips, centers)
        )
        for batch in islice(zip(*draws, strict=True), start, None):
            places, shift, flip, center = (draw.tensor_split(parts)[part] for draw in batch)
            images = normalize(crop_and_flip(self.images[places], shift, flip))
            yield cut_out(images, center, augmentation.cutout), self.targets[places]


def crop_and_flip(images: torch.Tensor, shift: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
    """Move each image by `shift` pixels, with reflection beyond its edges, then mirror it.

    Args:
        images: uint8 (N, H, W, 3).
        shift: int64 (N, 2), rows and columns: output pixel (r, c) is input pixel (r + shift row,
            c + shift column).
        flip: bool (N,), where to mirror left and right after the crop.

    Returns:
        uint8 (N, H, W, 3).
    """
    count, height, width, channels = images.shape
    rows = _reflect(torch.arange(height, device=images.device) + shift[:, :1], height)
    columns = _reflect(torch.arange(width, device=images.device) + shift[:, 1:], width)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    first = torch.arange(count, device=images.device) * height * width
    pixels = first[:, None, None] + rows[:, :, None] * width + columns[:, None, :]
    chosen = images.reshape(-1, channels).index_select(0, pixels.flatten())  # indexing takes thrice
    return chosen.view(images.shape)


def _reflect(positions: torch.Tensor, size: int) -> torch.Tensor:
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)


def cut_out(images: torch.Tensor, center: torch.Tensor, side: int) -> torch.Tensor:
    """Set a square of `side` pixels around `center` (N, 2) to 0, the mean, in (N, 3, H, W)."""
    if side == 0:
        return images
    rows = torch.arange(images.shape[2], device=images.device) - center[:, :1] + side // 2
    columns = torch.arange(images.shape[3], device=images.device) - center[:, 1:] + side // 2
    in_rows, in_columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)
