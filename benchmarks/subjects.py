"""What is measured: a subject has two sides, each a function that sets up and returns its work.

The work, a piece, is called again and again, and returns how many images it took.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

import torch
import torch.nn.functional as F

from benchmarks import plain
from models import STUDENTS, MultiStudent, network
from utils.checkpoint import FILES, check_students, load_network
from utils.data import Augmentation, Batches, Split, load_splits
from utils.device import autocast, for_inference, to_device
from utils.distillation import distillation_loss
from utils.train import Recipe, Trainer, classification, predict

STEM = "cifar-pool"
BATCH_SIZE = 128
Piece = Callable[[], int]


@dataclass
class Place:
    """Where and on what is measured."""

    device: torch.device
    data_dir: Path
    checkpoint_dir: Path
    batch_size: int = BATCH_SIZE
    images: int | None = None  # a piece; None: as the subject says
    _splits: tuple[Split, ...] | None = field(default=None, repr=False)

    def split(self, which: int, count: int) -> Split:
        """So many images to train on (0) or to test on (2)."""
        if self._splits is None:
            self._splits = load_splits(self.data_dir, None, self.device)
        return self._splits[which].take(slice(count))

    def load(self, arch: str) -> torch.nn.Module:
        """The network as shipped, made ready to answer."""
        net = load_network(self.checkpoint_dir / FILES[arch], arch)[0]
        return for_inference(net, self.device)


# ------------------------------------------------------------------ training


def our_data(place: Place) -> Piece:
    split = place.split(0, place.images or 10_000)
    batches = Batches(
        split.images, split.labels, place.batch_size, 0, Augmentation(4, True, cutout=8)
    )
    epochs = iter(range(10**9))
    return lambda: sum(len(labels) for _, labels in batches.epoch(next(epochs)))


def plain_data(place: Place) -> Piece:
    loader = plain.loader(place.split(0, place.images or 10_000), place.batch_size, cutout=8)
    return lambda: sum(len(labels.to(place.device)) for _, labels in loader)


def our_trainer(place: Place, arch: str, count: int, distilled: bool) -> Trainer:
    split, teacher = place.split(0, count), None
    if distilled:
        teacher = place.load("resnet50")

    def loss(images: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if teacher is None:
            return F.cross_entropy(logits.float(), labels)
        with torch.no_grad(), autocast(place.device):
            target = teacher(images)
        return distillation_loss(logits, target, labels)

    recipe = Recipe(
        10**6, place.batch_size, 1e-4, "adamw", 0.9, 0.05, 0.2, 0, Augmentation(4, True, 0)
    )
    net = to_device(network(arch, STEM), place.device).train()
    path = Path(mkdtemp()) / "unused.pth"
    return Trainer(
        net, path, arch, STEM, recipe, {}, split.images, split.labels, loss=loss,
        **classification(split),
    )  # fmt: skip


def our_epoch(place: Place, arch: str, distilled: bool = False) -> Piece:
    trainer = our_trainer(place, arch, place.images or 4 * place.batch_size, distilled)
    epochs = iter(range(10**9))

    def piece() -> int:
        for step, (images, labels) in enumerate(trainer.batches.epoch(next(epochs))):
            trainer.step(images, labels, trainer.batches.size(step))
        return len(trainer.batches.images)

    return piece


def plain_epoch(place: Place, arch: str, distilled: bool = False) -> Piece:
    loader = plain.loader(place.split(0, place.images or 4 * place.batch_size), place.batch_size)
    teacher = None
    if distilled:
        teacher, _ = load_network(place.checkpoint_dir / FILES["resnet50"], "resnet50")
    loop = plain.Loop(network(arch, STEM), place.device, teacher)

    def piece() -> int:
        for images, labels in loader:
            loop.step(images, labels)
        return len(loader.dataset)

    return piece


def our_step(place: Place, arch: str) -> Piece:
    trainer = our_trainer(place, arch, place.batch_size, distilled=False)
    images, labels = next(trainer.batches.epoch(0))

    def piece() -> int:
        for _ in range(4):
            trainer.step(images, labels, len(labels))
        return 4 * len(labels)

    return piece


def plain_step(place: Place, arch: str) -> Piece:
    loop = plain.Loop(network(arch, STEM), place.device)
    images, labels = next(iter(plain.loader(place.split(0, place.batch_size), place.batch_size)))

    def piece() -> int:
        for _ in range(4):
            loop.step(images, labels)
        return 4 * len(labels)

    return piece


# ------------------------------------------------------------------ inference


def routed(place: Place, count: int) -> Piece:
    path = place.checkpoint_dir / FILES["selector"]
    selector, facts = load_network(path, "selector")
    trained = [load_network(place.checkpoint_dir / FILES[arch], arch)[0] for arch in STUDENTS]
    check_students(path, facts, trained)
    *students, selector = (for_inference(net, place.device) for net in (*trained, selector))
    system = MultiStudent(students, selector, facts["threshold"]).eval()
    return _predicting([system], place, count)


def teacher(place: Place, count: int) -> Piece:
    return _predicting([place.load("resnet50")], place, count)


def everything(place: Place, count: int) -> Piece:
    """The published way: the selector and both students run on every image."""
    names = ("selector", *STUDENTS)
    nets = [place.load(arch) for arch in names]
    return _predicting(nets, place, count)


def _predicting(nets: list[torch.nn.Module], place: Place, count: int) -> Piece:
    images = place.split(2, count).images
    repeats = 1 if count > 1 else 20

    def piece() -> int:
        for _ in range(repeats):
            for net in nets:
                predict(net, images)
        return repeats * len(images)

    return piece


# ------------------------------------------------------------------ all of them

SUBJECTS: dict[str, tuple[Callable[[Place], Piece], Callable[[Place], Piece]]] = {
    "data": (our_data, plain_data)
}
for _arch in ("resnet50", *STUDENTS):
    SUBJECTS[f"step {_arch}"] = (
        lambda place, arch=_arch: our_step(place, arch),
        lambda place, arch=_arch: plain_step(place, arch),
    )
for _arch in ("resnet50", *STUDENTS):
    SUBJECTS[f"epoch {_arch}"] = (
        lambda place, arch=_arch: our_epoch(place, arch),
        lambda place, arch=_arch: plain_epoch(place, arch),
    )
for _arch in STUDENTS:
    SUBJECTS[f"distillation {_arch}"] = (
        lambda place, arch=_arch: our_epoch(place, arch, distilled=True),
        lambda place, arch=_arch: plain_epoch(place, arch, distilled=True),
    )
SUBJECTS |= {
    "routed, teacher": (
        lambda place: routed(place, place.images or 2000),
        lambda place: teacher(place, place.images or 2000),
    ),
    "routed, all": (
        lambda place: routed(place, place.images or 2000),
        lambda place: everything(place, place.images or 2000),
    ),
    "one image": (lambda place: routed(place, 1), lambda place: teacher(place, 1)),
}
