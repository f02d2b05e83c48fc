"""Systems without a selector: a cascade of students, and the more confident student."""

from collections.abc import Sequence

import torch
from torch import nn

from models.multistudent import refuse_tracing


class Cascade(nn.Module):
    """A cascade of students: the next one runs only where the answer so far is not confident.

    See X. Wang et al., "Wisdom of Committees" (ICLR 2022).

    Args:
        students: K networks in the order in which they run, usually the cheapest first. Each maps
            images (N, 3, H, W) to logits (N, classes).
        thresholds: K - 1, one per step. The next student runs if the largest probability so far is
            below the threshold. 0: it never runs. Above 1: it always runs.
        alone: number of first students that answer alone: the next student's logits replace theirs.
            The answer of those behind them is the mean of their logits. Default: all but the last
            two. 0: the answer is the mean of all that ran.
    """

    def __init__(
        self, students: Sequence[nn.Module], thresholds: Sequence[float], alone: int | None = None
    ) -> None:
        super().__init__()
        if len(thresholds) != len(students) - 1:
            raise ValueError(f"{len(students)} students, but {len(thresholds)} thresholds")
        self.students = nn.ModuleList(students)
        self.thresholds = list(thresholds)
        self.alone = max(0, len(students) - 2) if alone is None else alone

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 logits (N, classes) and the index of the last student, int64 (N,).

        Raises RuntimeError if traced or exported, see `refuse_tracing`.
        """
        refuse_tracing(self, images)
        first, *others = self.students
        logits = first(images).float()
        last = torch.zeros(len(images), dtype=torch.long, device=images.device)
        for k, (student, threshold) in enumerate(zip(others, self.thresholds, strict=True), 1):
            unsure = (last == k - 1) & (confidence(logits) < threshold)
            unsure = unsure.nonzero().squeeze(1)
            if len(unsure):
                after = student(images[unsure]).float()
                if k > self.alone:
                    before = logits[unsure]
                    after = before + (after - before) / (k + 1 - self.alone)
                logits[unsure], last[unsure] = after, k
        return logits, last


class MoreConfident(nn.Module):
    """All students run, and the one with the largest probability answers; of equal ones, the first.

    Each student maps images (N, 3, H, W) to logits (N, classes).
    """

    def __init__(self, students: Sequence[nn.Module]) -> None:
        super().__init__()
        self.students = nn.ModuleList(students)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return float32 logits (N, classes) and the index of the student, int64 (N,)."""
        logits = torch.stack([student(images).float() for student in self.students])
        choice = torch.stack([confidence(each) for each in logits]).argmax(dim=0)
        return logits[choice, torch.arange(len(choice), device=choice.device)], choice


def confidence(logits: torch.Tensor) -> torch.Tensor:
    """The largest softmax probability: logits (N, classes) -> (N,) in (0, 1]."""
    return logits.softmax(dim=1).amax(dim=1)
