"""The program that torchrun starts in each process for tests/test_distributed.py.

    torchrun --standalone --nproc_per_node=2 tests/ranks.py FOLDER

Trains two small networks. Process K writes what it saw to FOLDER/rank-K.pth.
"""

import sys
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from loop import Loop, Pixels, Tiny

from utils.augment import Augmentation, Batches
from utils.checkpoint import load_network
from utils.data import fingerprint, load_sample
from utils.distributed import gather, join_group, rank, ranks
from utils.files import UserError
from utils.logits import TeacherLogits

COUNT, BATCH_SIZE, EPOCHS = 50, 7, 2  # batches of 7 and 6: two processes share the 7 unevenly


def train(net_class, path):
    """Train a network; returns the images this process saw, and its weights after each epoch."""
    sample = load_sample()
    images, labels = sample.images[:COUNT], sample.labels[:COUNT]
    seen, weights = [], []

    def loss(logits, labels, places):
        seen.append(places.tolist())
        return F.cross_entropy(logits, labels)

    def validate(logits):
        weights.append(fingerprint(run.net.state_dict().values()))
        hits = logits.argmax(1) == sample.labels[COUNT : 2 * COUNT + 1]
        return 1.0, hits.double().mean().item()

    torch.manual_seed(0)
    run = Loop(
        net_class(),
        path,
        images,
        labels,
        loss,
        validate,
        sample.images[COUNT : 2 * COUNT + 1],
        rows=[labels, torch.arange(COUNT)],
        epochs=EPOCHS,
        batch_size=BATCH_SIZE,
    )
    # In bf16, rounding depends on how the batch is divided.
    with mock.patch("utils.device.has_bf16", return_value=False):
        run.fit()
    return {"seen": seen, "weights": weights, "history": run.progress.history}


def teacher_logits(folder):
    """A teacher's logits for a view of the images."""
    torch.manual_seed(0)
    batches = Batches(load_sample(COUNT).images, 7, 0, Augmentation(), 2, (rank(), ranks()))
    with mock.patch("utils.device.has_bf16", return_value=False):
        return TeacherLogits(Pixels().eval(), "teacher", batches, folder).epoch(1)


def missing(folder):
    """How a process ends if a file is missing, which the first one is to read."""
    try:
        load_network(folder / "missing.pth")
    except UserError as error:
        return str(error)
    except SystemExit as stop:
        return stop.code


if __name__ == "__main__":
    join_group(torch.device("cpu"))
    folder = Path(sys.argv[1])
    found = {net.__name__: train(net, folder / f"{net.__name__}.pth") for net in (Pixels, Tiny)}
    found["answers"] = teacher_logits(folder / "teacher.logits")
    found["gathered"] = gather(torch.arange(7).tensor_split(ranks())[rank()])
    found["missing"] = missing(folder)
    torch.save(found, folder / f"rank-{rank()}.pth")
