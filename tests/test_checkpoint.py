"""Checkpoints come back as they were saved, run no code, and are whole or absent."""

import errno
import os
import pickle

import pytest
import torch
import torchvision
from torch import nn

from models import Selector, network
from utils.checkpoint import COMMANDS, FILES, KEYS, load_network, read_checkpoint, save_checkpoint
from utils.data import CLASSES, normalize
from utils.files import UserError

SHAPE = {"depth": 2, "batch_norm": True}


def save_selector(path, **overrides):
    torch.manual_seed(0)
    net = Selector(**SHAPE)
    save_checkpoint(path, net, "selector", None, SHAPE | {"lr": 0.1}, 3, 0.75)
    if overrides:
        torch.save(torch.load(path, weights_only=True) | overrides, path)
    return net.eval()


def refusal(path, arch=None):
    with pytest.raises(UserError) as caught:
        load_network(path, arch)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "selector.pth"


@pytest.fixture(scope="module")
def images(sample):
    return normalize(sample.images[:8])


@pytest.fixture(scope="module")
def googlenet(images, tmp_path_factory):
    """A student with the batch-norm statistics of 8 images, and its checkpoint."""
    torch.manual_seed(0)
    net = network("googlenet")
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        net(images)
    path = tmp_path_factory.mktemp("checkpoints") / "googlenet.pth"
    save_checkpoint(path, net, "googlenet", "cifar-pool", {}, 1, 0.5)
    return net.eval(), path


@torch.no_grad()
def assert_same_but_for_rounding(net, loaded, images):
    """Weights to half precision; outputs to 5 %, as rounding grows through an untrained network."""
    torch.testing.assert_close(loaded.state_dict(), net.state_dict(), rtol=2**-11, atol=2**-24)
    expected = net(images)
    assert expected.std() > 0
    assert (loaded(images) - expected).abs().max() < 0.05 * expected.abs().max()


# ------------------------------------------------------------------ there and back


def test_selector_comes_back(path, images):
    net = save_selector(path)
    loaded, _ = load_network(path, "selector")
    assert not loaded.training
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    assert_same_but_for_rounding(net, loaded, images)


def test_student_comes_back(googlenet, images):
    net, path = googlenet
    assert_same_but_for_rounding(net, load_network(path)[0], images)


@torch.no_grad()
def test_student_loads_without_this_project(googlenet, images):
    _, path = googlenet
    plain = torchvision.models.googlenet(num_classes=10, aux_logits=False, init_weights=False)
    plain.conv1.conv = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    plain.load_state_dict(torch.load(path, weights_only=True)["state_dict"])
    torch.testing.assert_close(plain.eval()(images), load_network(path)[0](images))


def test_all_documented_keys_are_there(path):
    save_selector(path)
    checkpoint = torch.load(path, weights_only=True)
    assert set(checkpoint) == set(KEYS)
    assert checkpoint["arch"] == "selector"
    assert checkpoint["classes"] == list(CLASSES)
    assert checkpoint["hyperparameters"] == SHAPE | {"lr": 0.1}
    assert (checkpoint["epoch"], checkpoint["val_accuracy"]) == (3, 0.75)
    assert checkpoint["test_accuracy"] is None
    weights = checkpoint["state_dict"].values()
    assert {weight.dtype for weight in weights if weight.is_floating_point()} == {torch.float16}


# ------------------------------------------------------------------ files that are refused


@pytest.mark.parametrize("arch", FILES)
def test_missing_file_names_the_command_that_makes_it(arch, tmp_path):
    assert refusal(tmp_path / FILES[arch]).endswith(f"is missing; make it with: {COMMANDS[arch]}")


def test_flipped_byte_in_the_weights_is_found(path):
    net = save_selector(path)
    content = bytearray(path.read_bytes())
    weight = net.state_dict()["blocks.4.weight"].half().numpy().tobytes()
    content[content.index(weight) + 100] ^= 255
    path.write_bytes(content)
    assert "damaged" in refusal(path)


@pytest.mark.parametrize("share", [0.0, 0.2, 0.6, 0.99])
def test_file_cut_short_is_refused(share, path):
    save_selector(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "cut short" in refusal(path)


@pytest.mark.parametrize(
    "text",
    ["hello\n", "<!DOCTYPE html>\n", "version https://git-lfs.github.com/spec/v1\noid sha256:0\n"],
    ids=["words", "web page", "git-lfs pointer"],
)
def test_text_file_is_refused_as_no_checkpoint(text, path):
    path.write_text(text)
    assert "not a PyTorch checkpoint" in refusal(path)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    "dump", [torch.save, lambda what, path: path.write_bytes(pickle.dumps(what))]
)
def test_code_in_a_file_is_not_run(dump, path, tmp_path):
    save_selector(path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyperparameters"] = Payload(tmp_path / "ran")
    dump(checkpoint, path)
    assert "code" in refusal(path)
    assert not (tmp_path / "ran").exists()


def test_other_architecture_than_asked_for_is_refused(path):
    save_selector(path)
    assert "holds 'selector', expected 'googlenet'" in refusal(path, "googlenet")


@pytest.mark.parametrize("content", [{"arch": "selector", "weights": 1}, [1, 2], torch.zeros(2)])
def test_file_without_our_keys_is_refused(content, path):
    torch.save(content, path)
    with pytest.raises(UserError, match="not one of this project's checkpoints: no .*state_dict"):
        read_checkpoint(path)


def test_weights_that_do_not_fit_are_refused(path):
    save_selector(path, state_dict=Selector(3).state_dict())
    assert "do not fit selector" in refusal(path)


@pytest.mark.parametrize(("arch", "stem"), [("vgg16", "cifar"), ("googlenet", "imagenet")])
def test_unknown_network_is_refused(arch, stem, path):
    save_selector(path, arch=arch, stem=stem)
    assert f"unknown architecture '{arch}' with stem '{stem}'" in refusal(path)


# ------------------------------------------------------------------ writing


def test_full_disk_leaves_the_old_file_whole(path, monkeypatch):
    save_selector(path)
    old = path.read_bytes()

    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError) as caught:
        save_selector(path)
    assert f"cannot write {path}: No space left on device" in str(caught.value)
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]


def test_write_that_the_system_cuts_off_leaves_the_old_file_whole(path):
    resource = pytest.importorskip("resource")
    save_selector(path)
    old = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(UserError, match="cannot write"):
            save_checkpoint(path, Selector(4), "selector", None, SHAPE, 1, 0.5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weight_that_half_precision_cannot_hold_is_refused(value, path):
    save_selector(path)
    old = path.read_bytes()
    net = Selector(**SHAPE)
    net.head.weight.data[0, 0] = value
    with pytest.raises(UserError, match="not finite"):
        save_checkpoint(path, net, "selector", None, SHAPE, 1, 0.5)
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]
