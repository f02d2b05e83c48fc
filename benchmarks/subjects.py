"""The subjects of the benchmarks. Each side of a subject is a function that returns its piece.

A piece is a function without arguments. It is called repeatedly, does one piece of work, and
returns its number of images.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from benchmarks import plain
from evaluation.export import PACKAGES, onnx_bytes
from models import SELECTED, STUDENTS, TEACHER, MultiStudent, network, offsets_of
from utils.augment import Augmentation, Batches
from utils.checkpoint import EXPECTED, FILES, load_network, load_parts
from utils.data import Split, load_splits
from utils.device import autocast, for_inference, to_device
from utils.logits import predict
from utils.method import distillation_loss
from utils.optim import optimizers
from utils.training_step import TrainingStep

STEM = "cifar-pool"
BATCH_SIZE = 128
SINGLE = 40  # number of images for batches of one image
Piece = Callable[[], int]


@dataclass
class Place:
    """Device, data, weights and sizes of a measurement."""

    device: torch.device
    data_dir: Path
    checkpoint_dir: Path
    batch_size: int = BATCH_SIZE
    images: int | None = None  # images per piece; None: the default of the subject
    _splits: tuple[Split, ...] | None = field(default=None, repr=False)

    def split(self, which: int, count: int) -> Split:
        """The first `count` images of the training (0) or test (2) split."""
        if self._splits is None:
            self._splits = load_splits(self.data_dir, None, self.device)
        return self._splits[which].take(slice(count))

    def load(self, name: str) -> torch.nn.Module:
        """Load a network of `checkpoint_dir` for inference; `name` is a key of FILES."""
        net = load_network(self.checkpoint_dir / FILES[name], EXPECTED[name])[0]
        return for_inference(net, self.device)

    def new(self, arch: str) -> torch.nn.Module:
        """Create an untrained network for the classes of the data set."""
        return network(arch, STEM, len(self.split(0, 1).classes))


# ------------------------------------------------------------------ training


def our_data(place: Place) -> Piece:
    split = place.split(0, place.images or 10_000)
    batches = Batches(split.images, place.batch_size, 0, Augmentation(4, True, cutout=8))
    epochs = iter(range(10**9))
    return lambda: sum(len(labels) for _, labels in batches.epoch(next(epochs), split.labels))


def plain_data(place: Place) -> Piece:
    loader = plain.loader(place.split(0, place.images or 10_000), place.batch_size, cutout=8)
    return lambda: sum(len(labels.to(place.device)) for _, labels in loader)


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


def our_epoch(place: Place, arch: str, distilled: bool = False) -> Piece:
    """With `distilled`, the teacher's logits are stored already, as from epoch 17 of a run."""
    split = place.split(0, place.images or 4 * place.batch_size)
    batches = Batches(split.images, place.batch_size, 0, Augmentation(4, True, 0), int(distilled))
    rows = [split.labels]
    if distilled:
        rows.append(predict(place.load("teacher"), split.images).half())  # values do not matter
    loop, epochs = OurLoop(place.new(arch), place.device), iter(range(10**9))

    def piece() -> int:
        for batch in batches.epoch(next(epochs), *rows):
            loop.step(*batch)
        return len(split)

    return piece


def plain_epoch(place: Place, arch: str, distilled: bool = False) -> Piece:
    loader = plain.loader(place.split(0, place.images or 4 * place.batch_size), place.batch_size)
    teacher = None
    if distilled:
        teacher, _ = load_network(place.checkpoint_dir / FILES["teacher"], TEACHER)
    loop = plain.Loop(place.new(arch), place.device, teacher)

    def piece() -> int:
        for images, labels in loader:
            loop.step(images, labels)
        return len(loader.dataset)

    return piece


def our_step(place: Place, arch: str) -> Piece:
    split = place.split(0, place.batch_size)
    batches = Batches(split.images, place.batch_size, 0, Augmentation(4, True, 0))
    ((images, labels),) = batches.epoch(0, split.labels)
    loop = OurLoop(place.new(arch), place.device)

    def piece() -> int:
        for _ in range(4):
            loop.step(images, labels)
        return 4 * len(labels)

    return piece


def plain_step(place: Place, arch: str) -> Piece:
    loop = plain.Loop(place.new(arch), place.device)
    images, labels = next(iter(plain.loader(place.split(0, place.batch_size), place.batch_size)))

    def piece() -> int:
        for _ in range(4):
            loop.step(images, labels)
        return 4 * len(labels)

    return piece


# ------------------------------------------------------------------ inference


def routed(place: Place, count: int | None = None) -> Piece:
    parts, offsets = _parts(place)
    *students, selector = (for_inference(net, place.device) for net, _ in parts)
    return _predicting([MultiStudent(students, selector, offsets).eval()], place, count)


def onnx_routed(place: Place, count: int) -> Piece:
    """`routed` with ONNX Runtime, as in docs/export.md, with the same number of threads."""
    import onnxruntime

    parts, offsets = _parts(place)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    *students, selector = (
        onnxruntime.InferenceSession(onnx_bytes(*network), options) for network in parts
    )
    questions, classes = _questions(place, count), len(parts[0][1]["classes"])
    questions = [images.numpy() for images in questions]

    def piece() -> int:
        for images in questions:
            (scores,) = selector.run(None, {"images": images})
            choice = (scores + offsets.numpy()).argmax(axis=1)
            logits = np.empty((len(images), classes), np.float32)
            for k, student in enumerate(students):
                if (chosen := choice == k).any():
                    logits[chosen] = student.run(None, {"images": images[chosen]})[0]
        return sum(map(len, questions))

    return piece


def _parts(place: Place) -> tuple[list, torch.Tensor]:
    """The students and the selector, each with its checkpoint dictionary, and the offsets."""
    parts = load_parts(lambda file: place.checkpoint_dir / file, (*SELECTED, "selector"))
    return list(parts.values()), offsets_of(parts["selector"][1]["thresholds"])


def teacher(place: Place, count: int | None = None) -> Piece:
    return _predicting([place.load("teacher")], place, count)


def everything(place: Place, count: int | None = None) -> Piece:
    """The published inference: the selector and both students run on every image."""
    names = ("selector", *STUDENTS)
    nets = [place.load(arch) for arch in names]
    return _predicting(nets, place, count)


def _predicting(nets: list[torch.nn.Module], place: Place, count: int | None) -> Piece:
    questions = _questions(place, count)

    def piece() -> int:
        for images in questions:
            for net in nets:
                predict(net, images)
        return sum(map(len, questions))

    return piece


def _questions(place: Place, count: int | None) -> list[torch.Tensor]:
    """Test images in batches of `count`. For single images, several, as students may differ."""
    count = count or place.images or 2000
    return list(place.split(2, SINGLE if count == 1 else count).images.split(count))


# ------------------------------------------------------------------ all of them

Sides = tuple[Callable[[Place], Piece], Callable[[Place], Piece]]  # ours and plain
SUBJECTS: dict[str, Sides] = {"data": (our_data, plain_data)}
for _name, *_sides in (("step", our_step, plain_step), ("epoch", our_epoch, plain_epoch)):
    for _arch in (TEACHER, *STUDENTS):
        SUBJECTS[f"{_name} {_arch}"] = tuple(partial(side, arch=_arch) for side in _sides)
for _arch in STUDENTS:
    _ours = partial(our_epoch, arch=_arch, distilled=True)
    SUBJECTS[f"distillation, training {_arch}"] = _ours, partial(our_epoch, arch=_arch)
    SUBJECTS[f"distillation {_arch}"] = _ours, partial(plain_epoch, arch=_arch, distilled=True)
SUBJECTS |= {
    "routed, teacher": (routed, teacher),
    "routed, all": (routed, everything),
    "one image": (partial(routed, count=1), partial(teacher, count=1)),
}
ONNX = {
    f"ONNX Runtime, {words}": (partial(onnx_routed, count=count), partial(routed, count=count))
    for words, count in (("one image", 1), ("128 images", 128))
}
SUBJECTS |= ONNX


def left_out(subject: str, device: torch.device) -> str | None:
    """The reason why a subject cannot be measured here; None if it can."""
    if subject in ONNX and device.type != "cpu":
        return "it is measured on the CPU"
    if subject in ONNX and not all(map(find_spec, PACKAGES.split())):
        return f"it needs more packages: pip install {PACKAGES}"
    return None
