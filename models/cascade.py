"""A cascade of students: the next student runs only if the previous ones are not confident."""

from collections.abc import Sequence

import torch
from torch import nn

from models.multistudent import refuse_tracing


class Cascade(nn.Module):
    """A cascade of students. The result for an image is the mean logits of the students that ran.

    See X. Wang et al., "Wisdom of Committees" (ICLR 2022).

    Args:
        students: in the order in which they run, usually the cheapest first. Each maps images
            (N, 3, 32, 32) to logits (N, classes).
        threshold: the next student runs if the largest probability so far is below the threshold.
            0: only the first student runs. Above 1: all students run.
    """

    def __init__(self, students: Sequence[nn.Module], threshold: float) -> None:
        super().__init__()
        self.students = nn.ModuleList(students)
        self.threshold = threshold

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 logits (N, classes) and the index of the last student, int64 (N,).

        Raises RuntimeError if traced or exported, see `refuse_tracing`.
        """
        if not torch.jit.is_scripting():
            refuse_tracing(self, images)
        first, *others = self.students
        logits = first(images).float()
        last = torch.zeros(len(images), dtype=torch.long, device=images.device)
        for k, student in enumerate(others, 1):
            # Confident images keep their logits, so later students see only a subset of these.
            unsure = (confidence(logits) < self.threshold).nonzero().squeeze(1)
            if len(unsure):
                before = logits[unsure]
                logits[unsure] = before + (student(images[unsure]).float() - before) / (k + 1)
                last[unsure] = k
        return logits, last


def confidence(logits: torch.Tensor) -> torch.Tensor:
    """The largest softmax probability: logits (N, classes) -> (N,) in (0, 1]."""
    return logits.softmax(dim=1).amax(dim=1)
