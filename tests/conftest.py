"""Real images for every test: the sample of the test set that comes with the repository."""

import os
import signal

import numpy as np
import pytest
import torch

from utils import checkpoint
from utils.data import CLASSES, load_sample

# Two processes of tests share the machine; threads that wait for one another would crawl.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"  # of the programs that tests start

# A shell starts its background jobs with Ctrl-C ignored, and several tests press it.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter):
    """Print what tests count: record_property("counted", "so many of these, so many of those")."""
    reports = terminalreporter.getreports("passed")
    for line in [text for report in reports for name, text in report.user_properties]:
        terminalreporter.line(line)


@pytest.fixture(autouse=True)
def _nothing_typed(monkeypatch):
    """A script that a test calls keeps the flags that it was given; a process ends with it."""
    monkeypatch.setattr(checkpoint, "typed", checkpoint.Typed())


@pytest.fixture(scope="session")
def sample():
    """The 1,000 images of data/sample.npz, as a Split."""
    return load_sample()


@pytest.fixture(scope="session")
def small_npz(tmp_path_factory, sample):
    """A data set of one's own: 600 of the sample's images to train on, 400 to test on."""
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
