"""Intervals against published ones."""

import pytest

from utils.statistics import wilson_interval


@pytest.mark.parametrize(
    "right, images, low, high",
    [  # R. G. Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_intervals_are_those_of_the_literature(right, images, low, high):
    assert wilson_interval(right / images, images) == pytest.approx((low, high), abs=5e-5)


def test_an_interval_of_few_images_by_hand():
    # Roots of (p - 1)^2 = z^2 p (1 - p) / 2, with z^2 = 3.841459: 2 / (2 + z^2) and 1.
    assert wilson_interval(1.0, 2) == pytest.approx((0.342380, 1.0), abs=1e-6)


@pytest.mark.parametrize("images", [1, 3, 20, 10_000])
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_interval_holds_its_accuracy_and_stays_within_0_and_1(share, images):
    low, high = wilson_interval(share, images)
    assert 0 <= low <= share <= high <= 1
    assert low < high


def test_what_is_right_mirrors_what_is_wrong():
    low, high = wilson_interval(0.8, 50)
    assert wilson_interval(0.2, 50) == pytest.approx((1 - high, 1 - low))
