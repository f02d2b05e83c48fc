"""How sure a measured accuracy is."""

import math
from statistics import NormalDist

Z = NormalDist().inv_cdf(0.975)  # 1.96: 95 % of a normal distribution lie within Z deviations


def wilson_interval(accuracy: float, images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy, both in [0, 1], each image counting as right or wrong.

    Wilson's score interval: E. B. Wilson, "Probable inference, the law of succession, and
    statistical inference", Journal of the American Statistical Association 22 (1927), 209-212. It
    tells what another draw of as many images would give, not what another training would.
    """
    shrink = 1 + Z**2 / images
    center = (accuracy + Z**2 / (2 * images)) / shrink
    half = Z / shrink * math.sqrt(accuracy * (1 - accuracy) / images + (Z / (2 * images)) ** 2)
    return max(0.0, center - half), min(1.0, center + half)  # against rounding
