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


def _classifier(
    arch: str, pretrained: bool, stem: str | None, num_classes: int | None
) -> nn.Module:
    asked = {"stem": stem, "classes": num_classes}
    asked = {name: value for name, value in asked.items() if value is not None}
    if not pretrained:
        return _checked(models.network(arch, **asked))
    path = _CHECKPOINTS / checkpoint.FILES[arch]
    net, info = checkpoint.load_network(path, arch)
    found = {"stem": info["stem"], "classes": len(info["classes"])}
    for name, value in asked.items():
        if value != found[name]:
            flag = {"classes": "num_classes"}.get(name, name)
            raise ValueError(
                f"{flag} is {value!r}, but {path} has {found[name]!r}: leave {flag} out"
            )
    return _checked(net)


def _checked(net: nn.Module) -> nn.Module:
    net.register_forward_pre_hook(models.check_images)
    return net


def resnet50(
    pretrained: bool = True, stem: str | None = None, num_classes: int | None = None
) -> nn.Module:
    """The teacher, torchvision's ResNet-50: images (N, 3, 32, 32) -> logits (N, classes).

    Images are RGB, divided by 255, then normalized with the mean (0.4914, 0.4822, 0.4465) and the
    deviation (0.2470, 0.2435, 0.2616); ValueError where they are not float (N, 3, 32, 32). Logits
    are in the order of the classes of the weights, CIFAR-10's in those that are shipped.

    Args:
        pretrained: True for the weights in checkpoints/, in float32, on the CPU and in eval mode; a
            missing file is a utils.files.UserError that names the command that makes it. False for
            random ones, in float32.
        stem: "cifar" or "cifar-pool", as models.network explains; None takes that of the weights,
            or "cifar-pool". ValueError where the weights have another.
        num_classes: 2 to 1,000; None takes those of the weights, or 10. ValueError where the
            weights have another number.
    """
    return _classifier("resnet50", pretrained, stem, num_classes)


def densenet121(
    pretrained: bool = True, stem: str | None = None, num_classes: int | None = None
) -> nn.Module:
    """Student 1, torchvision's DenseNet-121: images (N, 3, 32, 32) -> logits (N, classes).

    Images and arguments are those of `resnet50`.
    """
    return _classifier("densenet121", pretrained, stem, num_classes)


def googlenet(
    pretrained: bool = True, stem: str | None = None, num_classes: int | None = None
) -> nn.Module:
    """Student 2, torchvision's GoogLeNet: images (N, 3, 32, 32) -> logits (N, classes).

    Images and arguments are those of `resnet50`.
    """
    return _classifier("googlenet", pretrained, stem, num_classes)


def selector(pretrained: bool = True) -> nn.Module:
    """The selector: images (N, 3, 32, 32) -> logits (N,), high where student 1 is the better.

    Images are those of `resnet50`. It has no stem and no classes.
    """
    if not pretrained:
        return _checked(models.Selector())
    path = _CHECKPOINTS / checkpoint.FILES["selector"]
    return _checked(checkpoint.load_network(path, "selector")[0])


def multistudent(
    pretrained: bool = True, stem: str | None = None, num_classes: int | None = None
) -> nn.Module:
    """Both students behind the selector, of which one runs for each image.

    Images (N, 3, 32, 32) -> logits (N, classes) and the student that gave them, int64 (N,), 0 or 1.
    Images and arguments are those of `resnet50`. The threshold is that of the selector's
    checkpoint, 0.5 when untrained. A selector that was made for other students is a
    utils.files.UserError. The whole cannot be traced or exported: export its `students` and its
    `selector` one by one.
    """
    students = [_classifier(arch, pretrained, stem, num_classes) for arch in models.STUDENTS]
    if not pretrained:
        return _checked(models.MultiStudent(students, models.Selector()))
    path = _CHECKPOINTS / checkpoint.FILES["selector"]
    chooser, info = checkpoint.load_network(path, "selector")
    checkpoint.check_students(path, info, students)
    return _checked(models.MultiStudent(students, chooser, info.get("threshold", 0.5)).eval())
