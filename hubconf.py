"""Entry points for torch.hub: the networks with the weights in checkpoints/, or untrained.

torch.hub.load("path/to/the/clone", "teacher", source="local")

The teacher and each student also have an entry point with the name of their architecture, see
TEACHER and STUDENTS in models/networks.py.
"""

import pathlib
from functools import partial as _partial

from torch import nn

import models
from evaluation import policies
from utils import checkpoint, data

dependencies = ["torch", "torchvision", "numpy", "tqdm", "filelock"]
# Modules are imported whole: torch.hub lists every public callable here as an entry point.
_CHECKPOINTS = pathlib.Path(__file__).resolve().parent / "checkpoints"


def _load(names, pretrained, stem, num_classes, checkpoint_dir):
    """Networks that work together, with their checkpoint dictionaries, by name."""
    asked = {"stem": stem, "num_classes": num_classes}
    asked = {fact: value for fact, value in asked.items() if value is not None}
    if not pretrained:
        return {name: (_new(name, **asked), {}) for name in names}
    folder = pathlib.Path(checkpoint_dir or _CHECKPOINTS / ("cifar" if stem == "cifar" else ""))
    parts = checkpoint.load_parts(lambda file: folder / file, names)
    for name, (_, info) in parts.items():
        found = {"stem": info["stem"], "num_classes": len(info["classes"])}
        for fact, value in asked.items():
            if name != "selector" and value != found[fact]:
                there = f"{folder / checkpoint.FILES[name]} has {found[fact]!r}"
                raise ValueError(f"{fact} is {value!r}, but {there}: leave out {fact}")
    return parts


def _new(name, stem="cifar-pool", num_classes=10):
    if name == "selector":
        return models.Selector(outputs=len(models.SELECTED))
    return models.network(checkpoint.EXPECTED[name], stem, num_classes)


def _network(name: str, *asked) -> nn.Module:
    parts = _load([name], *asked)
    return _checked(parts[name][0], parts)


def _system(policy: str, pretrained: bool, *asked) -> nn.Module:
    parts = _load(policies.parts_of(policy), pretrained, *asked)
    nets = {name: net for name, (net, _) in parts.items()}
    system = policies.assemble(policy, parts, nets).net
    return _checked(system if pretrained else system.train(), parts)


def _checked(net: nn.Module, parts) -> nn.Module:
    sizes = [checkpoint.data_of(facts).size for _, facts in parts.values() if facts] or data.SIZES
    net.register_forward_pre_hook(_partial(models.check_images, sizes=sizes))
    return net


def teacher(
    pretrained: bool = True,
    stem: str | None = None,
    num_classes: int | None = None,
    checkpoint_dir: str | None = None,
) -> nn.Module:
    """The teacher: images (N, 3, S, S) -> logits (N, classes).

    Images are RGB values divided by 255, then normalized with mean (0.4914, 0.4822, 0.4465) and
    standard deviation (0.2470, 0.2435, 0.2616). The network raises ValueError if the input is not
    float (N, 3, S, S), with S as in its training. The weights in this repository are for CIFAR-10:
    S is 32, and the classes are in the usual order.

    Args:
        pretrained: if True, load the weights in checkpoints/; the network is on the CPU, in eval
            mode. If False, use random weights; the network is in training mode. Both are float32.
        stem: "cifar" or "cifar-pool", see `models.network`. Default: that of the weights, or
            "cifar-pool".
        num_classes: 2 to 1,000. Default: that of the weights, or 10.
        checkpoint_dir: the folder of the weights. Default: checkpoints/, or checkpoints/cifar/ for
            the stem "cifar".

    Raises utils.files.UserError if a checkpoint is missing, with the command that writes it, and
    ValueError if the weights have another stem or number of classes.
    """
    return _network("teacher", pretrained, stem, num_classes, checkpoint_dir)


def selector(pretrained: bool = True, checkpoint_dir: str | None = None) -> nn.Module:
    """The selector: images (N, 3, S, S) -> logits (N, students).

    Their softmax are the probabilities that a student has the smallest error. Images and arguments
    are the same as those of `teacher`.
    """
    return _network("selector", pretrained, None, None, checkpoint_dir)


def _entry(name, make, what):
    def entry(pretrained=True, stem=None, num_classes=None, checkpoint_dir=None) -> nn.Module:
        return make(pretrained, stem, num_classes, checkpoint_dir)

    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"""{what}

    Images and arguments are the same as those of `teacher`.
    """
    globals()[name] = entry


_SYSTEM = """The whole system, {}: images (N, 3, S, S) -> logits (N, classes),
    and an index, int64 (N,): of the student that answered, from 0; of cascade and ensemble, of the
    last one that ran, the cheapest first.

    The thresholds are those in the checkpoint of the selector. Also raises utils.files.UserError if
    it was trained for other students. The system cannot be traced or exported: export its
    `students` and its `selector` one by one."""

globals()[models.TEACHER] = teacher
for _arch in models.STUDENTS:
    _what = f"The student {models.NETWORKS[_arch].title}"
    _what += ": images (N, 3, S, S) -> logits (N, classes)."
    _entry(_arch, _partial(_network, _arch), _what)
for _policy, _what in policies.POLICIES.items():
    if _policy not in (*models.STUDENTS, "cascade_teacher"):  # not all checkpoints have the last
        _name = "multistudent" if _policy == "selector" else _policy
        _entry(_name, _partial(_system, _policy), _SYSTEM.format(_what))
