"""Confidence intervals, significance tests, area under the ROC curve, and calibration."""

import itertools
import math
import statistics
from collections.abc import Iterator, Sequence
from statistics import NormalDist

import numpy as np
import torch

Z = NormalDist().inv_cdf(0.975)  # 1.96: 95 % of a normal distribution lie within Z deviations

# 0.975 quantile of Student's t distribution with 1 to 9 degrees of freedom.
T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % confidence interval of the mean of 2 to 10 values, for example of several seeds.

    By Student's t distribution ("The probable error of a mean", Biometrika 6 (1908), 1-25).
    """
    mean = statistics.mean(values)
    half = T[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
    return mean - half, mean + half


def wilson_interval(accuracy: float, images: int) -> tuple[float, float]:
    """The 95 % confidence interval of an accuracy on `images` images; both in [0, 1].

    Wilson's score interval: E. B. Wilson, "Probable inference, the law of succession, and
    statistical inference", Journal of the American Statistical Association 22 (1927), 209-212. It
    accounts for the sampling of the images, not for the randomness of the training.
    """
    shrink = 1 + Z**2 / images
    center = (accuracy + Z**2 / (2 * images)) / shrink
    half = Z / shrink * math.sqrt(accuracy * (1 - accuracy) / images + (Z / (2 * images)) ** 2)
    return max(0.0, center - half), min(1.0, center + half)  # rounding may exceed [0, 1]


def right_alone(right_a: torch.Tensor, right_b: torch.Tensor) -> tuple[int, int]:
    """On how many images A is correct and B is not, and the other way round; bool (N,) each."""
    return (right_a & ~right_b).sum().item(), (right_b & ~right_a).sum().item()


def mcnemar_p(right_a: torch.Tensor, right_b: torch.Tensor) -> float:
    """Two-sided p value, in (0, 1], of McNemar's exact test for two classifiers on the same images.

    The null hypothesis: an image on which exactly one classifier is correct is equally likely to
    be correct for either. Q. McNemar, Psychometrika 12 (1947), 153-157. The arguments say whether
    each classifier is correct, bool (N,).
    """
    only_a, only_b = right_alone(right_a, right_b)
    count = only_a + only_b
    tail = sum(math.comb(count, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**count)


def paired_interval(right_a: torch.Tensor, right_b: torch.Tensor) -> tuple[float, float]:
    """The 95 % confidence interval of the accuracy of A minus that of B on the same images.

    Adds half an image to each of the four counts, so that it is not empty where A and B agree:
    A. Agresti and Y. Min, Statistics in Medicine 24 (2005), 729-740. The arguments are those of
    `mcnemar_p`.
    """
    only_a, only_b = (count + 0.5 for count in right_alone(right_a, right_b))
    images = len(right_a) + 2
    gain = (only_a - only_b) / images
    half = Z * math.sqrt((only_a + only_b) / images - gain**2) / math.sqrt(images)
    return gain - half, gain + half


def auroc(scores: torch.Tensor, positive: torch.Tensor) -> float:
    """The area under the ROC curve: the probability that a positive scores above a negative.

    Ties count half: J. A. Hanley and B. J. McNeil, Radiology 143 (1982), 29-36. In [0, 1], 0.5 is
    chance level; NaN if there are no positives or no negatives.

    Args:
        scores: (N,).
        positive: bool (N,).
    """
    positives, negatives = scores[positive], scores[~positive].sort().values
    if not len(positives) or not len(negatives):
        return math.nan
    below, up_to = (
        torch.searchsorted(negatives, positives, right=ties).sum().item() for ties in (False, True)
    )
    return (below + up_to) / 2 / (len(positives) * len(negatives))


def auroc_interval(area: float, positives: int, negatives: int) -> tuple[float, float]:
    """The 95 % confidence interval of an `auroc` from these numbers of positives and negatives.

    Contains each true area whose distance to `area` is at most Z of its standard errors (Hanley and
    McNeil 1982, equations 1 and 2), as Wilson's interval does: R. G. Newcombe, Statistics in
    Medicine 25 (2006), 559-573. So it is right for few images, too.
    """

    def compatible(true: float) -> bool:
        q1, q2 = true / (2 - true), 2 * true**2 / (1 + true)
        variance = (
            true * (1 - true) + (positives - 1) * (q1 - true**2) + (negatives - 1) * (q2 - true**2)
        ) / (positives * negatives)
        return abs(area - true) <= Z * math.sqrt(max(0.0, variance))

    ends = []
    for outside in (0.0, 1.0):
        inside = area
        for _ in range(50):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if compatible(middle) else (inside, middle)
        ends.append(inside)
    return ends[0], ends[1]


def auroc_apart(
    scores: torch.Tensor, right: torch.Tensor
) -> tuple[float, tuple[float, float] | None]:
    """The `auroc` of a router on the images where exactly one of two students is correct.

    With more than two students, the mean over all pairs, as in D. J. Hand and R. J. Till, Machine
    Learning 45 (2001), 171-186. Returns the area and its 95 % interval; NaN and None if there is no
    pair where each is correct alone.

    Args:
        scores: (N, K), high if a student is preferred.
        right: bool (K, N), whether each student is correct.
    """
    areas = []
    for i, j, *_ in _pairs(right):
        apart = right[i] != right[j]
        areas.append(auroc((scores[:, i] - scores[:, j])[apart], right[i][apart]))
    if not areas:
        return math.nan, None
    area = statistics.fmean(areas)
    return area, auroc_mean_interval(area, right)


def auroc_mean_interval(area: float, right: torch.Tensor) -> tuple[float, float]:
    """The `auroc_interval` of an area from `auroc_apart`; of several pairs, the mean of its ends.

    The pairs share images, so the interval of their mean is not much smaller.
    """
    ends = [auroc_interval(area, *alone) for _, _, *alone in _pairs(right)]
    low, high = map(statistics.fmean, zip(*ends, strict=True))
    return low, high


def _pairs(right: torch.Tensor) -> Iterator[tuple[int, int, int, int]]:
    """Pairs of students of whom each is correct alone, and on how many images each is."""
    for i, j in itertools.combinations(range(len(right)), 2):
        alone = right_alone(right[i], right[j])
        if all(alone):
            yield i, j, *alone


def reliability(
    probabilities: torch.Tensor, right: torch.Tensor, bins: int = 15
) -> list[tuple[float, float, int]]:
    """Mean probability, accuracy and number of images of each bin of equal width that has images.

    Args:
        probabilities: of the predicted classes, in [0, 1], (N,).
        right: whether the predictions are correct, bool (N,).
    """
    said, true = probabilities.cpu().numpy(), right.cpu().numpy()
    place = np.minimum((said * bins).astype(int), bins - 1)
    rows = []
    for k in np.unique(place):
        means = (each[place == k].mean(dtype=float).item() for each in (said, true))
        rows.append((*means, int((place == k).sum())))
    return rows


def calibration_error(probabilities: torch.Tensor, right: torch.Tensor) -> float:
    """The expected calibration error with 15 bins, in [0, 1].

    C. Guo et al., "On calibration of modern neural networks" (ICML 2017). The arguments are those
    of `reliability`.
    """
    rows = reliability(probabilities, right)
    return sum(count * abs(said - true) for said, true, count in rows) / len(right)
