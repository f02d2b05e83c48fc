"""The subjects of the benchmarks: each is a row of a table, with two sides to compare.

A side is a function that returns its piece: a function without arguments, which is called
repeatedly, does one piece of work, and returns its number of images.
"""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from benchmarks import plain
from evaluation.export import PACKAGES, onnx_bytes
from models import NETWORKS, SELECTED, STUDENTS, TEACHER, MultiStudent, network, offsets_of
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

    def test(self, count: int | None) -> list[torch.Tensor]:
        """Test images in batches of `count`. For single images several, as students may differ."""
        count = count or self.images or 2000
        images = self.splits[2].images[: SINGLE if count == 1 else count]
        return list(images.split(count))

    def load(self, name: str) -> torch.nn.Module:
        """Load a network of `checkpoint_dir` for inference; `name` is a key of FILES."""
        net = load_network(self.checkpoint_dir / FILES[name], EXPECTED[name])[0]
        return for_inference(net, self.device)

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
        rows = [predict(place.load("teacher"), split).half()]  # values do not matter
    batches = our_batches(split, place.batch_size, 0, *rows)
    return piece(batches, OurLoop(place.new(arch), place.device).step)


def plain_epoch(place: Place, arch: str, distilled: bool = False) -> Piece:
    loader = plain.loader(place.train(4 * place.batch_size), place.batch_size)
    teacher = place.checkpoint_dir / FILES["teacher"]
    teacher = load_network(teacher, TEACHER)[0] if distilled else None
    return piece(lambda: loader, plain.Loop(place.new(arch), place.device, teacher).step)


def our_step(place: Place, arch: str) -> Piece:
    (batch,) = our_batches(place.splits[0].take(slice(place.batch_size)), place.batch_size)()
    return piece(lambda: [batch] * 4, OurLoop(place.new(arch), place.device).step)


def plain_step(place: Place, arch: str) -> Piece:
    batch = next(iter(plain.loader(place.splits[0], place.batch_size)))
    return piece(lambda: [batch] * 4, plain.Loop(place.new(arch), place.device).step)


# ------------------------------------------------------------------ inference


def predicting(nets: Iterable[torch.nn.Module], place: Place, count: int | None) -> Piece:
    """All `nets` run on every image."""
    batches = [[images] for images in place.test(count)]
    return piece(lambda: batches, lambda images: [predict(net, images) for net in nets])


def running(*names_and_place: str | Place, count: int | None = None) -> Piece:
    """The networks with these names run on every image."""
    *names, place = names_and_place
    return predicting([place.load(name) for name in names], place, count)


def routed(place: Place, count: int | None = None) -> Piece:
    networks, offsets = parts(place)
    *students, selector = (for_inference(net, place.device) for net, _ in networks)
    return predicting([MultiStudent(students, selector, offsets).eval()], place, count)


def parts(place: Place) -> tuple[list, torch.Tensor]:
    """The students and the selector, each with its checkpoint dictionary, and the offsets."""
    found = load_parts(lambda file: place.checkpoint_dir / file, (*SELECTED, "selector"))
    return list(found.values()), offsets_of(found["selector"][1]["thresholds"])


def onnx_routed(place: Place, count: int) -> Piece:
    """`routed` with ONNX Runtime, as in docs/export.md, with the same number of threads."""
    import onnxruntime

    networks, offsets = parts(place)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    *students, selector = (
        onnxruntime.InferenceSession(onnx_bytes(*network), options) for network in networks
    )
    classes = len(networks[0][1]["classes"])

    def route(images: np.ndarray) -> None:
        (scores,) = selector.run(None, {"images": images})
        choice = (scores + offsets.numpy()).argmax(axis=1)
        logits = np.empty((len(images), classes), np.float32)
        for k, student in enumerate(students):
            if (chosen := choice == k).any():
                logits[chosen] = student.run(None, {"images": images[chosen]})[0]

    batches = [[images.numpy()] for images in place.test(count)]
    return piece(lambda: batches, route)


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
_alone, _single = "distillation beside training alone", "one image at a time"
SUBJECTS = {
    "data": Subject("data: crop, flip, cutout, normalize", our_data, plain_data),
    **_training("step", "training step", our_step, plain_step),
    **_training("epoch", "epoch with its data", our_epoch, plain_epoch),
    **_training("distillation, training", _alone, _distilled, our_epoch),
    **_training("distillation", "distillation", _distilled, _plain),
    "routed, teacher": Subject("routed beside the teacher", routed, partial(running, "teacher")),
    "routed, all": Subject(  # the published inference
        "routed beside selector and both students on every image",
        routed,
        partial(running, "selector", *SELECTED),
    ),
    "one image": Subject(
        f"routed beside the teacher, {_single}",
        partial(routed, count=1),
        partial(running, "teacher", count=1),
    ),
    "ONNX Runtime, one image": Subject(
        f"routed by ONNX Runtime beside PyTorch, {_single}",
        partial(onnx_routed, count=1),
        partial(routed, count=1),
    ),
    "ONNX Runtime, 128 images": Subject(
        "routed by ONNX Runtime beside PyTorch, 128 images at a time",
        partial(onnx_routed, count=128),
        partial(routed, count=128),
    ),
}


def left_out(subject: str, device: torch.device) -> str | None:
    """The reason why a subject cannot be measured here; None if it can."""
    if not subject.startswith("ONNX"):
        return None
    if device.type != "cpu":
        return "it is measured on the CPU"
    if not all(map(find_spec, PACKAGES.split())):
        return f"it needs more packages: pip install {PACKAGES}"
    return None
