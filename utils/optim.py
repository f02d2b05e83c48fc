"""Optimizers for a network, their one-cycle schedule, and Muon for the weights of convolutions."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from utils.device import has_bf16

OPTIMIZERS = ("muon", "adamw", "sgd")
ITERATIONS = 3  # of Newton-Schulz; airbench takes as many
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic, from Jordan's text


def optimizers(
    net: nn.Module, name: str, lr: float, momentum: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Optimizers that together hold all parameters of `net`; biases and norms do not decay.

    Args:
        name: one of OPTIMIZERS. "muon" is for the weights of convolutions but the first, with
            "adamw" for all else.
        momentum: Nesterov's for "sgd" and "muon", the first of the betas for "adamw".
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
    for group in groups:  # each its own betas: read_dict refuses what stands in a state twice
        group["betas"] = (momentum, 0.999)
    return [*chosen, torch.optim.AdamW(groups, lr, fused=True)]


def one_cycle(
    optimizer: torch.optim.Optimizer, lr: float, warmup: float, steps: int, done: int = 0
) -> torch.optim.lr_scheduler.OneCycleLR:
    """The learning rate rises to `lr` over a share `warmup` of the steps and falls along a cosine.

    `done` steps were taken already by an optimizer whose state was loaded.
    """
    steps += 1  # it is stepped after the last one, too
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=lr,
        total_steps=steps,
        pct_start=max(warmup, 1.5 / steps),  # not 0: it divides by the steps of the warm-up
        cycle_momentum=False,
        last_epoch=done - 1,
    )


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, then the nearest orthogonal matrix as the update, and decoupled decay.

    K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; for
    convolutions as in Jordan's cifar10-airbench. `torch.optim.Muon` takes matrices only.
    A convolution's weight (out, in, height, width) counts as the matrix (out, in * height * width).
    The update is scaled to a root mean square of 0.2, as is usual for AdamW, so that the learning
    rate and the weight decay are AdamW's (Liu et al., "Muon is scalable for LLM training", 2025,
    equation 4; `adjust_lr_fn="match_rms_adamw"` of `torch.optim.Muon`).

    Args:
        params: float tensors of two or more dimensions.
        lr: learning rate, 0 or more.
        momentum: in [0, 1).
        weight_decay: 0 or more; a step takes lr * weight_decay of each weight away.
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
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(weight)
                average = state["momentum_buffer"]
                average.lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(average, group["momentum"])  # Nesterov's
                # Its inputs may stand in any order: this one needs no copy in channels last.
                rows = ahead.movedim(1, -1)
                update = orthogonal(rows.flatten(1))
                scale = 0.2 * max(update.shape) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(update.view(rows.shape).movedim(-1, 1), alpha=-group["lr"] * scale)
        return loss


def orthogonal(matrix: torch.Tensor) -> torch.Tensor:
    """About U V^T of the singular value decomposition U S V^T of `matrix` (M, N), in its type.

    A few steps of a Newton-Schulz iteration, X <- (a I + b G + c G^2) X with G = X X^T, in bf16
    where that is faster (`has_bf16`). The steps commute with G, so they are computed on G, the
    smaller matrix, and X is multiplied once. Singular values of at least a fiftieth of the
    Frobenius norm end between 0.68 and 1.21; smaller ones grow by a factor of up to 41.
    """
    wide = matrix.bfloat16() if has_bf16(matrix.device) else matrix
    if len(matrix) > matrix.shape[1]:
        wide = wide.T
    wide = wide / (wide.norm() + 1e-7)
    a, b, c = COEFFICIENTS
    gram = wide @ wide.T
    product = identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    for _ in range(ITERATIONS):
        step = torch.addmm(gram, gram, gram, beta=b, alpha=c) + a * identity
        product = step @ product
        gram = step @ gram @ step
    wide = product @ wide
    return (wide.T if len(matrix) > matrix.shape[1] else wide).to(matrix.dtype)
