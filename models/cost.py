"""The cost of a network: its parameters, and the MACs for one image."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(net: nn.Module) -> float:
    """Number of parameters, in millions."""
    return sum(parameter.numel() for parameter in net.parameters()) / 1e6


@torch.no_grad()
def macs(net: nn.Module, size: int = 32) -> int:
    """Multiply-accumulates of convolutions and linear layers for one image of `size` pixels.

    PyTorch's FlopCounterMode counts two operations per multiply-accumulate.
    """
    weights = next(net.parameters())
    with FlopCounterMode(display=False) as counter:
        net.eval()(torch.zeros(1, 3, size, size, device=weights.device, dtype=weights.dtype))
    return counter.get_total_flops() // 2
