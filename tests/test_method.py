"""The losses, the selector's labels and the temperature, compared with values computed by hand."""

import math

import pytest
import torch

from utils.method import (
    absolute_error,
    best_temperature,
    distillation_loss,
    label_weights,
    selector_labels,
)

LN3 = math.log(3)  # softmax([ln 3, 0]) is [3/4, 1/4]
LABELS = torch.tensor([0])


def loss(student, teacher, labels=LABELS, **options):
    teacher = None if teacher is None else torch.tensor(teacher)
    return distillation_loss(torch.tensor(student), teacher, labels, **options).item()


def test_mse_is_the_mean_over_images_and_classes():
    labels = torch.tensor([0, 1])
    assert loss([[1.0, 2.0], [3.0, 4.0]], [[0.0, 2.0], [3.0, 2.0]], labels) == (1 + 0 + 0 + 4) / 4


@pytest.mark.parametrize("kind", ["mse", "kl"])
def test_equal_logits_have_no_distillation_loss(kind):
    assert loss([[1.5, -2.0, 7.0]], [[1.5, -2.0, 7.0]], kind=kind) == pytest.approx(0, abs=1e-6)


def test_kl_compares_softened_outputs_and_is_scaled_by_the_squared_temperature():
    # At T = 2 the teacher's softened outputs are [3/4, 1/4], the student's [1/2, 1/2].
    expected = 4 * (0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5))
    assert loss([[0.0, 0.0]], [[2 * LN3, 0.0]], kind="kl", temperature=2) == pytest.approx(expected)


def test_kl_is_the_mean_over_images():
    one = loss([[0.0, 0.0]], [[LN3, 0.0]], kind="kl", temperature=1)
    both = loss(
        [[0.0, 0.0], [5.0, 5.0]],
        [[LN3, 0.0], [1.0, 1.0]],
        LABELS.repeat(2),
        kind="kl",
        temperature=1,
    )
    assert both == pytest.approx(one / 2)


@pytest.mark.parametrize(("kind", "distilled"), [("mse", LN3**2 / 2), ("kl", 0.0)])
def test_alpha_weighs_the_cross_entropy_that_is_added(kind, distilled):
    # "mse": one logit differs by ln 3. "kl": both also differ by 1, which softmax ignores.
    teacher = [[0.0, 0.0]] if kind == "mse" else [[LN3 + 1, 1.0]]
    expected = distilled + 0.5 * -math.log(0.75)
    assert loss([[LN3, 0.0]], teacher, kind=kind, alpha=0.5) == pytest.approx(expected, abs=1e-6)


def test_none_is_the_cross_entropy_whatever_alpha_and_without_a_teacher():
    assert loss([[LN3, 0.0]], None, kind="none", alpha=7.0) == pytest.approx(-math.log(0.75))


def test_loss_of_bf16_logits_is_computed_in_float32():
    student = torch.tensor([[0.0, 256.0]], dtype=torch.bfloat16)
    teacher = torch.tensor([[1.0, 256.0]], dtype=torch.bfloat16)
    result = distillation_loss(student, teacher, LABELS, alpha=1.0)
    assert result.dtype == torch.float32
    assert result == 256.5  # bf16 would round it to 256


def test_unknown_loss_is_refused_by_name():
    with pytest.raises(ValueError, match="'l1': choose from mse, kl, none"):
        loss([[0.0]], [[0.0]], kind="l1")


def test_absolute_error_sums_over_the_classes():
    logits = torch.tensor([[LN3, 0.0], [LN3, 0.0], [100.0, -100.0], [100.0, -100.0]])
    error = absolute_error(logits, torch.tensor([0, 1, 0, 1]))
    torch.testing.assert_close(error, torch.tensor([0.5, 1.5, 0.0, 2.0]))


def test_selector_label_is_1_only_where_student_1_is_strictly_better():
    sure, unsure = [4.0, 0.0], [LN3, 0.0]
    student_1 = torch.tensor([sure, unsure, unsure, sure])
    student_2 = torch.tensor([unsure, sure, unsure, unsure])
    result = selector_labels(student_1, student_2, torch.tensor([0, 0, 0, 1]))
    assert result.dtype == torch.float32
    assert result.tolist() == [1, 0, 0, 0]  # a tie is student 2's; the last is surely wrong


def test_a_label_weighs_what_its_image_loses_at_the_other_student_and_one_on_average():
    student_1 = torch.tensor([[100.0, -100.0], [LN3, 0.0], [0.0, 0.0], [LN3, 0.0]])
    student_2 = torch.tensor([[-100.0, 100.0], [100.0, -100.0], [0.0, 0.0], [0.0, LN3]])
    labels = torch.tensor([0, 0, 0, 1])  # errors 0, 0.5, 1 and 1.5; 2, 0, 1 and 0.5
    weights = label_weights(student_1, student_2, labels)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, torch.tensor([2, 0.5, 0, 1]) / 0.875)
    assert label_weights(student_1, student_1, labels).tolist() == [1, 1, 1, 1]


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
