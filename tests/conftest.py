"""Shared fixtures: real images, from the sample of the test set in the repository."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toys import TOYS

from models import NETWORKS, STUDENTS
from utils.data import CLASSES, load_sample

ROOT = Path(__file__).resolve().parent.parent

# Two test processes share the machine; more threads would wait for each other.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # for programs started by tests

# A shell starts background jobs with SIGINT ignored, but several tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def sample():
    """The 1,000 images of data/sample.npz, as a Split."""
    return load_sample()


@pytest.fixture(scope="session")
def small_npz(tmp_path_factory, sample):
    """An own data set: 600 images of the sample for training, 400 for testing."""
    path = tmp_path_factory.mktemp("data") / "small.npz"
    images, labels = sample.images.numpy(), sample.labels.numpy()
    np.savez(
        path,
        train_images=images[:600],
        train_labels=labels[:600],
        test_images=images[600:],
        test_labels=labels[600:],
        classes=CLASSES,
    )
    return path


@pytest.fixture(scope="session")
def small_clone(tmp_path_factory, sample):
    """A folder like a clone, with the checkpoints and the first 100 images of the sample."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "checkpoints").symlink_to(ROOT / "checkpoints")
    (folder / "data").mkdir()
    some = {"images": sample.images[:100].numpy(), "labels": sample.labels[:100].numpy()}
    np.savez(folder / "data" / "sample.npz", **some)
    return folder


@pytest.fixture(scope="module")
def toys():
    """Teacher and students are small networks in this file."""
    with pytest.MonkeyPatch.context() as patch:
        for arch, row in TOYS.items():
            patch.setitem(NETWORKS, arch, row)
        yield


@pytest.fixture
def pair(monkeypatch):
    """There are the first two students only, as in the examples that are checked by hand."""
    students = STUDENTS
    for module in list(sys.modules.values()):
        if vars(module).get("STUDENTS") is students:
            monkeypatch.setattr(module, "STUDENTS", students[:2])


@pytest.fixture
def float32(monkeypatch):
    """The CPU computes in float32, also if it has bf16, which rounds more."""
    monkeypatch.setattr("utils.device.CPUINFO", Path("none"))
