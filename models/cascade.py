"""Students one after the other: each further one runs only where those before are not sure."""

from collections.abc import Sequence

import torch
from torch import nn

from models.multistudent import refuse_tracing


class Cascade(nn.Module):
    """The students that ran answer together, with the mean of their logits.

    A committee that stops early, as of X. Wang et al., "Wisdom of Committees" (ICLR 2022).

    Args:
        students: in the order in which they run, the cheapest first, each images (N, 3, 32, 32) ->
            logits (N, classes).
        threshold: the next student runs where the largest probability of the answer so far is
            below it. 0 runs the first student alone, anything above 1 all students.
    """

    def __init__(self, students: Sequence[nn.Module], threshold: float) -> None:
        super().__init__()
        self.students = nn.ModuleList(students)
        self.threshold = threshold

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, classes), float32, and the index of the last student that ran, int64 (N,).

        RuntimeError where it is traced or exported, as `refuse_tracing` explains.
        """
        if not torch.jit.is_scripting():
            refuse_tracing(self, images)
        first, *others = self.students
        logits = first(images).float()
        last = torch.zeros(len(images), dtype=torch.long, device=images.device)
        for k, student in enumerate(others, 1):
            # An answer that was sure stays as it is, so that these are among those before.
            unsure = (confidence(logits) < self.threshold).nonzero().squeeze(1)
            if len(unsure):
                before = logits[unsure]
                logits[unsure] = before + (student(images[unsure]).float() - before) / (k + 1)
                last[unsure] = k
        return logits, last


def confidence(logits: torch.Tensor) -> torch.Tensor:
    """The largest softmax probability: logits (N, classes) -> (N,) in (0, 1]."""
    return logits.softmax(dim=1).amax(dim=1)
