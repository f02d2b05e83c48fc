"""The networks that can be teacher or student, and the choice of both."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torchvision import models

from models.selector import SmallCNN

# Edit here: names in NETWORKS. The cascade has all students; the selector chooses among SELECTED.
TEACHER, STUDENTS = "resnet50", ("densenet121", "googlenet", "cnn")
SELECTED = STUDENTS[:2]


class Arch(NamedTuple):
    """One row of NETWORKS."""

    title: str  # in tables and figures
    constructor: Callable[..., nn.Module]  # given `num_classes`, for images of 224x224 pixels
    first: str  # the name of its first convolution
    pool: str | None = None  # the name of the max-pool behind it


def _resnet(title: str, constructor: Callable[..., nn.Module]) -> Arch:
    return Arch(title, partial(constructor, zero_init_residual=True), "conv1", "maxpool")


# A further network is a further row. A constructor may occur twice, under two names.
NETWORKS = {
    "resnet18": _resnet("ResNet-18", models.resnet18),
    "resnet50": _resnet("ResNet-50", models.resnet50),
    "resnet101": _resnet("ResNet-101", models.resnet101),
    "wide_resnet50_2": _resnet("Wide ResNet-50-2", models.wide_resnet50_2),
    "densenet121": Arch("DenseNet-121", models.densenet121, "features.conv0", "features.pool0"),
    "densenet169": Arch("DenseNet-169", models.densenet169, "features.conv0", "features.pool0"),
    "googlenet": Arch(
        "GoogLeNet",
        partial(models.googlenet, aux_logits=False, transform_input=False, init_weights=True),
        "conv1.conv",
        "maxpool1",
    ),
    "mobilenet_v2": Arch("MobileNetV2", models.mobilenet_v2, "features.0.0"),
    "mobilenet_v3_small": Arch("MobileNetV3 small", models.mobilenet_v3_small, "features.0.0"),
    "shufflenet_v2_x1_0": Arch("ShuffleNetV2", models.shufflenet_v2_x1_0, "conv1.0", "maxpool"),
    "efficientnet_b0": Arch("EfficientNet-B0", models.efficientnet_b0, "features.0.0"),
    "vgg11_bn": Arch("VGG-11", models.vgg11_bn, "features.0", "features.3"),
    "cnn": Arch("small CNN", SmallCNN, "blocks.0"),
}
STEMS = ("cifar", "cifar-pool")
CLASS_COUNTS = range(2, 1001)

for _name in (TEACHER, *STUDENTS):
    if _name not in NETWORKS or STUDENTS.count(_name) > 1:
        raise ValueError(f"TEACHER or STUDENTS: {_name!r} is not in NETWORKS, or is there twice")
if len(set(SELECTED)) < max(2, len(SELECTED)) or not set(SELECTED) <= set(STUDENTS):
    raise ValueError(f"SELECTED is {SELECTED}: choose two or more of {', '.join(STUDENTS)}")


def network(arch: str, stem: str = "cifar-pool", classes: int = 10) -> nn.Module:
    """Create a classifier with random weights and a stem for 32x32 images.

    The original networks are for 224x224 images. ResNet, DenseNet, GoogLeNet and ShuffleNet
    downsample by 4 before the first block, with a convolution of stride 2 and a max-pool. Here, the
    first convolution has stride 1 and a kernel of at most 3x3. The stem "cifar" also removes the
    max-pool behind it, which is more accurate. The stem "cifar-pool" keeps it and needs about a
    quarter of the MACs. MobileNet and EfficientNet have no such max-pool, and the small CNN has
    one in each block: for these, both stems are the same network.

    The network maps normalized images (N, 3, S, S) to logits (N, classes). It is float32, also if
    PyTorch's default type is another. Its state dict has the same keys as torchvision's.

    Raises ValueError unless `arch` is in NETWORKS, `stem` in STEMS, and `classes` 2 to 1,000.
    """
    if arch not in NETWORKS:
        raise ValueError(f"arch is {arch!r}: choose from {', '.join(NETWORKS)}")
    if stem not in STEMS:
        raise ValueError(f"stem is {stem!r}: choose from {', '.join(STEMS)}")
    if classes not in CLASS_COUNTS:
        raise ValueError(f"classes is {classes!r}: choose 2 to {CLASS_COUNTS[-1]:,}")
    row = NETWORKS[arch]
    net = row.constructor(num_classes=classes)
    conv = net.get_submodule(row.first)
    if max(conv.kernel_size) > 3:
        conv = nn.Conv2d(conv.in_channels, conv.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        net.set_submodule(row.first, conv)
    conv.stride = (1, 1)
    if stem == "cifar" and row.pool:
        net.set_submodule(row.pool, nn.Identity())
    return net.float()


def check_images(net: nn.Module, inputs: tuple[torch.Tensor], sizes: Sequence[int]) -> None:
    """A forward pre-hook that raises ValueError unless the input is float (N, 3, S, S).

    `sizes` are the values that S may have.
    """
    images = inputs[0]
    shapes = [[3, size, size] for size in sizes]
    if not images.is_floating_point() or list(images.shape[1:]) not in shapes:
        raise ValueError(
            f"images are {images.dtype} {list(images.shape)}, but this network takes float "
            f"[N, 3, {sizes[0]}, {sizes[0]}], divided by 255 and normalized: see hubconf.teacher"
        )
