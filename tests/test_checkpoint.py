"""Checkpoints are read as they were saved, run no code, and are written atomically."""

import contextlib
import errno
import os
import pickle
import random
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from models import NETWORKS, STUDENTS, Selector, network
from utils.checkpoint import (
    COMMANDS,
    EXPECTED,
    FILES,
    KEYS,
    amend_checkpoint,
    check_data,
    fingerprint_of,
    load_network,
    read_checkpoint,
    save_checkpoint,
    starting_network,
    write_dict,
)
from utils.data import CIFAR10, CLASSES, normalize, numbered
from utils.files import UserError
from utils.safe_load import brief, read_dict

SHAPE = {"depth": 2, "batch_norm": True}
MADE = SHAPE | {"arch": "selector", "selected": [*STUDENTS[:2]], "lr": 0.1}
SHIPPED = sorted(Path(__file__).parent.parent.glob("checkpoints/*.pth"))


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
    message = str(caught.value).replace(str(path), "PATH")  # which holds the test's name
    assert message.isprintable()  # on one line, without a terminal's escapes
    assert len(message) < 250
    return message


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
    save_checkpoint(path, net, {"arch": "googlenet", "stem": "cifar-pool"}, 1, 0.5)
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


def test_all_documented_keys_are_there(path):
    save_selector(path)
    checkpoint = torch.load(path, weights_only=True)
    assert set(checkpoint) == {*KEYS, "data", "size"}
    assert checkpoint["arch"] == "selector"
    assert checkpoint["classes"] == list(CLASSES)
    assert checkpoint["hyperparameters"] == MADE
    assert (checkpoint["epoch"], checkpoint["val_accuracy"]) == (3, 0.75)
    assert checkpoint["test_accuracy"] is None
    weights = checkpoint["state_dict"].values()
    assert {weight.dtype for weight in weights if weight.is_floating_point()} == {torch.float16}


# ------------------------------------------------------------------ files that are refused


@pytest.mark.parametrize("name", FILES)
def test_a_network_in_the_place_of_another_is_refused_by_name(name, tmp_path):
    path = tmp_path / FILES[name]
    save_checkpoint(path, network("resnet18"), {"arch": "resnet18", "stem": "cifar-pool"}, 1, 0.1)
    with pytest.raises(UserError) as error:
        load_network(path, EXPECTED[name])
    command = COMMANDS[name].removeprefix("python ")
    for fact in (path, "'resnet18'", repr(EXPECTED[name]), command, "models/networks.py"):
        assert str(fact) in str(error.value)


@pytest.mark.parametrize("arch", FILES)
def test_missing_file_names_the_command_that_makes_it(arch, tmp_path):
    told = f"is missing; run {COMMANDS[arch].removeprefix('python ')}"
    assert refusal(tmp_path / FILES[arch]).endswith(told)


def test_flipped_byte_in_the_weights_is_found(path):
    net = save_selector(path)
    content = bytearray(path.read_bytes())
    weight = net.state_dict()["blocks.4.weight"].half().numpy().tobytes()
    content[content.index(weight) + 100] ^= 255
    path.write_bytes(content)
    assert "damaged" in refusal(path)


@pytest.mark.parametrize(
    "content",
    [b"hello\n", b"<!DOCTYPE html>\n", b"version https://git-lfs.github.com/spec/v1\n", b""],
    ids=["words", "web page", "git-lfs pointer", "empty"],
)
def test_a_file_of_something_else_is_refused(content, path):
    path.write_bytes(content)
    assert "not a PyTorch checkpoint" in refusal(path)


def test_damaged_files_are_refused(path):
    """With flipped bits, cut off, or with parts moved."""
    save_selector(path)
    expected, sound, rng = load_network(path)[0], path.read_bytes(), random.Random(0)
    for kind in range(60):
        content, at = bytearray(sound), rng.randrange(len(sound))
        if kind % 3 == 0:
            content[at] ^= 1 << rng.randrange(8)
        elif kind % 3 == 1:
            del content[at:]
        else:
            content[at:at] = content[rng.randrange(len(sound)) :][:500]
        path.write_bytes(content)
        with contextlib.suppress(UserError):  # a flipped bit may be of no consequence
            assert fingerprint_of(load_network(path)[0]) == fingerprint_of(expected)


class Call:
    """Calls `function` when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "dump", [torch.save, lambda what, path: path.write_bytes(pickle.dumps(what))]
)
@pytest.mark.parametrize(
    "place", [lambda it: it, lambda it: [[[it]]], lambda it: {(it, 1): {"w": it}}]
)
def test_code_in_a_file_is_not_run(dump, place, path, tmp_path):
    save_selector(path)
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyperparameters"] = place(Call(os.mkdir, str(tmp_path / "ran")))
    dump(checkpoint, path)
    refusal(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_torchscript_is_not_loaded(path):
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)
    refusal(path)


def test_other_architecture_than_asked_for_is_refused(path):
    save_selector(path)
    assert "holds 'selector', expected 'googlenet'" in refusal(path, "googlenet")


def test_file_without_our_keys_is_refused(path):
    torch.save({"arch": "selector", "weights": 1}, path)
    assert re.search("not a checkpoint of this project: it has no .*state_dict", refusal(path))


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(2), None])
def test_file_without_a_dictionary_is_refused(content, path):
    torch.save(content, path)
    assert "a dictionary" in refusal(path)


def test_weights_that_do_not_fit_are_refused(path):
    save_selector(path, state_dict=Selector(3).state_dict())
    assert "do not fit selector" in refusal(path)


def test_shipped_checkpoints_come_back_bit_for_bit():
    assert len(SHIPPED) >= 3
    for path in SHIPPED:
        ours, theirs = read_checkpoint(path), torch.load(path, weights_only=True)
        torch.testing.assert_close(
            ours.pop("state_dict"), theirs.pop("state_dict"), rtol=0, atol=0, check_stride=True
        )
        for key in {"threshold", "cascade_threshold"} & set(theirs):  # as older files call it
            assert ours.pop(f"{key}s") == [theirs.pop(key)]
        assert ours == theirs


def test_state_of_a_run_comes_back_bit_for_bit(path):
    net = Selector(**SHAPE).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=9)
    net(torch.rand(4, 3, 32, 32)).sum().backward()
    optimizer.step()
    state = {
        "progress": {"epoch": 1, "history": [{"loss": 0.5, "lr": 1e-3}] * 1},
        "hyperparameters": {"seed": 2**30, "augmentation": {"flip": True, "crop": -4}},
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rng": torch.get_rng_state(),
        "cuda_rng": None,
    }
    write_dict(path, state)
    back = read_dict(path)
    weights = dict(state.pop("net"))
    assert list(back["net"]) == list(weights)
    torch.testing.assert_close(back["net"], weights, rtol=0, atol=0, check_stride=True)
    assert [repr(back[key]) for key in state] == [repr(value) for value in state.values()]
    optimizer.load_state_dict(back["optimizer"])


# ------------------------------------------------------------------ weights


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"head.weight": None}, "1 missing, 0 unknown, 0 of another"),
        ({"extra": torch.zeros(1)}, "0 missing, 1 unknown, 0 of another"),
        ({"head.weight": torch.zeros(64, 1)}, "0 missing, 0 unknown, 1 of another"),
        ({"head.weight": torch.zeros(1, 64).long()}, "1 of another shape or type: 'head.weight'"),
        ({"head.weight": 5}, "1 of another"),
        ({"blocks.1.num_batches_tracked": torch.tensor(1.0)}, "1 of another"),
        ({"blocks.1.num_batches_tracked": None}, "1 missing"),
        ({"\x1b[2J\n" * 100_000: torch.zeros(1)}, "1 unknown"),
        ({f"w{n}": n for n in range(10_000)} | {"head.bias": None}, "1 missing, 10000 unknown"),
        ({3: torch.zeros(1)}, "1 unknown"),
    ],
)
def test_weights_of_another_network_are_counted(changes, words, path):
    weights = Selector(**SHAPE).state_dict() | changes
    save_selector(path, state_dict={k: v for k, v in weights.items() if v is not None})
    assert words in refusal(path)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weight_that_is_not_finite_is_named(value, path):
    net = Selector(**SHAPE)
    net.blocks[1].running_var[3] = value
    save_selector(path, state_dict=net.state_dict())
    assert "weights blocks.1.running_var are not finite" in refusal(path)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float64, nn.Parameter], ids=str)
def test_weights_of_other_types_are_read(kind, path):
    net = Selector(**SHAPE)
    weights = {
        name: tensor
        if not tensor.is_floating_point()
        else nn.Parameter(tensor)
        if kind is nn.Parameter
        else tensor.to(kind)
        for name, tensor in net.state_dict().items()
    }
    save_selector(path, state_dict=weights)
    loaded, _ = load_network(path)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    assert all(weight.requires_grad and weight.is_leaf for weight in loaded.parameters())
    expected = {name: tensor.to(loaded.state_dict()[name]) for name, tensor in weights.items()}
    torch.testing.assert_close(loaded.state_dict(), expected, rtol=0, atol=0)


def test_weight_too_large_for_float32_is_named(path):
    weights = Selector(**SHAPE).state_dict()
    weights["head.weight"] = weights["head.weight"].double() + 1e300
    save_selector(path, state_dict=weights)
    assert "weights head.weight are not finite" in refusal(path)


# ------------------------------------------------------------------ weights from elsewhere


def prefixed(prefix):
    return lambda weights: {prefix + name: tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    "form",
    [
        lambda weights: weights,
        lambda weights: {"net": weights, "acc": 95.1, "epoch": 199},  # of kuangliu/pytorch-cifar
        lambda weights: {"arch": "g", "state_dict": prefixed("module.")(weights), "epoch": 90},
        prefixed("_orig_mod."),
        prefixed("module._orig_mod."),
        prefixed("_orig_mod.module."),
    ],
    ids=["bare", "net", "state_dict", "compiled", "parallel of compiled", "compiled of parallel"],
)
@pytest.mark.parametrize("zipped", [True, False])  # False: of PyTorch before 1.6
def test_weights_from_elsewhere_are_read(form, zipped, googlenet, path):
    net, _ = googlenet
    torch.save(form(net.state_dict()), path, _use_new_zipfile_serialization=zipped)
    loaded, facts = load_network(path, "googlenet", "cifar")
    torch.testing.assert_close(loaded.state_dict(), dict(net.state_dict()), rtol=0, atol=0)
    assert isinstance(loaded.maxpool1, nn.Identity) and not loaded.training
    assert facts["classes"] == numbered(10) and facts["val_accuracy"] is None
    assert "is not a checkpoint of this project" in refusal(path)  # without the stem


def test_a_checkpoint_of_ours_is_none_from_elsewhere(googlenet):
    net, facts = load_network(googlenet[1], "googlenet", "cifar")
    assert facts["stem"] == "cifar-pool" and facts["val_accuracy"] == 0.5


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda weights: prefixed("backbone.")(weights),
            "344 missing, 344 unknown, 0 of another shape or type: 'conv1.conv.weight'; all its "
            "names begin with 'backbone.'",
        ),
        (
            lambda weights: prefixed("module.")(weights) | {"module.fc.weight": torch.zeros(5, 9)},
            "0 missing, 0 unknown, 1 of another shape or type: 'fc.weight'",
        ),
        (
            lambda weights: {f"{name}.x": t.clone() for name, t in weights.items()} | weights,
            "0 missing, 344 unknown, 0 of another",
        ),
        (lambda weights: {"epoch": 3}, "344 missing, 1 unknown, 0 of another"),
    ],
)
def test_weights_from_elsewhere_that_do_not_fit_are_counted(change, words, googlenet, path):
    torch.save(change(dict(googlenet[0].state_dict())), path)
    with pytest.raises(UserError, match=re.escape(words)):
        load_network(path, "googlenet", "cifar-pool")


# ------------------------------------------------------------------ classes


@pytest.mark.parametrize("names", [["cat", 'Löwe, "big"'], numbered(1000)], ids=["2", "1000"])
def test_a_network_tells_as_many_classes_apart_as_its_data_have(names, path):
    net = network("googlenet", classes=len(names)).eval()
    save_checkpoint(
        path,
        net,
        {"arch": "googlenet", "stem": "cifar-pool"},
        1,
        0.5,
        replace(CIFAR10, name="mine.npz", classes=tuple(names)),
    )
    loaded, facts = load_network(path)
    assert facts["classes"] == names and loaded(torch.zeros(1, 3, 32, 32)).shape == (1, len(names))
    check_data(path, facts, replace(CIFAR10, name="mine.npz", classes=tuple(names)))
    assert starting_network("googlenet", "cifar-pool", path, Path("new.pth"), names)[1]


def test_a_network_for_other_classes_is_refused_with_the_difference(googlenet, path):
    net, _ = googlenet
    for names, told in (
        (numbered(3), "has 10 classes: airplane, .*, and mine.npz has 3 classes: class 0, class 1"),
        (
            [*CLASSES[:9], "car"],
            "calls class 9 'truck', and mine.npz 'car': use --data for the data set ",
        ),
    ):
        with pytest.raises(UserError, match=told):
            check_data(
                googlenet[1],
                load_network(googlenet[1])[1],
                replace(CIFAR10, name="mine.npz", classes=tuple(names)),
            )
    torch.save(net.state_dict(), path)  # of another project: only the number of classes is known
    _, facts = load_network(path, "googlenet", "cifar")
    check_data(path, facts, replace(CIFAR10, name="mine.npz", classes=(*CLASSES[:9], "car")))


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
        assert f"{init} has 10 classes, the data set 3: the last layer" in capsys.readouterr().out


@pytest.mark.parametrize("arch", NETWORKS)
def test_only_the_last_weight_and_bias_depend_on_the_number_of_classes(arch):
    with torch.device("meta"):
        ten, three = (network(arch, classes=count).state_dict() for count in (10, 3))
    differ = [name for name in ten if ten[name].shape != three[name].shape]
    assert differ == list(ten)[-2:]


# ------------------------------------------------------------------ facts


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("arch", None),
        ("arch", "vgg16"),
        ("arch", ["selector"]),
        ("arch", "\x1b[31m\n" * 1000),
        ("arch", torch.zeros(3, 3)),
        ("arch", "resnet50"),  # which has a stem
        ("stem", "cifar"),  # which a selector has not
        ("stem", "imagenet"),
        ("stem", torch.zeros(2)),
        ("state_dict", [1]),
        ("classes", ["cat"]),
        ("classes", ["cat", "cat"]),
        ("classes", tuple(CLASSES)),
        ("classes", [*CLASSES[:9], 9]),
        ("classes", [torch.zeros(20, 20) for _ in range(10)]),
        ("mean", [0.5, 0.5]),
        ("mean", [0.5, 0.5, float("nan")]),
        ("mean", 0.5),
        ("std", [0.5, 0.5, 0]),
        ("size", 31),
        ("std", [0.5, 0.5, float("inf")]),
        ("std", [0.5, 0.5, True]),
        ("val_accuracy", 80.0),
        ("val_accuracy", float("nan")),
        ("val_accuracy", None),
        ("val_accuracy", torch.tensor(0.5)),
        ("test_accuracy", -0.1),
        ("test_accuracy", "0.8"),
        ("hyperparameters", None),
        ("hyperparameters", {"depth": 3.0, "batch_norm": True}),
        ("hyperparameters", {"depth": True, "batch_norm": True}),
        ("hyperparameters", {"depth": 5, "batch_norm": True}),
        ("hyperparameters", {"depth": 2, "batch_norm": torch.zeros(2)}),
        ("hyperparameters", {"batch_norm": True}),
        ("epoch", 0),
        ("epoch", 1.0),
        ("epoch", True),
        ("torch_version", 2),
        ("thresholds", [float("nan")]),
        ("thresholds", [0.5, 1.02]),
        ("threshold", -0.01),  # of older files
        ("cascade_threshold", True),
        ("cascade_thresholds", []),
        ("cascade_teacher_thresholds", [True]),
        ("hyperparameters", {"depth": 2, "batch_norm": True, "selected": ["one"]}),
    ],
)
def test_fact_of_another_kind_is_refused(key, value, path):
    save_selector(path, **{key: value})
    key = key + "s" if key.endswith("threshold") else key
    key = next(
        (k for k in ("depth", "batch_norm", "selected") if f"its {k} is" in refusal(path)), key
    )
    assert f"its {'stem' if value == 'resnet50' else key} is " in refusal(path)


def test_value_in_a_message_is_looked_at_only_in_part():
    asked = []

    class Slow:
        def __repr__(self):
            asked.append(self)
            return "slow"

    assert brief([[Slow()] * 100] * 100).startswith("[[slow, slow")
    assert len(asked) < 50


def test_student_without_a_stem_is_refused(googlenet, path):
    torch.save(torch.load(googlenet[1], weights_only=True) | {"stem": None}, path)
    assert "its stem is None" in refusal(path)


def test_fact_that_could_not_be_read_is_not_added(path):
    save_selector(path)
    old = path.read_bytes()
    with pytest.raises(UserError, match="its thresholds is"):
        amend_checkpoint(path, thresholds=[2])
    assert path.read_bytes() == old
    amend_checkpoint(path, thresholds=[1.01], test_accuracy=0.5)
    assert load_network(path)[1]["thresholds"] == [1.01]


# ------------------------------------------------------------------ what is no file


def test_what_is_no_regular_file_is_refused_at_once(path, tmp_path):
    started = time.monotonic()
    os.mkfifo(path)
    for each in (path, tmp_path, Path("/dev/zero")):
        assert "not a file" in refusal(each)
    link = tmp_path / "link.pth"
    link.symlink_to(tmp_path / "nothing")
    assert "missing" in refusal(link)
    assert "cannot be read: File name too long" in refusal(tmp_path / ("x" * 300))
    assert time.monotonic() - started < 2


def test_file_larger_than_any_checkpoint_is_refused(path):
    save_selector(path)
    os.truncate(path, 2**40)  # sparse: it takes no room on the disk
    assert "1,099,511,627,776 bytes" in refusal(path)


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
            save_checkpoint(path, Selector(4), SHAPE | {"arch": "selector"}, 1, 0.5)
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
        save_checkpoint(path, net, SHAPE | {"arch": "selector"}, 1, 0.5)
    assert path.read_bytes() == old
    assert os.listdir(path.parent) == [path.name]
