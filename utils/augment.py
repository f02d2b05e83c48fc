"""Shuffled, augmented batches, computed with tensor operations on whole batches.

The images stay on the device as uint8; there are no worker processes. Order, crops, flips, cutout
and contexts are drawn once per epoch from (seed, epoch), so any batch of any epoch can be
reproduced, on the CPU and on a GPU.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch

from utils import contexts
from utils.data import CIFAR10, DataSet, normalize


@dataclass(frozen=True)
class Augmentation:
    """Augmentation of a training image: random crop, horizontal flip, cutout.

    Args:
        crop: reflection padding before the random crop to the same size, in pixels.
        flip: flip horizontally with probability 0.5.
        cutout: side of the square set to the mean color, in pixels (DeVries and Taylor 2017).
    """

    crop: int = 4
    flip: bool = True
    cutout: int = 0

    def draw(self, count: int, size: int, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        """Draw the random choices for `count` images of `size` pixels: tensors (count, ...)."""
        shifts = torch.randint(0, 2 * self.crop + 1, (count, 2), generator=generator) - self.crop
        flips = torch.randint(0, 2, (count,), generator=generator).bool() & self.flip
        centers = torch.randint(0, size, (count, 2), generator=generator)
        return shifts, flips, centers

    def __call__(
        self,
        images: torch.Tensor,
        draws: Sequence[torch.Tensor],
        degrade: Callable[[torch.Tensor], torch.Tensor] = lambda images: images,
        data: DataSet = CIFAR10,
    ) -> torch.Tensor:
        """Augment and normalize: uint8 (N, H, W, 3) and `draw`s -> float32 (N, 3, H, W).

        `degrade` is applied to the uint8 images after crop and flip, before cutout.
        """
        shifts, flips, centers = draws
        images = degrade(crop_and_flip(images, shifts, flips))
        return cut_out(normalize(images, data), centers, self.cutout)


class Batches:
    """Shuffled, augmented batches. An epoch has `steps` batches, with each image exactly once.

    Args:
        images: uint8 (N, H, W, 3), on the training device.
        batch_size: maximum number of images per batch. The sizes of the batches of an epoch differ
            by at most one, so none is too small for batch norm.
        seed: with the epoch, determines the order and, if `views` is 0, the augmentation.
        augmentation: applied to each image.
        views: number of augmented views per image, the same for every seed: epoch e uses view
            e % views. 0: a new augmentation in every epoch.
        share: (k, n): yield part k (from 0) of each batch, for process k of n.
        context: a key of utils.contexts.CONTEXTS, applied to the images of `epoch`, not of `view`.
        data: of which data set; its mean and std normalize the images.
    """

    def __init__(
        self,
        images: torch.Tensor,
        batch_size: int,
        seed: int,
        augmentation: Augmentation,
        views: int = 0,
        share: tuple[int, int] = (0, 1),
        context: str = "clean",
        data: DataSet = CIFAR10,
    ) -> None:
        self.images, self.seed, self.augmentation = images, seed, augmentation
        self.views, self.share, self.context, self.data = views, share, context, data
        self.steps = math.ceil(len(images) / batch_size)

    def size(self, step: int) -> int:
        """Number of images in the batch of `step` (from 0), over all processes."""
        return len(self.images) // self.steps + (step < len(self.images) % self.steps)

    def epoch(
        self, epoch: int, *rows: torch.Tensor, start: int = 0, clean: bool = False
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield batches: normalized images (B, 3, H, W) and the B matching rows of each tensor.

        Args:
            epoch: counted from 0.
            rows: tensors (N, ...) on the images' device, for example labels; row i is of image i.
            start: the first step, counted from 0.
            clean: also yield, as the last item, the same crops in the context "clean".
        """
        part, parts = self.share
        generator = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        order = torch.randperm(len(self.images), generator=generator)
        if self.views:
            draws = [draw[order] for draw in self._view(epoch % self.views)]
        else:
            draws = self._draw(generator)
        seeds = contexts.draw(len(order), generator)  # used on the CPU only
        columns = (*(draw.to(self.images.device) for draw in (order, *draws)), seeds)
        pieces = zip(*(column.tensor_split(self.steps) for column in columns), strict=True)
        for batch in islice(pieces, start, None):
            places, *drawn, seeds = (column.tensor_split(parts)[part] for column in batch)
            images = self.images[places]
            degrade = partial(contexts.degrade, context=self.context, seeds=seeds)
            seen = self.augmentation(images, drawn, degrade, self.data)
            shown = [seen, *(each[places] for each in rows)]
            if clean:
                same = self.context == "clean"
                shown.append(seen if same else self.augmentation(images, drawn, data=self.data))
            yield tuple(shown)

    def view(self, view: int, places: torch.Tensor) -> torch.Tensor:
        """View number `view` (from 0) of the images at `places`, int64 (B,): normalized, clean."""
        places = places.to(self.images.device)
        draws = [draw.to(places.device)[places] for draw in self._view(view)]
        return self.augmentation(self.images[places], draws, data=self.data)

    def _view(self, view: int) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(-1 - view)  # negative: differs from run seeds
        return self._draw(generator)

    def _draw(self, generator: torch.Generator) -> tuple[torch.Tensor, ...]:
        return self.augmentation.draw(len(self.images), self.images.shape[1], generator)


def crop_and_flip(images: torch.Tensor, shift: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
    """Shift each image with reflection padding, then flip it horizontally: uint8 (N, H, W, 3).

    Args:
        shift: int64 (N, 2), rows and columns, in pixels: output pixel (r, c) is input pixel
            (r + shift row, c + shift column).
        flip: bool (N,), which images to flip.
    """
    count, height, width, channels = images.shape
    rows = _reflect(torch.arange(height, device=images.device) + shift[:, :1], height)
    columns = _reflect(torch.arange(width, device=images.device) + shift[:, 1:], width)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    first = torch.arange(count, device=images.device) * height * width
    pixels = first[:, None, None] + rows[:, :, None] * width + columns[:, None, :]
    # index_select: indexing with brackets is three times slower.
    chosen = images.reshape(-1, channels).index_select(0, pixels.flatten())
    return chosen.view(images.shape)


def _reflect(positions: torch.Tensor, size: int) -> torch.Tensor:
    positions = positions.abs()
    return torch.where(positions >= size, 2 * (size - 1) - positions, positions)


def cut_out(images: torch.Tensor, center: torch.Tensor, side: int) -> torch.Tensor:
    """Set a square of `side` pixels around `center` (N, 2) to 0, the mean color.

    `images` are normalized, (N, 3, H, W).
    """
    if side == 0:
        return images
    rows = torch.arange(images.shape[2], device=images.device) - center[:, :1] + side // 2
    columns = torch.arange(images.shape[3], device=images.device) - center[:, 1:] + side // 2
    in_rows, in_columns = (rows >= 0) & (rows < side), (columns >= 0) & (columns < side)
    return images.masked_fill((in_rows[:, :, None] & in_columns[:, None, :])[:, None], 0)
