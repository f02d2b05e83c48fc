"""The method: distillation loss, a student's error, selector labels, threshold, temperature."""

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
    """What a student is trained to make small, as a scalar.

    "mse": the mean squared error between the logits (Ba and Caruana 2014, equation 1), plus
    `alpha` times the cross-entropy with the labels. "kl": T^2 times the Kullback-Leibler divergence
    between the softened outputs (Hinton, Vinyals and Dean 2015, section 2), plus the same.
    "none": the cross-entropy alone, for the student that has no teacher.

    Args:
        student_logits: (N, classes).
        teacher_logits: (N, classes), of the very same images; None with kind "none".
        labels: int64 (N,).
        kind: one of LOSSES.
        alpha: weight of the cross-entropy, 0 or more.
        temperature: T of the softened outputs, above 0, for "kl" only.
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
    """1.0 where student 1 is the better one, else 0.0: float32 (N,).

    Student 1 is better where its absolute error is below that of student 2, as published.
    """
    error_1, error_2 = (absolute_error(logits, labels) for logits in (logits_1, logits_2))
    return (error_1 < error_2).float()


def label_weights(
    logits_1: torch.Tensor, logits_2: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """How much each of the `selector_labels` of the same arguments matters: float32 (N,), mean 1.

    The difference of the students' absolute errors: what an image loses that goes to the other
    student. 1 for all where no image loses anything.
    """
    error_1, error_2 = (absolute_error(logits, labels) for logits in (logits_1, logits_2))
    lost = (error_1 - error_2).abs()
    return lost / lost.mean() if lost.any() else torch.ones_like(lost)


def share(where: torch.Tensor) -> float:
    """The share of True in a bool tensor (N,), in [0, 1].

    Counted in whole numbers on the device: Apple's GPUs have no float64 to average in.
    """
    return where.sum().item() / len(where)


def routed_accuracy(
    threshold: float, scores: torch.Tensor, right_from: torch.Tensor, right_below: torch.Tensor
) -> float:
    """Top-1 accuracy where one answers from `threshold` on, and another below it; each (N,)."""
    return share(torch.where(scores >= threshold, right_from, right_below))


def best_threshold(
    scores: torch.Tensor,
    right_from: torch.Tensor,
    right_below: torch.Tensor,
) -> float:
    """The threshold of the highest routed accuracy, in hundredths; of equals the nearest to 0.5.

    0.0 sends every image to the one that answers from the threshold on, 1.01 to the one below it.
    """

    return max(
        sorted((k / 100 for k in range(102)), key=lambda threshold: abs(threshold - 0.5)),
        key=lambda threshold: routed_accuracy(threshold, scores, right_from, right_below),
    )


def best_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """What to divide logits by, so that their softmax says how often the answers are right.

    The temperature of the smallest cross-entropy (Guo et al., "On calibration of modern neural
    networks", ICML 2017), between 0.1 and 10, in hundredths. The class of an image stays the same.

    Args:
        logits: (N, classes), of images that the network was not trained on.
        labels: int64 (N,).
    """
    low, high = 0.1, 10.0
    for _ in range(20):
        middle = (low * high) ** 0.5
        # The slope of the cross-entropy: logits are expected to be as high as the labels' are.
        expected = (logits.div(middle).softmax(dim=1) * logits).sum(dim=1).mean()
        if expected > logits.gather(1, labels[:, None]).mean():  # too sure of itself
            low = middle
        else:
            high = middle
    return round((low * high) ** 0.5, 2)
