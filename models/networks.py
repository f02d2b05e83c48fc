"""The teacher and the students: torchvision's networks with a stem for 32x32 images."""

import torch
import torchvision
from torch import nn

NAMES = {"resnet50": "ResNet-50", "densenet121": "DenseNet-121", "googlenet": "GoogLeNet"}
ARCHS = tuple(NAMES)
STUDENTS = ("densenet121", "googlenet")  # student 1 and student 2
STEMS = ("cifar", "cifar-pool")
CLASS_COUNTS = range(2, 1001)


def network(arch: str, stem: str = "cifar-pool", classes: int = 10) -> nn.Module:
    """Create one of torchvision's classifiers with random weights and a stem for 32x32 images.

    The original networks are for 224x224 images and downsample by 4 before the first block. Both
    stems replace the 7x7 convolution of stride 2 by a 3x3 convolution of stride 1. The stem "cifar"
    also removes the max-pool after it, which is more accurate. The stem "cifar-pool" keeps it and
    needs a quarter of the MACs.

    The network maps normalized images (N, 3, 32, 32) to logits (N, classes). It is float32, also if
    PyTorch's default type is another. Its state dict has the same keys as torchvision's.

    Args:
        arch: one of ARCHS.
        stem: one of STEMS.
        classes: 2 to 1,000.

    Raises:
        ValueError: an argument has another value.
    """
    if arch not in ARCHS:
        raise ValueError(f"arch is {arch!r}: choose from {', '.join(ARCHS)}")
    if stem not in STEMS:
        raise ValueError(f"stem is {stem!r}: choose from {', '.join(STEMS)}")
    if classes not in CLASS_COUNTS:
        raise ValueError(f"classes is {classes!r}: choose 2 to {CLASS_COUNTS[-1]:,}")
    if arch == "resnet50":
        net = torchvision.models.resnet50(num_classes=classes, zero_init_residual=True)
        net.conv1 = _first_convolution()
        if stem == "cifar":
            net.maxpool = nn.Identity()
    elif arch == "densenet121":
        net = torchvision.models.densenet121(num_classes=classes)
        net.features.conv0 = _first_convolution()
        if stem == "cifar":
            net.features.pool0 = nn.Identity()
    else:
        net = torchvision.models.googlenet(
            num_classes=classes, aux_logits=False, transform_input=False, init_weights=True
        )
        net.conv1.conv = _first_convolution()
        if stem == "cifar":
            net.maxpool1 = nn.Identity()
    return net.float()


def check_images(net: nn.Module, inputs: tuple[torch.Tensor]) -> None:
    """A forward pre-hook that raises ValueError unless the input is float (N, 3, 32, 32)."""
    images = inputs[0]
    if not images.is_floating_point() or list(images.shape[1:]) != [3, 32, 32]:
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}, but this network takes float "
            "[N, 3, 32, 32], divided by 255 and normalized: see hubconf.resnet50"
        )


def _first_convolution() -> nn.Conv2d:
    conv = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
