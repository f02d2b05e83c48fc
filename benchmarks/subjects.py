"""What is measured: each subject is a row of the table, with our side and the plain one.

A side is a pair: a function that returns the batches of one piece of work, and what is done with
each batch.
"""

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch

from benchmarks import plain
from models import NETWORKS, STUDENTS, TEACHER, network
from utils.augment import Augmentation, Batches
from utils.data import Split
from utils.device import autocast, to_device
from utils.method import distillation_loss
from utils.optim import optimizers
from utils.training_step import TrainingStep

STEM = "cifar-pool"
BATCH_SIZE = 128
IMAGES = 10_000  # for "data"; the other subjects take four batches
CUTOUT = 8  # for "data"
Side = tuple[Callable[[], Iterable], Callable[..., object]]


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


def our_batches(split: Split, cutout: int = 0, *rows: torch.Tensor) -> Callable[[], Iterable]:
    """A function that returns the batches of the next epoch; with `rows`, in a stored view."""
    augmentation, views = Augmentation(4, True, cutout), len(rows)
    batches = Batches(split.images, BATCH_SIZE, 0, augmentation, views, data=split.data)
    epochs = itertools.count()
    return lambda: batches.epoch(next(epochs), split.labels, *rows)


def our_data(train: Split) -> Side:
    return our_batches(train.take(slice(IMAGES)), CUTOUT), lambda *batch: None


def plain_data(train: Split) -> Side:
    loader = plain.loader(train.take(slice(IMAGES)), BATCH_SIZE, CUTOUT)
    return lambda: loader, lambda *batch: [each.to(train.images.device) for each in batch]


def our_training(train: Split, arch: str, distilled: bool = False, data: bool = True) -> Side:
    """An epoch. With `distilled`, the teacher's logits are stored already, as from epoch 17 on.

    Without `data`, the first batch is used again and again.
    """
    split, classes = train.take(slice(4 * BATCH_SIZE)), len(train.classes)
    # The values of the logits do not matter for the time.
    rows = [split.images.new_zeros(len(split), classes, dtype=torch.half)] * distilled
    batches, device = our_batches(split, 0, *rows), split.images.device
    if not data:
        batches = partial(itertools.repeat, next(iter(batches())), 4)
    return batches, OurLoop(network(arch, STEM, classes), device).step


def plain_training(train: Split, arch: str, distilled: bool = False, data: bool = True) -> Side:
    """The same. With `distilled`, the teacher runs on each batch; its weights are random."""
    split, classes = train.take(slice(4 * BATCH_SIZE)), len(train.classes)
    teacher = network(TEACHER, STEM, classes) if distilled else None
    loader, device = plain.loader(split, BATCH_SIZE), split.images.device
    batches = (lambda: loader) if data else partial(itertools.repeat, next(iter(loader)), 4)
    return batches, plain.Loop(network(arch, STEM, classes), device, teacher).step


class Subject(NamedTuple):
    """A row of the table: its label, and both sides."""

    label: str
    ours: Callable[[Split], Side]
    plain: Callable[[Split], Side]


def _training(name: str, label: str, ours: Callable, plain: Callable) -> dict[str, Subject]:
    """A subject for each student and, unless it is distillation, for the teacher."""
    archs = STUDENTS if "distillation" in name else (TEACHER, *STUDENTS)
    return {
        f"{name} {arch}": Subject(
            f"{label}, {NETWORKS[arch].title}", partial(ours, arch=arch), partial(plain, arch=arch)
        )
        for arch in archs
    }


_step, _plain_step = partial(our_training, data=False), partial(plain_training, data=False)
_distilled = partial(our_training, distilled=True)
_plain_distilled = partial(plain_training, distilled=True)
_alone = "distillation beside training alone"
SUBJECTS = {
    "data": Subject("data: crop, flip, cutout, normalize", our_data, plain_data),
    **_training("step", "training step", _step, _plain_step),
    **_training("epoch", "epoch with its data", our_training, plain_training),
    **_training("distillation, training", _alone, _distilled, our_training),
    **_training("distillation", "distillation", _distilled, _plain_distilled),
}
