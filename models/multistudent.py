"""The whole system: the selector sends each image to one student, and only that one runs."""

from collections.abc import Sequence

import torch
from torch import nn


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
        """Logits (N, classes) of the chosen students, and the choice, int64 (N,)."""
        choice = self.choose(images)
        parts, positions = [], []
        for k, student in enumerate(self.students):
            chosen = (choice == k).nonzero().squeeze(1)
            if len(chosen) or not len(images):
                parts.append(student(images[chosen]))
                positions.append(chosen)
        return torch.cat(parts)[torch.cat(positions).argsort()], choice
