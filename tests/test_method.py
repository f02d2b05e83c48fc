"""The losses, the selector's labels and the temperature, compared with values computed by hand."""

import itertools
import math

import pytest
import torch

from models import Cascade, Recorded, confidence, offsets_of
from utils import method
from utils.method import (
    best_temperature,
    best_threshold,
    cascade_thresholds,
    distillation_loss,
    label_weights,
    routed_accuracy,
    selector_labels,
    selector_thresholds,
)

LN3 = math.log(3)  # softmax([ln 3, 0]) is [3/4, 1/4]
LABELS = torch.tensor([0])


EQUAL = [[1.5, -2.0, 7.0]]
SOFT = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)  # of [3/4, 1/4] and [1/2, 1/2]
CROSS_ENTROPY = -math.log(0.75)  # of [ln 3, 0] with label 0


@pytest.mark.parametrize(
    "student, teacher, options, expected",
    [
        # The mean over images and classes.
        ([[1.0, 2.0], [3.0, 4.0]], [[0.0, 2.0], [3.0, 2.0]], {"kind": "mse"}, (1 + 0 + 0 + 4) / 4),
        (EQUAL, EQUAL, {"kind": "mse"}, 0),
        (EQUAL, EQUAL, {"kind": "kl"}, 0),
        # Softened outputs, scaled by the squared temperature; the mean over images.
        ([[0.0, 0.0]], [[2 * LN3, 0.0]], {"kind": "kl", "temperature": 2}, 4 * SOFT),
        (
            [[0.0, 0.0], [5.0, 5.0]],
            [[LN3, 0.0], [1.0, 1.0]],
            {"kind": "kl", "temperature": 1},
            SOFT / 2,
        ),
        # One logit differs by ln 3. Both also differ by 1, which softmax ignores.
        ([[LN3, 0.0]], [[0.0, 0.0]], {"alpha": 0.5}, LN3**2 / 2 + 0.5 * CROSS_ENTROPY),
        ([[LN3, 0.0]], [[LN3 + 1, 1.0]], {"kind": "kl", "alpha": 0.5}, 0.5 * CROSS_ENTROPY),
        # Whatever alpha, and without a teacher.
        ([[LN3, 0.0]], None, {"kind": "none", "alpha": 7.0}, CROSS_ENTROPY),
    ],
)
def test_the_loss_of_a_student_by_hand(student, teacher, options, expected):
    teacher = None if teacher is None else torch.tensor(teacher)
    labels = torch.zeros(len(student), dtype=torch.long)
    loss = distillation_loss(torch.tensor(student), teacher, labels, **options)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_loss_of_bf16_logits_is_computed_in_float32():
    student = torch.tensor([[0.0, 256.0]], dtype=torch.bfloat16)
    teacher = torch.tensor([[1.0, 256.0]], dtype=torch.bfloat16)
    result = distillation_loss(student, teacher, LABELS, alpha=1.0)
    assert result.dtype == torch.float32
    assert result == 256.5  # bf16 would round it to 256


def test_unknown_loss_is_refused_by_name():
    with pytest.raises(ValueError, match="'l1': choose from mse, kl, none"):
        distillation_loss(torch.zeros(1, 1), torch.zeros(1, 1), LABELS, kind="l1")


def test_the_selector_label_is_the_student_with_the_smallest_error_and_of_equal_ones_the_last():
    sure, unsure = [4.0, 0.0], [LN3, 0.0]
    student_1 = torch.tensor([sure, unsure, unsure, sure])
    student_2 = torch.tensor([unsure, sure, unsure, unsure])
    labels = torch.tensor([0, 0, 0, 1])
    result = selector_labels([student_1, student_2], labels)
    assert result.dtype == torch.int64
    assert result.tolist() == [0, 1, 1, 1]  # student 1 is surely wrong about the last
    assert selector_labels([student_1, student_2, student_2], labels).tolist() == [0, 2, 2, 2]


def test_the_threshold_is_the_best_on_the_images_it_is_given():
    scores = torch.tensor([0.1, 0.4, 0.6, 0.9])
    first, second = torch.tensor([0, 1, 1, 1]).bool(), torch.tensor([1, 0, 0, 0]).bool()
    assert 0.1 < best_threshold(scores, first, second) <= 0.4
    assert best_threshold(scores, first, first) == 0.5
    assert best_threshold(scores, first & False, first | True) > 0.9  # everything to student 2


def test_the_thresholds_of_three_students_are_chosen_one_after_the_other():
    sure = torch.tensor([[2.0, 0, 0], [1, 0, 0.9], [0, 1, 0], [0, 0.4, 0], [0, 0, 1]])
    right = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 1, 0, 1, 1]]) > 0
    thresholds = selector_thresholds(sure, right)  # over the sigmoids of 0.1 and of 0.4
    assert thresholds == [0.53, 0.6] and routed_accuracy(sure, right) == 3 / 5
    assert routed_accuracy(sure + offsets_of(thresholds), right) == 1
    assert selector_thresholds(sure[:, :2], right[:1].repeat(2, 1)) == [0.5]  # nothing to gain
    assert selector_thresholds(sure[:, :2], torch.stack([right[0] & False, right[0]])) == [0.89]


def of(rows):
    """Logits of two classes for rows of (number of images, probability of class 0)."""
    chances = torch.tensor([chance for count, chance in rows for _ in range(count)])
    return torch.stack([chances.log(), (1 - chances).log()], dim=1)


def last_of(thresholds, *students):
    """The last student that runs for each image, the cheapest first."""
    return Cascade([*map(Recorded, students)], thresholds)(torch.arange(100))[1].tolist()


def test_the_thresholds_of_a_cascade_lead_to_the_students_that_are_right():
    cheap = of([(25, 0.99), (25, 0.6), (25, 0.4), (25, 0.6)])
    middle = of([(25, 0.01), (25, 0.99), (25, 0.45), (25, 0.6)])
    large = of([(25, 0.01), (25, 0.0001), (25, 0.99), (25, 0.7)])
    labels = torch.zeros(100, dtype=torch.long)
    thresholds = cascade_thresholds([large, cheap, middle], labels, [3, 1, 2])
    assert last_of(thresholds, cheap, middle, large) == [0] * 25 + [1] * 25 + [2] * 25 + [1] * 25


def test_the_thresholds_of_a_cascade_are_the_cheapest_that_are_as_good_up_to_chance():
    cheap = of([(60, 0.9), (3, 0.3), (2, 0.6), (35, 0.8)])
    labels = torch.zeros(100, dtype=torch.long)
    for chance, runs in ((0.01, 0), (0.9, 5)):  # large gains 3 and loses 2, by chance; gains 3
        large = of([(60, 0.9), (3, 0.99), (2, chance), (35, 0.8)])
        thresholds = cascade_thresholds([cheap, large], labels, [1, 2])
        assert sum(last_of(thresholds, cheap, large)) == runs


def test_for_the_teacher_the_thresholds_of_a_cascade_are_the_cheapest_that_surely_reach_it():
    cheap = of([(1, 0.4), (1, 0.3), (1, 0.2), (1, 0.1), (96, 0.99)])
    large, labels = of([(100, 0.999)]), torch.zeros(100, dtype=torch.long)
    for wrong, runs in ((4, 0), (3, 3), (2, 4), (0, 4)):
        teacher_right = torch.arange(100) >= wrong
        thresholds = cascade_thresholds([cheap, large], labels, [1, 2], teacher_right)
        assert sum(last_of(thresholds, cheap, large)) == runs
    thresholds = cascade_thresholds([cheap, cheap], labels, [1, 2], labels == 0)  # out of reach
    assert sum(last_of(thresholds, cheap, cheap)) == 0


def test_all_thresholds_of_a_cascade_are_compared(monkeypatch):
    """With four students: as if each combination was tried by itself."""
    monkeypatch.setattr(method, "PERCENT", torch.tensor([0.3, 0.6]))
    logits, labels = torch.randn(4, 200, 3).mul(2), torch.randint(0, 3, (200,))
    work, places = [4.0, 1.0, 2.0, 8.0], torch.arange(200)
    ordered = [Recorded(logits[k]) for k in (1, 2, 0, 3)]
    cost, grids, tried = torch.tensor([1.0, 3, 7, 15]), [], []
    for k in range(3):
        sure = confidence(Cascade(ordered, [math.inf] * k + [0] * (3 - k))(places)[0])
        inner = sure.quantile(method.PERCENT).tolist()
        grids.append([0.0, *(round(each, 6) for each in inner), 1.01])
    for thresholds in itertools.product(*grids):
        predicted, last = Cascade(ordered, thresholds)(places)
        right = (predicted.argmax(dim=1) == labels).double()
        tried.append((right, cost[last].sum(), list(thresholds)))
    best = max(tried, key=lambda each: (each[0].sum(), -each[1]))[0]
    apart = [right - best for right, *_ in tried]
    enough = [gain.sum() >= -(gain.abs().sum() ** 0.5) for gain in apart]
    expected = min(itertools.compress(tried, enough), key=lambda each: each[1])[2]
    assert cascade_thresholds(logits, labels, work) == expected


def test_a_label_weighs_what_its_image_loses_at_the_other_student_and_one_on_average():
    student_1 = torch.tensor([[100.0, -100.0], [LN3, 0.0], [0.0, 0.0], [LN3, 0.0]])
    student_2 = torch.tensor([[-100.0, 100.0], [100.0, -100.0], [0.0, 0.0], [0.0, LN3]])
    labels = torch.tensor([0, 0, 0, 1])  # errors 0, 0.5, 1 and 1.5; 2, 0, 1 and 0.5
    weights = label_weights([student_1, student_2], labels)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.tensor([2, 0.5, 0, 1]) / 0.875)
    assert label_weights([student_1, student_1], labels).tolist() == [1, 1, 1, 1]
    three = label_weights([student_1, student_2, student_2], labels)
    torch.testing.assert_close(three, torch.tensor([2, 0.25, 0, 0.5]) / 0.6875)


@pytest.mark.parametrize(
    "right, expected",
    [
        (3, 5.0),  # 3 of 4 are right: softmax([5 ln 3, 0] / 5) says so
        (4, 0.1),  # the end of the range
        (2, 10.0),  # a coin
    ],
)
def test_the_temperature_makes_the_probability_the_share_of_right_answers(right, expected):
    logits = torch.tensor([[5 * LN3, 0.0]]).repeat(4, 1)
    labels = torch.tensor([0] * right + [1] * (4 - right))
    assert best_temperature(logits, labels) == expected
