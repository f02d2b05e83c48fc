"""Entry points for torch.hub: the networks with the weights in checkpoints/, or untrained.

torch.hub.load("path/to/the/clone", "teacher", source="local")

The teacher and each student also have an entry point with the name of their architecture, see
TEACHER and STUDENTS in models/networks.py.
"""

import pathlib

from torch import nn

import models
from utils import checkpoint

dependencies = ["torch", "torchvision", "numpy", "tqdm", "filelock"]
# Modules are imported whole: torch.hub lists every public callable here as an entry point.
_CHECKPOINTS = pathlib.Path(__file__).resolve().parent / "checkpoints"


def _classifier(
    name: str, pretrained: bool, stem: str | None, num_classes: int | None
) -> nn.Module:
    arch = checkpoint.EXPECTED[name]
    asked = {"stem": stem, "classes": num_classes}
    asked = {fact: value for fact, value in asked.items() if value is not None}
    if not pretrained:
        return _checked(models.network(arch, **asked))
    path = _CHECKPOINTS / checkpoint.FILES[name]
    net, info = checkpoint.load_network(path, arch)
    found = {"stem": info["stem"], "classes": len(info["classes"])}
    for fact, value in asked.items():
        if value != found[fact]:
            flag = {"classes": "num_classes"}.get(fact, fact)
            raise ValueError(
                f"{flag} is {value!r}, but {path} has {found[fact]!r}: leave out {flag}"
            )
    return _checked(net)


def _checked(net: nn.Module) -> nn.Module:
    net.register_forward_pre_hook(models.check_images)
    return net


def teacher(
    pretrained: bool = True, stem: str | None = None, num_classes: int | None = None
) -> nn.Module:
    """The teacher: images (N, 3, 32, 32) -> logits (N, classes).

    Images are RGB values divided by 255, then normalized with mean (0.4914, 0.4822, 0.4465) and
    standard deviation (0.2470, 0.2435, 0.2616). The network raises ValueError if the input is not
    float (N, 3, 32, 32). The weights in this repository are for the classes of CIFAR-10, in the
    usual order.

    Args:
        pretrained: if True, load the weights in checkpoints/; the network is on the CPU, in eval
            mode. If False, use random weights; the network is in training mode. Both are float32.
        stem: "cifar" or "cifar-pool", see `models.network`. Default: that of the weights, or
            "cifar-pool" if not pretrained.
        num_classes: 2 to 1,000. Default: that of the weights, or 10 if not pretrained.

    Raises:
        utils.files.UserError: the checkpoint is missing; the message names the command that
            writes it.
        ValueError: the weights have another stem or number of classes.
    """
    return _classifier("teacher", pretrained, stem, num_classes)


def _student(arch: str, number: int):
    def entry(
        pretrained: bool = True, stem: str | None = None, num_classes: int | None = None
    ) -> nn.Module:
        return _classifier(arch, pretrained, stem, num_classes)

    entry.__name__ = entry.__qualname__ = arch
    entry.__doc__ = (
        f"Student {number}, {models.NETWORKS[arch].title}: images (N, 3, 32, 32) -> logits "
        "(N, classes).\n\n    Images and arguments are the same as those of `teacher`.\n    "
    )
    return entry


globals()[models.TEACHER] = teacher
for _number, _arch in enumerate(models.STUDENTS, 1):
    globals()[_arch] = _student(_arch, _number)


def selector(pretrained: bool = True) -> nn.Module:
    """The selector: images (N, 3, 32, 32) -> logits (N,).

    The sigmoid of a logit is the probability that student 1 has the smaller error. Images are the
    same as those of `teacher`.
    """
    if not pretrained:
        return _checked(models.Selector())
    path = _CHECKPOINTS / checkpoint.FILES["selector"]
    return _checked(checkpoint.load_network(path, "selector")[0])


def multistudent(
    pretrained: bool = True, stem: str | None = None, num_classes: int | None = None
) -> nn.Module:
    """The whole system: the selector chooses one student for each image; only that one runs.

    Images (N, 3, 32, 32) -> logits (N, classes), and the index of the student that computed them,
    int64 (N,), from 0. Images and arguments are the same as those of `teacher`. The threshold is
    read from the checkpoint of the selector; it is 0.5 if not pretrained. Also raises
    utils.files.UserError if the selector was trained for other students. The system cannot be
    traced or exported: export its `students` and its `selector` one by one.
    """
    students = [_classifier(arch, pretrained, stem, num_classes) for arch in models.STUDENTS]
    if not pretrained:
        return _checked(models.MultiStudent(students, models.Selector()))
    path = _CHECKPOINTS / checkpoint.FILES["selector"]
    chooser, info = checkpoint.load_network(path, "selector")
    checkpoint.check_students(path, info, students)
    return _checked(models.MultiStudent(students, chooser, info.get("threshold", 0.5)).eval())
