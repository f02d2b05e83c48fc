"""The whole system: the selector sends each image to one student, and only that one runs."""

from collections.abc import Sequence

import torch
from torch import nn


def refuse_tracing(system: nn.Module, images: torch.Tensor) -> None:
    """Raise RuntimeError under torch.jit.trace, torch.export, torch.onnx and torch.fx.

    They would record the networks that run for one batch, and for how many of its images.
    """
    traced = torch.jit.is_tracing() or torch.compiler.is_exporting()
    if traced or isinstance(images, torch.fx.Proxy):
        parts = " and ".join(name for name, _ in system.named_children())
        raise RuntimeError(
            f"{type(system).__name__} cannot be traced or exported, as which network runs depends "
            f"on each image: export its {parts} one by one, and choose as its forward() does"
        )


class MultiStudent(nn.Module):
    """Two students behind a selector.

    Args:
        students: student 1 and student 2, each images (N, 3, 32, 32) -> logits (N, classes).
        selector: images (N, 3, 32, 32) -> logits (N,), high where student 1 is the better.
        threshold: student 1 answers where sigmoid(selector logit) >= threshold. 0 sends every
            image to student 1, anything above 1 sends every image to student 2.
    """

    def __init__(
        self, students: Sequence[nn.Module], selector: nn.Module, threshold: float = 0.5
    ) -> None:
        super().__init__()
        if len(students) != 2:
            raise ValueError(f"{len(students)} students: a selector of one logit chooses between 2")
        self.students = nn.ModuleList(students)
        self.selector = selector
        self.threshold = threshold

    def choose(self, images: torch.Tensor) -> torch.Tensor:
        """The index into `students`, int64 (N,), of the student that answers for each image."""
        return (self.selector(images).float().sigmoid() < self.threshold).long()

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, classes) of the chosen students, and the choice, int64 (N,).

        RuntimeError where it is traced or exported, as `refuse_tracing` explains.
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
