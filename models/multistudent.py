"""The whole system: the selector chooses one student per image, and only that student runs."""

import math
from collections.abc import Sequence

import torch
from torch import nn


def refuse_tracing(system: nn.Module, images: torch.Tensor) -> None:
    """Raise RuntimeError under torch.jit.trace, torch.export, torch.onnx and torch.fx.

    They would record which networks run for the example batch, and with how many images.
    """
    traced = torch.jit.is_tracing() or torch.compiler.is_exporting()
    if traced or isinstance(images, torch.fx.Proxy):
        parts = " and ".join(name for name, _ in system.named_children())
        raise RuntimeError(
            f"{type(system).__name__} cannot be traced or exported, because the network that runs "
            f"depends on the image: export its {parts} one by one, and choose as forward() does"
        )


def offsets_of(thresholds: Sequence[float]) -> torch.Tensor:
    """The offsets (K,) for thresholds of all students but the last: -logit(threshold), then 0.

    With two students, student 1 answers if its probability from the selector, the sigmoid of the
    difference of the logits, is at least the threshold. 0 (offset inf): always student 1. 1 or more
    (offset -inf): always student 2.
    """
    offsets = [math.log(1 / t - 1) if 0 < t < 1 else math.inf * (0.5 - t) for t in thresholds]
    # PyTorch's default device and type may be others.
    return torch.tensor([*offsets, 0.0], device="cpu", dtype=torch.float32)


class MultiStudent(nn.Module):
    """Students and a selector.

    Args:
        students: K networks. Each maps images (N, 3, H, W) to logits (N, classes).
        selector: maps images (N, 3, H, W) to logits (N, K), high if a student should answer.
        offsets: (K,). The student with the largest sum of logit and offset answers; of equal sums,
            the first. Default: 0. See `offsets_of`.
    """

    def __init__(
        self,
        students: Sequence[nn.Module],
        selector: nn.Module,
        offsets: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.students = nn.ModuleList(students)
        self.selector = selector
        offsets = offsets_of([0.5] * (len(students) - 1)) if offsets is None else offsets
        if len(offsets) != len(students):
            raise ValueError(f"{len(students)} students, but {len(offsets)} offsets")
        self.register_buffer("offsets", offsets, persistent=False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (N, classes) of the chosen students, and the choice, int64 (N,), from 0.

        Raises RuntimeError if traced or exported, see `refuse_tracing`.
        """
        refuse_tracing(self, images)
        scores = self.selector(images).float()
        choice = (scores + self.offsets.to(scores)).argmax(dim=1)
        parts, positions = [], []
        for k, student in enumerate(self.students):
            chosen = (choice == k).nonzero().squeeze(1)
            if len(chosen) or not len(images):
                parts.append(student(images[chosen]))
                positions.append(chosen)
        return torch.cat(parts)[torch.cat(positions).argsort()], choice


class Mean(nn.Module):
    """The mean of the float32 logits of several networks, for images (N, 3, H, W)."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([net(images).float() for net in self.nets]).mean(dim=0)


class Recorded(nn.Module):
    """Stored outputs (N, ...) in the place of a network: its images are places, int64 (B,).

    Systems made of these answer from stored logits: `system(torch.arange(N))`.
    """

    def __init__(self, outputs: torch.Tensor) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, places: torch.Tensor) -> torch.Tensor:
        return self.outputs[places]
