"""The method: distillation loss, absolute error, selector labels, threshold, temperature."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from models import Cascade, Recorded, confidence, offsets_of

LOSSES = ("mse", "kl", "none")
THRESHOLDS = [k / 100 for k in range(102)]  # of the selector, those to choose from
PERCENT = torch.arange(1, 100) / 100


def distillation_loss(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor | None,
    labels: torch.Tensor,
    kind: str = "mse",
    alpha: float = 0.0,
    temperature: float = 4.0,
) -> torch.Tensor:
    """The loss of a student, a scalar.

    "mse": mean squared error between the logits (Ba and Caruana 2014, equation 1), plus `alpha`
    times the cross-entropy with the labels. "kl": T^2 times the Kullback-Leibler divergence between
    the softened outputs (Hinton, Vinyals and Dean 2015, section 2), plus `alpha` times the
    cross-entropy. "none": cross-entropy only, for training without a teacher.

    Args:
        student_logits: (N, classes).
        teacher_logits: (N, classes), for the same augmented images; None with kind "none".
        labels: int64 (N,).
        kind: one of LOSSES.
        alpha: weight of the cross-entropy, >= 0.
        temperature: T of the softened outputs, > 0, for "kl" only.
    """
    student_logits = student_logits.float()
    if kind == "none":
        return F.cross_entropy(student_logits, labels)
    teacher_logits = teacher_logits.float()
    if kind == "mse":
        loss = F.mse_loss(student_logits, teacher_logits)
    elif kind == "kl":
        loss = temperature**2 * F.kl_div(
            F.log_softmax(student_logits / temperature, dim=1),
            F.log_softmax(teacher_logits / temperature, dim=1),
            reduction="batchmean",
            log_target=True,
        )
    else:
        raise ValueError(f"distillation loss is {kind!r}: choose from {', '.join(LOSSES)}")
    return loss + alpha * F.cross_entropy(student_logits, labels) if alpha else loss


def absolute_errors(logits: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Sum over the classes of |softmax(logits) - one-hot|: K (N, classes) -> (K, N) in [0, 2]."""
    one_hot = F.one_hot(labels, logits[0].shape[1])
    probabilities = [each.float().softmax(dim=1) for each in logits]
    return torch.stack([(each - one_hot).abs().sum(dim=1) for each in probabilities])


def selector_labels(logits: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """The index of the student with the smallest absolute error: int64 (N,), from 0.

    This is the label rule of the published method. Of equal errors, the last student's counts: of
    two students, student 1 is the label only if its error is smaller.

    Args:
        logits: (N, classes) of each student.
        labels: int64 (N,).
    """
    errors = absolute_errors(logits, labels)
    return len(errors) - 1 - errors.flip(0).argmin(dim=0)


def label_weights(logits: Sequence[torch.Tensor], labels: torch.Tensor) -> torch.Tensor:
    """Weights for `selector_labels` of the same arguments: float32 (N,), with mean 1.

    The weight of an image is proportional to the loss of sending it to the wrong student: the mean
    difference between the absolute errors of the other students and the smallest one. If all
    differences are 0, all weights are 1.
    """
    errors = absolute_errors(logits, labels)
    lost = (errors - errors.amin(dim=0)).sum(dim=0) / (len(errors) - 1)
    return lost / lost.mean() if lost.any() else torch.ones_like(lost)


def share(where: torch.Tensor) -> float:
    """The fraction of True in a bool tensor (N,), in [0, 1].

    Uses an integer sum, because Apple's GPUs do not support float64.
    """
    return where.sum().item() / len(where)


def routed_accuracy(scores: torch.Tensor, right: torch.Tensor) -> float:
    """Top-1 accuracy if the student with the highest score answers; of equal ones, the first.

    Args:
        scores: (N, K).
        right: bool (K, N), whether each student is correct.
    """
    return share(right.gather(0, scores.argmax(dim=1)[None])[0])


def best_threshold(
    scores: torch.Tensor, right_from: torch.Tensor, right_below: torch.Tensor
) -> float:
    """The threshold with the highest top-1 accuracy, among 0.00, 0.01, ..., 1.01.

    One network answers if score >= threshold, else another. Of equally good thresholds, the nearest
    to 0.5. At 0.0, the first network answers for all images; at 1.01, the second does.

    Args:
        scores: (N,), in [0, 1].
        right_from: bool (N,), whether the network for scores >= threshold is correct.
        right_below: bool (N,), whether the network for scores < threshold is correct.
    """
    return max(
        sorted(THRESHOLDS, key=lambda threshold: abs(threshold - 0.5)),
        key=lambda threshold: share(torch.where(scores >= threshold, right_from, right_below)),
    )


def selector_thresholds(
    scores: torch.Tensor,
    right: torch.Tensor,
    best: Callable[..., float] = lambda margin, *right: best_threshold(margin.sigmoid(), *right),
    offset: Callable[[float], float] = lambda threshold: offsets_of([threshold])[0].item(),
) -> list[float]:
    """Thresholds of all students but the last, for `models.offsets_of`, one after the other.

    Each is the best one for the probability of this student against the strongest other student,
    given the thresholds before it; those behind it are 0.5.

    Args:
        scores: logits of the selector, (N, K).
        right: bool (K, N), whether each student is correct.
        best: the best threshold for differences of scores; the other arguments are those of
            `best_threshold`.
        offset: what a threshold adds to the scores of its student.
    """
    shifted, thresholds = scores.clone(), []
    for k in range(len(right) - 1):
        others = shifted.clone()
        others[:, k] = -math.inf
        highest, rival = others.max(dim=1)
        right_rival = right.gather(0, rival[None])[0]
        thresholds.append(best(scores[:, k] - highest, right[k], right_rival))
        shifted[:, k] += offset(thresholds[k])
    return thresholds


def cascade_thresholds(
    logits: Sequence[torch.Tensor],
    labels: torch.Tensor,
    work: Sequence[float],
    teacher_right: torch.Tensor | None = None,
) -> list[float]:
    """Thresholds for a `models.Cascade`, one per step: the cheapest that are accurate enough.

    All combinations of percentiles of the confidence before each step are compared. Without a
    teacher, "enough" is one standard error of the difference below the most accurate combination:
    the rule of Breiman et al., "Classification and Regression Trees", 1984. With a teacher, it is
    one standard error above the teacher, because thresholds are a little worse on other images than
    those that they were chosen on. If no combination reaches it, the teacher is ignored.

    Args:
        logits: (N, classes) of each student.
        labels: int64 (N,).
        work: MACs of each student. The cheapest runs first.
        teacher_right: bool (N,), whether the teacher is correct.
    """
    order = sorted(range(len(logits)), key=lambda k: work[k])
    students = [Recorded(logits[k].cpu()) for k in order]  # Apple's GPUs have no float64
    labels, places, steps = labels.cpu(), torch.arange(len(labels)), len(order) - 1

    def logits_at(thresholds: Sequence[float]) -> torch.Tensor:
        return Cascade(students, thresholds)(places)[0]

    every = [logits_at([math.inf] * k + [0] * (steps - k)) for k in range(len(order))]
    right = torch.stack([each.argmax(dim=1) == labels for each in every]).double()
    grids, ends = [], []  # thresholds; whether each image ends there, bool (thresholds, N)
    for scores in map(confidence, every[:-1]):
        percentiles = [round(each, 6) for each in scores.quantile(PERCENT).tolist()]
        grids.append([0.0, *percentiles, 1.01])
        ends.append(scores >= torch.tensor(grids[-1])[:, None])

    def total(values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` (K, N), each at the step where its image ends: (combinations,)."""
        sums, reached = values.new_zeros(1, 1), torch.ones_like(values[:1])
        for end, value in zip(ends[:-1], values, strict=False):
            sums = (sums + reached @ (end * value).T).flatten()[:, None]
            reached = (reached[:, None] * ~end).flatten(0, 1)
        return (sums + reached @ torch.where(ends[-1], values[-2], values[-1]).T).flatten()

    cost = torch.tensor([work[k] for k in order], dtype=torch.float64).cumsum(dim=0)
    hits, cost = total(right), total(cost[:, None].expand_as(right))

    def at_least(theirs: torch.Tensor, errors: float) -> torch.Tensor:
        """Which combinations are so many standard errors more accurate than `theirs`, bool (N,)."""
        differ = hits + theirs.sum() - 2 * total(right * theirs)
        return hits - theirs.sum() >= errors * differ.sqrt()  # as in McNemar's test

    def cheapest(enough: torch.Tensor) -> list[float]:
        chosen = torch.where(enough, cost, math.inf).argmin()
        picked = torch.unravel_index(chosen, [len(grid) for grid in grids])
        return [grid[k] for grid, k in zip(grids, picked, strict=True)]

    if teacher_right is not None:
        enough = at_least(teacher_right.cpu(), 1)
        if enough.any():
            return cheapest(enough)
    most_accurate = logits_at(cheapest(hits == hits.max())).argmax(dim=1) == labels
    return cheapest(at_least(most_accurate, -1))


def best_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature for calibrated probabilities: softmax(logits / temperature).

    The temperature with the smallest cross-entropy (Guo et al., "On calibration of modern neural
    networks", ICML 2017), from 0.1 to 10, rounded to 0.01. Predicted classes do not change.

    Args:
        logits: (N, classes), of images not used for training.
        labels: int64 (N,).
    """
    low, high = 0.1, 10.0
    for _ in range(20):
        middle = (low * high) ** 0.5
        # The derivative of the cross-entropy is 0 where the expected logit is the label's logit.
        expected = (logits.div(middle).softmax(dim=1) * logits).sum(dim=1).mean()
        if expected > logits.gather(1, labels[:, None]).mean():  # overconfident
            low = middle
        else:
            high = middle
    return round((low * high) ** 0.5, 2)
