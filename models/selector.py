"""The selector: a small CNN that looks at an image and says which student will do better on it."""

import torch
from torch import nn

WIDTHS = (32, 64, 96, 128)  # output channels of blocks 1 to 4


class Selector(nn.Module):
    """`depth` blocks of 3x3 convolution, batch norm, ReLU and max-pool, then one logit.

    Takes normalized images (N, 3, 32, 32) and returns logits (N,): their sigmoid is the probability
    that student 1 is the better one for the image. At depth 3: 0.08 M parameters, 9.1 M MACs.

    Raises ValueError where `depth` is not 1 to 4.
    """

    def __init__(self, depth: int = 3, batch_norm: bool = True) -> None:
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
        self.head = nn.Linear(WIDTHS[depth - 1], 1)
        self.float()  # whatever PyTorch's default type

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.blocks(images).mean(dim=(2, 3))).squeeze(1)
