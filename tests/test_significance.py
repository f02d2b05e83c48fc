"""Intervals, tests and areas, compared with published values, SciPy and by hand."""

import math

import pytest
import scipy.stats
import torch

from evaluation.significance import (
    auroc,
    auroc_interval,
    calibration_error,
    mcnemar_p,
    paired_interval,
    reliability,
    wilson_interval,
)


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


def bools(text):
    return torch.tensor([each == "1" for each in text])


@pytest.mark.parametrize("alone", [(2, 2), (5, 0), (1, 6), (1300, 1200)])
def test_mcnemar_is_the_binomial_test_of_the_images_on_which_one_is_right(alone):
    place = torch.arange(3000)
    a, b = place < alone[0], (place >= alone[0]) & (place < sum(alone))
    expected = scipy.stats.binomtest(alone[0], sum(alone)).pvalue
    assert mcnemar_p(a, b) == mcnemar_p(~b, ~a) == pytest.approx(expected)
    assert mcnemar_p(a, a) == 1


def test_the_interval_of_a_difference_by_hand():
    # With half an image more each: 3.5 and 1.5 of 10. The gain is 0.2, its variance 0.046.
    found = paired_interval(bools("11110000"), bools("10001000"))
    assert found == pytest.approx((-0.220365, 0.620365), abs=1e-6)
    low, high = paired_interval(bools("1100"), bools("1100"))
    assert high == -low > 0  # two classifiers that agree on a few images may still differ


@pytest.mark.parametrize(
    "scores, positive, area",
    [
        ([0.1, 0.2, 0.8, 0.9], "0011", 1.0),
        ([0.1, 0.2, 0.8, 0.9], "1100", 0.0),
        ([5.0, 5.0, 5.0], "011", 0.5),  # equal scores tell nothing
        ([1.0, 2.0, 3.0, 4.0], "0101", 3 / 4),  # 2 beats 1; 4 beats 1 and 3; 2 loses to 3
        ([1.0, 1.0, 2.0], "010", 1 / 4),  # half a win over 1, none over 2
        ([1.0, 2.0], "00", math.nan),
        ([1.0, 2.0], "11", math.nan),
    ],
)
def test_auroc_by_hand(scores, positive, area):
    found = auroc(torch.tensor(scores), bools(positive))
    assert found == pytest.approx(area, nan_ok=True)


def test_the_interval_of_an_area_by_hand():
    # A = 0.5: Q1 = 1/3, Q2 = 1/3; (0.25 + 2 (1/3 - 1/4) 9) / 100 = 0.0175, its root 0.132288.
    half = 1.959964 * 0.132288
    assert auroc_interval(0.5 + half, 10, 10)[0] == pytest.approx(0.5, abs=1e-6)
    assert auroc_interval(0.5 - half, 10, 10)[1] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize("area", [0.0, 1.0])
def test_a_few_images_do_not_show_that_a_router_beats_chance(area):
    low, high = auroc_interval(area, 2, 2)
    assert low < 0.5 < high and area in (low, high)


def test_the_calibration_error_by_hand():
    said = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.5, 0.5, 1.0])
    right = bools("1110101")
    rows = [value for row in reliability(said, right) for value in row]
    assert rows == pytest.approx([0.5, 0.5, 2, 0.9, 0.75, 4, 1, 1, 1])
    # 0.9 said and 0.75 true of four, 0.5 and 0.5 of two, 1 and 1 of one.
    assert calibration_error(said, right) == pytest.approx(4 / 7 * 0.15, abs=1e-6)
