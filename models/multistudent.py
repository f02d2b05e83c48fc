"""The whole system: the selector chooses one student per image, and only that student runs."""

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


class MultiStudent(nn.Module):
    """Two students and a selector.

    Args:
        students: student 1 and student 2. Each maps images (N, 3, 32, 32) to logits (N, classes).
        selector: maps images (N, 3, 32, 32) to logits (N,), high if student 1 should answer.
        threshold: student 1 answers if sigmoid(selector logit) >= threshold. 0: always student 1.
            Above 1: always student 2.
    """

    def __init__(
        self, students: Sequence[nn.Module], selector: nn.Module, threshold: float = 0.5
    ) -> None:
        super().__init__()
        if len(students) != 2:
            raise ValueError(f"{len(students)} students: the selector chooses between exactly 2")
        self.students = nn.ModuleList(students)
        self.selector = selector
        self.threshold = threshold

    def choose(self, images: torch.Tensor) -> torch.Tensor:
        """The index of the student for each image: int64 (N,), 0 or 1."""
        return (self.selector(images).float().sigmoid() < self.threshold).long()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits (N, classes) of the chosen students, and the choice, int64 (N,).

        Raises RuntimeError if traced or exported, see `refuse_tracing`.
        """
        if not torch.jit.is_scripting():
            refuse_tracing(self, images)
        choice = self.choose(images)
        parts, positions = [], []
        for k, student in enumerate(self.students):
            chosen = (choice == k).nonzero().squeeze(1)
            if len(chosen) or not len(images):
                parts.append(student(images[chosen]))
                positions.append(chosen)
        return torch.cat(parts)[torch.cat(positions).argsort()], choice
