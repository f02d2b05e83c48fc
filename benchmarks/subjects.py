"""What is measured: each subject is a row of the table, with our side and the plain one.

A side is a pair: a function that returns the batches of one piece of work, and what is done with
each batch. Plain is common practice, as in widely copied CIFAR-10 loops: torchvision's dataset with
one transform per image, a DataLoader with two workers, float32, PyTorch's default memory format,
SGD.
"""

import itertools
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

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
WORKERS = 2  # of the plain DataLoader
Side = tuple[Callable[[], Iterable], Callable[..., object]]


class OurLoop:
    """The training step of teacherTrain.py or, with the teacher's logits, of StudentTrain.py."""

    def __init__(self, net: nn.Module, device: torch.device) -> None:
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


class Cifar10(torchvision.datasets.CIFAR10):
    """torchvision's dataset with images that are in memory already, not in its pickle files."""

    def __init__(self, split: Split, transform: transforms.Compose) -> None:
        self.data, self.targets = split.images.cpu().numpy(), split.labels.tolist()
        self.transform, self.target_transform = transform, None


def plain_batches(split: Split, cutout: int = 0) -> DataLoader:
    """Shuffled batches with the same augmentation as in `utils.augment.Batches`."""
    data = split.data
    steps = [
        transforms.RandomCrop(data.size, padding=4, padding_mode="reflect"),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(data.mean, data.std),
    ]
    if cutout:
        area = cutout**2 / data.size**2
        steps.append(transforms.RandomErasing(p=1.0, scale=(area, area), ratio=(1.0, 1.0)))
    images = Cifar10(split, transforms.Compose(steps))
    return DataLoader(images, BATCH_SIZE, shuffle=True, num_workers=WORKERS)


class PlainLoop:
    """A usual training loop. With a teacher, the student learns its logits."""

    def __init__(self, net: nn.Module, device: torch.device, teacher: nn.Module | None = None):
        self.net, self.device, self.teacher = net.to(device), device, teacher
        self.optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        if teacher:
            teacher.to(device).eval()

    def step(self, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.net.train()
        images, labels = images.to(self.device), labels.to(self.device)
        self.optimizer.zero_grad()
        logits = self.net(images)
        if self.teacher:
            with torch.no_grad():
                target = self.teacher(images)
            loss = F.mse_loss(logits, target)
        else:
            loss = F.cross_entropy(logits, labels)
        loss.backward()
        self.optimizer.step()
        loss.item()  # for the progress line
        (logits.argmax(1) == labels).sum().item()


def our_data(train: Split) -> Side:
    return our_batches(train.take(slice(IMAGES)), CUTOUT), lambda *batch: None


def plain_data(train: Split) -> Side:
    loader = plain_batches(train.take(slice(IMAGES)), CUTOUT)
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
    loader, device = plain_batches(split), split.images.device
    batches = (lambda: loader) if data else partial(itertools.repeat, next(iter(loader)), 4)
    return batches, PlainLoop(network(arch, STEM, classes), device, teacher).step


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
