"""The method: distillation loss, absolute error, selector labels, threshold, temperature."""

import torch
import torch.nn.functional as F

LOSSES = ("mse", "kl", "none")


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


def absolute_error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum over the classes of |softmax(logits) - one-hot|: (N, classes) -> (N,) in [0, 2]."""
    one_hot = F.one_hot(labels, logits.shape[1])
    return (logits.float().softmax(dim=1) - one_hot).abs().sum(dim=1)


def selector_labels(
    logits_1: torch.Tensor, logits_2: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """1.0 if the absolute error of student 1 is below that of student 2, else 0.0: float32 (N,).

    This is the label rule of the published method.
    """
    error_1, error_2 = (absolute_error(logits, labels) for logits in (logits_1, logits_2))
    return (error_1 < error_2).float()


def label_weights(
    logits_1: torch.Tensor, logits_2: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Weights for `selector_labels` of the same arguments: float32 (N,), with mean 1.

    The weight of an image is proportional to the difference of the students' absolute errors, that
    is, to the loss of sending it to the wrong student. If all differences are 0, all weights are 1.
    """
    error_1, error_2 = (absolute_error(logits, labels) for logits in (logits_1, logits_2))
    lost = (error_1 - error_2).abs()
    return lost / lost.mean() if lost.any() else torch.ones_like(lost)


def share(where: torch.Tensor) -> float:
    """The fraction of True in a bool tensor (N,), in [0, 1].

    Uses an integer sum, because Apple's GPUs do not support float64.
    """
    return where.sum().item() / len(where)


def routed_accuracy(
    threshold: float, scores: torch.Tensor, right_from: torch.Tensor, right_below: torch.Tensor
) -> float:
    """Top-1 accuracy of routing by a score: one network if score >= threshold, else another.

    Args:
        threshold: compared with the scores.
        scores: (N,).
        right_from: bool (N,), whether the network for scores >= threshold is correct.
        right_below: bool (N,), whether the network for scores < threshold is correct.
    """
    return share(torch.where(scores >= threshold, right_from, right_below))


def best_threshold(
    scores: torch.Tensor,
    right_from: torch.Tensor,
    right_below: torch.Tensor,
) -> float:
    """The threshold with the highest `routed_accuracy`, among 0.00, 0.01, ..., 1.01.

    Of equally good ones, the nearest to 0.5. At 0.0, the first network answers for all images; at
    1.01, the second does.
    """

    return max(
        sorted((k / 100 for k in range(102)), key=lambda threshold: abs(threshold - 0.5)),
        key=lambda threshold: routed_accuracy(threshold, scores, right_from, right_below),
    )


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
