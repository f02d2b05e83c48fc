"""The subjects of the benchmarks: each is a row of a table, with two sides to compare.

A side is a function that returns its piece: a function without arguments, which is called
repeatedly, does one piece of work, and returns its number of images.
"""

import itertools
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import plain
from models import NETWORKS, STUDENTS, TEACHER, network
from utils.augment import Augmentation, Batches
from utils.checkpoint import FILES, load_network
from utils.data import Split, load_splits
from utils.device import autocast, for_inference, to_device
from utils.logits import predict
from utils.method import distillation_loss
from utils.optim import optimizers
from utils.training_step import TrainingStep

STEM = "cifar-pool"
BATCH_SIZE = 128
Piece = Callable[[], int]


@dataclass
class Place:
    """Device, data, weights and sizes of a measurement."""

    device: torch.device
    data: str | Path
    checkpoint_dir: Path
    batch_size: int = BATCH_SIZE
    images: int | None = None  # images per piece; None: the default of the subject

    @cached_property
    def splits(self) -> tuple[Split, Split, Split]:
        return load_splits(self.data, None, self.device)

    def train(self, count: int) -> Split:
        """The first training images: `self.images` or, by default, `count`."""
        return self.splits[0].take(slice(self.images or count))

    def teacher(self) -> torch.nn.Module:
        return load_network(self.checkpoint_dir / FILES["teacher"], TEACHER)[0]

    def new(self, arch: str) -> torch.nn.Module:
        """Create an untrained network for the classes of the data set."""
        return network(arch, STEM, len(self.splits[0].classes))


def piece(batches: Callable[[], Iterable], work: Callable[..., object]) -> Piece:
    """The piece that does `work(*batch)` for all `batches()`."""

    def run() -> int:
        images = 0
        for batch in batches():
            work(*batch)
            images += len(batch[0])
        return images

    return run


# ------------------------------------------------------------------ training


class OurLoop:
    """The training step of teacherTrain.py or, with the teacher's logits, of StudentTrain.py."""

    def __init__(self, net: torch.nn.Module, device: torch.device) -> None:
        net, self.device = to_device(net, device).train(), device
        self.training = TrainingStep(net, optimizers(net, "muon", 1e-4, 0.9, 0.05))

    def step(
        self, images: torch.Tensor, labels: torch.Tensor, taught: torch.Tensor | None = None
    ) -> None:
        with autocast(self.device):
            kind = "none" if taught is None else "mse"
            loss = distillation_loss(self.training.outputs(images)[0], taught, labels, kind)
        self.training.update(loss)


def our_batches(split: Split, batch_size: int, cutout: int = 0, *rows: torch.Tensor) -> Callable:
    """A function that returns the batches of the next epoch; with `rows`, in a stored view."""
    augmentation, views = Augmentation(4, True, cutout), len(rows)
    batches = Batches(split.images, batch_size, 0, augmentation, views, data=split.data)
    epochs = itertools.count()
    return lambda: batches.epoch(next(epochs), split.labels, *rows)


def our_data(place: Place) -> Piece:
    return piece(our_batches(place.train(10_000), place.batch_size, 8), lambda *_: None)


def plain_data(place: Place) -> Piece:
    loader = plain.loader(place.train(10_000), place.batch_size, cutout=8)
    return piece(lambda: loader, lambda *batch: [each.to(place.device) for each in batch])


def our_epoch(place: Place, arch: str, distilled: bool = False) -> Piece:
    """With `distilled`, the teacher's logits are stored already, as from epoch 17 of a run."""
    split, rows = place.train(4 * place.batch_size), []
    if distilled:
        teacher = for_inference(place.teacher(), place.device)
        rows = [predict(teacher, split).half()]  # values do not matter
    batches = our_batches(split, place.batch_size, 0, *rows)
    return piece(batches, OurLoop(place.new(arch), place.device).step)


def plain_epoch(place: Place, arch: str, distilled: bool = False) -> Piece:
    loader = plain.loader(place.train(4 * place.batch_size), place.batch_size)
    teacher = place.teacher() if distilled else None
    return piece(lambda: loader, plain.Loop(place.new(arch), place.device, teacher).step)


def our_step(place: Place, arch: str) -> Piece:
    (batch,) = our_batches(place.splits[0].take(slice(place.batch_size)), place.batch_size)()
    return piece(lambda: [batch] * 4, OurLoop(place.new(arch), place.device).step)


def plain_step(place: Place, arch: str) -> Piece:
    batch = next(iter(plain.loader(place.splits[0], place.batch_size)))
    return piece(lambda: [batch] * 4, plain.Loop(place.new(arch), place.device).step)


# ------------------------------------------------------------------ all of them


class Subject(NamedTuple):
    """A row of the table: its label, and both sides."""

    label: str
    ours: Callable[[Place], Piece]
    plain: Callable[[Place], Piece]


def _training(name: str, label: str, *sides: Callable) -> dict[str, Subject]:
    """A subject for each student and, unless it is distillation, for the teacher."""
    archs = STUDENTS if "distillation" in name else (TEACHER, *STUDENTS)
    return {
        f"{name} {arch}": Subject(
            f"{label}, {NETWORKS[arch].title}", *(partial(side, arch=arch) for side in sides)
        )
        for arch in archs
    }


_distilled, _plain = (partial(side, distilled=True) for side in (our_epoch, plain_epoch))
_alone = "distillation beside training alone"
SUBJECTS = {
    "data": Subject("data: crop, flip, cutout, normalize", our_data, plain_data),
    **_training("step", "training step", our_step, plain_step),
    **_training("epoch", "epoch with its data", our_epoch, plain_epoch),
    **_training("distillation, training", _alone, _distilled, our_epoch),
    **_training("distillation", "distillation", _distilled, _plain),
}


# ------------------------------------------------------------------ the process of one side

_prepared: list[Callable[[], float]] = []  # the work of this process


def prepare(subject: str, side: str, threads: int | None, place: Place) -> None:
    """Prepare the piece of `side`, "ours" or "plain"."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    # Workers of a DataLoader start as in any script, though this process was spawned.
    multiprocessing.set_start_method(None, force=True)
    piece = getattr(SUBJECTS[subject], side)(place)

    def timed() -> float:
        started = time.perf_counter()
        images = piece()
        if place.device.type == "cuda":
            torch.cuda.synchronize()
        return images / (time.perf_counter() - started)

    _prepared.append(timed)


def work() -> float:
    """Do the piece of work. Returns images per second."""
    return _prepared[0]()


def peak() -> int:
    """The peak memory of this process in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
