"""Optimizers, the one-cycle learning rate schedule, and Muon for convolution weights."""

from collections.abc import Iterable

import torch
from torch import nn

from utils.device import has_bf16

OPTIMIZERS = ("muon", "adamw", "sgd")
ITERATIONS = 3  # of Newton-Schulz, as in cifar10-airbench
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic polynomial (Jordan et al. 2024)


def optimizers(
    net: nn.Module, name: str, lr: float, momentum: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Create the optimizers for all parameters of `net`.

    Weight decay is not applied to biases and normalization layers.

    Args:
        name: one of OPTIMIZERS. "muon" uses Muon for convolution weights except those of the first
            convolution, and AdamW for all other parameters.
        lr: learning rate.
        momentum: Nesterov momentum for "sgd" and "muon", beta1 for "adamw".
        weight_decay: >= 0.
    """
    weights = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    chosen: list[torch.optim.Optimizer] = []
    if name == "muon":
        inner = [p for p in weights if p.ndim == 4][1:]
        if inner:
            chosen.append(Muon(inner, lr, momentum, weight_decay))
        taken = {id(p) for p in inner}
        weights = [p for p in weights if id(p) not in taken]
    groups = [
        {"params": weights, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if name == "sgd":
        return [torch.optim.SGD(groups, lr, momentum, nesterov=momentum > 0, fused=True)]
    for group in groups:  # separate tuples: read_dict refuses objects that occur twice in a file
        group["betas"] = (momentum, 0.999)
    return [*chosen, torch.optim.AdamW(groups, lr, fused=True)]


def one_cycle(
    optimizer: torch.optim.Optimizer, lr: float, warmup: float, steps: int, done: int = 0
) -> torch.optim.lr_scheduler.OneCycleLR:
    """Create a schedule: warm-up to `lr` in a fraction `warmup` of the steps, then cosine decay.

    `done` is the number of steps already taken, for an optimizer whose state was loaded.
    """
    steps += 1  # the scheduler is also stepped after the last step
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=lr,
        total_steps=steps,
        pct_start=max(warmup, 1.5 / steps),  # OneCycleLR divides by the number of warm-up steps
        cycle_momentum=False,
        last_epoch=done - 1,
    )


class Muon(torch.optim.Optimizer):
    """Muon: Nesterov momentum, orthogonalized update, decoupled weight decay.

    K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; for
    convolutions as in Jordan's cifar10-airbench. `torch.optim.Muon` supports matrices only.
    The weight of a convolution (out, in, height, width) is treated as a matrix
    (out, in * height * width). The update is scaled to a root mean square of 0.2, as is usual for
    AdamW, so that learning rate and weight decay have the same meaning as for AdamW (Liu et al.,
    "Muon is scalable for LLM training", 2025, equation 4; `adjust_lr_fn="match_rms_adamw"` of
    `torch.optim.Muon`).

    Args:
        params: float tensors with two or more dimensions.
        lr: learning rate, >= 0.
        momentum: in [0, 1).
        weight_decay: >= 0; each step multiplies the weights by 1 - lr * weight_decay.
    """

    def __init__(
        self,
        params: Iterable[torch.Tensor],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                average = state["momentum_buffer"]
                average.lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(average, group["momentum"])  # Nesterov
                # The order of the matrix columns is free: this one needs no copy in channels last.
                rows = ahead.movedim(1, -1)
                update = orthogonal(rows.flatten(1))
                scale = 0.2 * max(update.shape) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update.view(rows.shape).movedim(-1, 1), alpha=-group["lr"] * scale)


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """Approximate U V^T of the singular value decomposition U S V^T of `matrix` (M, N).

    Uses a few Newton-Schulz iterations, X <- (a I + b G + c G^2) X with G = X X^T, in bf16 if that
    is faster (`has_bf16`). The factors commute with G, so they are computed with G, the smaller
    matrix, and multiplied with X once. Singular values of at least 1/50 of the Frobenius norm end
    up between 0.68 and 1.21; smaller ones grow by a factor of up to 41.

    Returns:
        (M, N), with the type of `matrix`.
    """
    wide = matrix.bfloat16() if has_bf16(matrix.device) else matrix
    if len(matrix) > matrix.shape[1]:
        wide = wide.T
    wide = wide / (wide.norm() + 1e-7)
    a, b, c = COEFFICIENTS

    def factor(gram: torch.Tensor) -> torch.Tensor:
        result = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        result.diagonal().add_(a)
        return result

    gram = wide @ wide.T
    product = step = factor(gram)
    for _ in range(ITERATIONS - 1):
        gram = step @ gram @ step
        step = factor(gram)
        product = step @ product
    wide = product @ wide
    return (wide.T if len(matrix) > matrix.shape[1] else wide).to(matrix.dtype)
