"""Checkpoints are read as they were saved, run no code, and are written atomically."""

import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from models import STUDENTS, Selector, network
from utils.checkpoint import (
    COMMANDS,
    EXPECTED,
    FILES,
    KEYS,
    check_data,
    fingerprint_of,
    load_network,
    save_checkpoint,
    starting_network,
)
from utils.data import CIFAR10, CLASSES, numbered
from utils.files import UserError

SHAPE = {"depth": 2, "batch_norm": True}
MADE = SHAPE | {"arch": "selector", "selected": [*STUDENTS[:2]], "lr": 0.1}


def save_selector(path, **overrides):
    torch.manual_seed(0)
    net = Selector(**SHAPE)
    save_checkpoint(path, net, MADE, 3, 0.75)
    if overrides:
        torch.save(torch.load(path, weights_only=True) | overrides, path)
    return net.eval()


def refusal(path, arch=None):
    with pytest.raises(UserError) as caught:
        load_network(path, arch)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "selector.pth"


@pytest.fixture(scope="module")
def googlenet(tmp_path_factory):
    """A student and its checkpoint."""
    torch.manual_seed(0)
    net = network("googlenet")
    path = tmp_path_factory.mktemp("checkpoints") / "googlenet.pth"
    save_checkpoint(path, net, {"arch": "googlenet", "stem": "cifar-pool"}, 1, 0.5)
    return net.eval(), path


# ------------------------------------------------------------------ there and back


def test_a_network_comes_back_with_weights_in_half_precision_and_all_documented_keys(path):
    net = save_selector(path)
    loaded, checkpoint = load_network(path, "selector")
    assert not loaded.training
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.state_dict(), net.state_dict(), rtol=2**-11, atol=2**-24)
    assert set(checkpoint) == {*KEYS, "data", "size"}
    expected = {"arch": "selector", "classes": list(CLASSES), "hyperparameters": MADE}
    expected |= {"epoch": 3, "val_accuracy": 0.75, "test_accuracy": None}
    assert expected.items() <= checkpoint.items()
    weights = checkpoint["state_dict"].values()
    assert {weight.dtype for weight in weights if weight.is_floating_point()} == {torch.float16}


# ------------------------------------------------------------------ files that are refused


@pytest.mark.parametrize("name", FILES)
def test_for_no_network_or_another_in_its_place_the_command_is_named_that_makes_it(name, tmp_path):
    path, command = tmp_path / FILES[name], COMMANDS[name].removeprefix("python ")
    assert command in refusal(path, EXPECTED[name])
    save_checkpoint(path, network("resnet18"), {"arch": "resnet18", "stem": "cifar-pool"}, 1, 0.1)
    message = refusal(path, EXPECTED[name])
    for fact in ("resnet18", EXPECTED[name], command):
        assert fact in message


def flipped(content):
    """A byte of the weights is another: the zip file is whole."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [flipped, lambda content: content[: len(content) // 2], lambda _: b"<!DOCTYPE html>\n"],
    ids=["flipped byte", "cut off", "a page"],
)
def test_a_damaged_file_is_refused(damage, path):
    save_selector(path)
    path.write_bytes(damage(path.read_bytes()))
    refusal(path)


FOREIGN = [(MADE, "no stem"), ([1, 2], ""), (dict.fromkeys(KEYS) | {"arch": "vgg16"}, "vgg16")]


@pytest.mark.parametrize("content, named", FOREIGN)
def test_what_holds_no_network_of_this_version_is_refused(content, named, path):
    torch.save(content, path)
    assert named in refusal(path)


class Call:
    """Calls `function` when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "dump", [torch.save, lambda what, path: path.write_bytes(pickle.dumps(what))]
)
def test_code_in_a_file_is_not_run(dump, path, tmp_path):
    save_selector(path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyperparameters"] = {"lr": [Call(os.mkdir, str(tmp_path / "ran"))]}
    dump(checkpoint, path)
    refusal(path)
    assert not (tmp_path / "ran").exists()


# ------------------------------------------------------------------ weights


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"head.weight": None}, "head.weight"),
        ({"extra": torch.zeros(1)}, "extra"),
        ({"head.weight": torch.zeros(64, 1)}, "head.weight"),
        ({"head.weight": 5}, "head.weight"),
        ({"blocks.1.running_var": torch.full((32,), float("nan"))}, "blocks.1.running_var"),
        ({"head.bias": torch.full((2,), 1e300, dtype=torch.float64)}, "head.bias"),
    ],
)
def test_weights_that_do_not_fit_or_are_not_finite_are_named(changes, named, path):
    weights = Selector(**SHAPE).state_dict() | changes
    save_selector(path, state_dict={k: v for k, v in weights.items() if v is not None})
    assert named in refusal(path)


# ------------------------------------------------------------------ weights from elsewhere


def prefixed(prefix):
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    "form",
    [
        lambda weights: weights,
        lambda weights: {"net": weights, "acc": 95.1, "epoch": 199},  # of kuangliu/pytorch-cifar
        lambda weights: {"arch": "g", "state_dict": prefixed("module.")(weights), "epoch": 90},
        prefixed("module._orig_mod."),
        prefixed("_orig_mod.module."),
    ],
    ids=["bare", "net", "state_dict", "parallel of compiled", "compiled of parallel"],
)
def test_weights_from_elsewhere_are_read(form, googlenet, path):
    net, _ = googlenet
    torch.save(form(net.state_dict()), path)
    loaded, facts = load_network(path, "googlenet", "cifar")
    torch.testing.assert_close(loaded.state_dict(), dict(net.state_dict()), rtol=0, atol=0)
    assert isinstance(loaded.maxpool1, nn.Identity) and not loaded.training
    assert facts["classes"] == numbered(10) and facts["val_accuracy"] is None
    refusal(path)  # without the stem


@pytest.mark.parametrize(
    "change, named",
    [
        (lambda weights: prefixed("backbone.")(weights), "backbone.conv1"),
        (
            lambda weights: prefixed("module.")(weights) | {"module.fc.weight": torch.zeros(5, 9)},
            "fc.weight",
        ),
        (lambda weights: {"epoch": 3}, "epoch"),
    ],
)
def test_weights_from_elsewhere_that_do_not_fit_are_named(change, named, googlenet, path):
    torch.save(change(dict(googlenet[0].state_dict())), path)
    with pytest.raises(UserError, match=f"{re.escape(str(path))}.*{named}"):
        load_network(path, "googlenet", "cifar-pool")


# ------------------------------------------------------------------ classes


def test_a_network_for_other_classes_is_refused_with_the_difference(googlenet, path):
    net, _ = googlenet
    ours = load_network(googlenet[1])[1]
    mine = replace(CIFAR10, name="mine.npz", classes=(*CLASSES[:9], "car"))
    for data in (mine, replace(mine, classes=tuple(numbered(3)))):
        with pytest.raises(UserError, match=f"{googlenet[1].name}.*mine.npz.*--data"):
            check_data(googlenet[1], ours, data)
    torch.save(net.state_dict(), path)  # of another project: only the number of classes is known
    check_data(path, load_network(path, "googlenet", "cifar")[1], mine)


def test_a_run_for_other_classes_starts_from_all_weights_but_the_last_layer(
    googlenet, path, capsys
):
    net, ours = googlenet
    torch.save(net.state_dict(), path)  # of another project
    for init in (path, ours):
        begun, made_of = starting_network("googlenet", "cifar-pool", init, Path("n"), numbered(3))
        assert begun.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
        expected = load_network(init, "googlenet", "cifar-pool")[0]
        for name, weight in expected.state_dict().items():
            assert name.startswith("fc.") or torch.equal(begun.state_dict()[name], weight)
        assert made_of == fingerprint_of(expected)
        assert str(init) in capsys.readouterr().out


# ------------------------------------------------------------------ what is no file


def test_what_is_no_regular_file_is_refused_and_not_waited_for(path, tmp_path):
    os.mkfifo(path)
    for each in (path, tmp_path, Path("/dev/zero"), tmp_path / ("x" * 300)):
        refusal(each)


def test_file_larger_than_any_checkpoint_is_refused(path):
    save_selector(path)
    os.truncate(path, 2**40)  # sparse: it takes no room on the disk
    assert "1,099,511,627,776 bytes" in refusal(path)


# ------------------------------------------------------------------ writing


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weight_that_half_precision_cannot_hold_is_refused(value, path):
    save_selector(path)
    old = path.read_bytes()
    net = Selector(**SHAPE)
    net.head.weight.data[0, 0] = value
    with pytest.raises(UserError, match="not finite"):
        save_checkpoint(path, net, SHAPE | {"arch": "selector"}, 1, 0.5)
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]
