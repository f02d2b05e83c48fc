"""The networks by torch.hub, with the weights in checkpoints/ or untrained.

torch.hub.load("path/to/the/clone", "densenet121", source="local")
"""

import pathlib

from torch import nn

import models
from utils import checkpoint

dependencies = ["torch", "torchvision", "numpy", "tqdm", "filelock"]
# torch.hub lists every callable without an underscore: there are to be the five entry points only.
_CHECKPOINTS = pathlib.Path(__file__).resolve().parent / "checkpoints"


def _classifier(arch: str, pretrained: bool, stem: str | None) -> nn.Module:
    if not pretrained:
        return models.network(arch) if stem is None else models.network(arch, stem)
    path = _CHECKPOINTS / checkpoint.FILES[arch]
    net, info = checkpoint.load_network(path, arch)
    if stem not in (None, info["stem"]):
        raise ValueError(f"stem is {stem!r}, but {path} has {info['stem']!r}: leave stem out")
    return net


def resnet50(pretrained: bool = True, stem: str | None = None) -> nn.Module:
    """The teacher, torchvision's ResNet-50: images (N, 3, 32, 32) -> logits (N, 10)."""
    return _classifier("resnet50", pretrained, stem)


def densenet121(pretrained: bool = True, stem: str | None = None) -> nn.Module:
    """Student 1, torchvision's DenseNet-121: images (N, 3, 32, 32) -> logits (N, 10)."""
    return _classifier("densenet121", pretrained, stem)


def googlenet(pretrained: bool = True, stem: str | None = None) -> nn.Module:
    """Student 2, torchvision's GoogLeNet: images (N, 3, 32, 32) -> logits (N, 10)."""
    return _classifier("googlenet", pretrained, stem)


def selector(pretrained: bool = True) -> nn.Module:
    """The selector: images (N, 3, 32, 32) -> logits (N,), high where student 1 is the better.

    It has no stem.
    """
    if not pretrained:
        return models.Selector()
    return checkpoint.load_network(_CHECKPOINTS / checkpoint.FILES["selector"], "selector")[0]


def multistudent(pretrained: bool = True, stem: str | None = None) -> nn.Module:
    """Both students behind the selector, of which one runs for each image.

    Images (N, 3, 32, 32) -> logits (N, 10) and the student that gave them, int64 (N,), 0 or 1.
    The threshold between the two is that of the selector's checkpoint, 0.5 when untrained. A
    selector that was made for other students is a utils.files.UserError. The whole cannot be traced
    or exported: export its `students` and its `selector` one by one.
    """
    students = [_classifier(arch, pretrained, stem) for arch in models.STUDENTS]
    if not pretrained:
        return models.MultiStudent(students, models.Selector())
    path = _CHECKPOINTS / checkpoint.FILES["selector"]
    chooser, info = checkpoint.load_network(path, "selector")
    checkpoint.check_students(path, info, students)
    return models.MultiStudent(students, chooser, info.get("threshold", 0.5)).eval()


_ALL_TAKE = """
    Images are RGB, divided by 255, then normalized with the mean (0.4914, 0.4822, 0.4465) and the
    deviation (0.2470, 0.2435, 0.2616); logits are in the order of CIFAR-10's classes.

    pretrained: True for the weights in checkpoints/, in float32 and eval mode; a missing file is a
        utils.files.UserError that names the command that makes it. False for random ones.
    stem: "cifar" or "cifar-pool", as models.network explains; None takes that of the weights, or
        "cifar-pool". ValueError where the weights have another.
"""
for _entry in (resnet50, densenet121, googlenet, selector, multistudent):
    _entry.__doc__ = f"{_entry.__doc__}\n{_ALL_TAKE}"
