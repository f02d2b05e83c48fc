"""The selector: a small CNN that predicts which student has the smaller error on an image."""

import torch
from torch import nn

WIDTHS = (32, 64, 96, 128)  # output channels of blocks 1 to 4


class SmallCNN(nn.Module):
    """`depth` blocks of 3x3 convolution, batch norm, ReLU and max-pool, then a linear layer.

    Maps normalized images (N, 3, S, S) to logits (N, num_classes), of the mean over positions.
    Raises ValueError unless `depth` is 1 to 4.
    """

    def __init__(self, num_classes: int, depth: int = 3, batch_norm: bool = True) -> None:
        super().__init__()
        if not 1 <= depth <= len(WIDTHS):
            raise ValueError(f"depth is {depth}: choose 1 to {len(WIDTHS)}")
        blocks: list[nn.Module] = []
        for fan_in, width in zip((3, *WIDTHS), WIDTHS[:depth], strict=False):
            blocks.append(nn.Conv2d(fan_in, width, kernel_size=3, padding=1, bias=not batch_norm))
            if batch_norm:
                blocks.append(nn.BatchNorm2d(width))
            blocks += [nn.ReLU(inplace=True), nn.MaxPool2d(2)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(WIDTHS[depth - 1], num_classes)
        self.float()  # PyTorch's default type may be another

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(images).mean(dim=(2, 3)))


class Selector(SmallCNN):
    """A `SmallCNN` with one logit per student: images (N, 3, S, S) -> logits (N, students).

    Their softmax are the probabilities that a student has the smallest error. With depth 3: 0.08 M
    parameters, 9.1 M MACs.
    """

    def __init__(self, depth: int = 3, batch_norm: bool = True, outputs: int = 2) -> None:
        super().__init__(outputs, depth, batch_norm)
