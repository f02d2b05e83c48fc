"""Optimizers, the one-cycle learning rate schedule, and Muon for convolution weights."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

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
        lr: learning rate. On a GPU, it is kept as tensors there, so that recorded steps
            (utils.training_step) read its present value.
        momentum: Nesterov momentum for "sgd" and "muon", beta1 for "adamw".
    """
    weights = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]
    on_gpu = weights[0].is_cuda
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
        chosen.append(torch.optim.SGD(groups, lr, momentum, nesterov=momentum > 0, fused=True))
    else:
        for group in groups:  # separate tuples: read_dict refuses objects that occur twice
            group["betas"] = (momentum, 0.999)
        chosen.append(torch.optim.AdamW(groups, lr, fused=True, capturable=on_gpu))
    if on_gpu:
        for group in (group for optimizer in chosen for group in optimizer.param_groups):
            group["lr"] = torch.tensor(lr, device=weights[0].device)
    return chosen


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

    Each step multiplies the weights, float tensors with two or more dimensions, by
    1 - lr * weight_decay.
    """

    def __init__(
        self, params: Iterable[torch.Tensor], lr: float, momentum: float, weight_decay: float
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            for weight in weights:
                if not self.state[weight]:
                    self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
            averages = [self.state[weight]["momentum_buffer"] for weight in weights]
            gradients = [weight.grad for weight in weights]
            torch._foreach_lerp_(averages, gradients, 1 - group["momentum"])
            ahead = torch._foreach_lerp(gradients, averages, group["momentum"])  # Nesterov
            # The order of the matrix columns is free: this one needs no copy in channels last.
            rows = [each.movedim(1, -1) for each in ahead]
            updates = orthogonal([each.flatten(1) for each in rows])
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            for weight, each, update in zip(weights, rows, updates, strict=True):
                update *= 0.2 * max(update.shape) ** 0.5 * group["lr"]
                weight.sub_(update.view(each.shape).movedim(-1, 1))


def orthogonal(matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Approximate U V^T of the singular value decomposition U S V^T of each matrix (M, N).

    Uses a few Newton-Schulz iterations, X <- (a I + b G + c G^2) X with G = X X^T, in bf16 if that
    is faster (`has_bf16`). The factors commute with G, so they are computed with G, the smaller
    matrix, and multiplied with X once. All G of the same size are iterated together. Singular
    values of at least 1/50 of the Frobenius norm end up between 0.68 and 1.21; smaller ones grow by
    a factor of up to 41. The matrices are on the same device, of any sizes; the results have their
    types.
    """
    low = has_bf16(matrices[0].device)
    wides, by_size = [], defaultdict(list)  # size of G: places of its matrices
    for place, matrix in enumerate(matrices):
        wide = matrix.bfloat16() if low else matrix
        wides.append(wide.T if len(matrix) > matrix.shape[1] else wide)
        by_size[len(wides[-1])].append(place)
    results = list(matrices)
    for places in by_size.values():
        products = newton_schulz(torch.stack([wides[k] @ wides[k].T for k in places]))
        for place, product in zip(places, products, strict=True):
            wide, matrix = product @ wides[place], matrices[place]
            results[place] = (wide.T if len(matrix) > matrix.shape[1] else wide).to(matrix.dtype)
    return results


def newton_schulz(grams: torch.Tensor) -> torch.Tensor:
    """The product of the factors of all iterations, for X X^T of any norm: (B, K, K)."""
    a, b, c = COEFFICIENTS

    def factor(grams: torch.Tensor) -> torch.Tensor:
        result = torch.baddbmm(grams, grams, grams, beta=b, alpha=c)
        result.diagonal(dim1=1, dim2=2).add_(a)
        return result

    # The trace of X X^T is the square of the Frobenius norm of X.
    squares = grams.diagonal(dim1=1, dim2=2).sum(dim=1, dtype=torch.float32)[:, None, None] + 1e-14
    grams = (grams / squares).to(grams.dtype)
    product = step = factor(grams)
    for _ in range(ITERATIONS - 1):
        grams = step @ grams @ step
        step = factor(grams)
        product = step @ product
    return (product / squares.sqrt()).to(product.dtype)
