"""Device and precision."""

import contextlib
import ctypes
import functools
import os
from pathlib import Path

import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

from utils.files import UserError

CPUINFO = Path("/proc/cpuinfo")  # exists on Linux only
AT_ONCE = 128  # images: more do not fit into the caches of a CPU


def pick_device(name: str) -> torch.device:
    """The device for --device `name`; "auto" is a GPU if available, else the CPU.

    With several processes on one machine, each uses another GPU. Raises UserError if this computer
    has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # set by torchrun
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is not None:
            torch.cuda.set_device(device)  # random state and capabilities are the current device's
        torch.empty(1, device=device).cpu()
        torch.autocast(device.type, torch.bfloat16, enabled=False)
    # For a device that this build of PyTorch lacks, errors of many types are possible.
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0].split(". ")[0]
        raise UserError(f"--device {name} cannot be used: {reason}; try --device cpu") from error
    return device


def keep_freed_memory() -> None:
    """Make glibc keep freed memory in this process. Does nothing with other C libraries.

    Each training step frees its activations, and the next step allocates the same amount. By
    default glibc returns large blocks to the kernel, which clears them again every time.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # constants of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # TypeError: on Windows
        libc = ctypes.CDLL(None)
        libc.mallopt(m_trim_threshold, -1)
        libc.mallopt(m_mmap_max, 0)


def has_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies bf16 matrices faster than float32 matrices.

    Intel processors need AMX for this: with AVX-512 bf16 instructions only, a training step takes
    a third longer than in float32. For AMD processors, AVX-512 bf16 is enough.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and _cpu_has_bf16(CPUINFO)


@functools.lru_cache  # Muon asks in every step
def _cpu_has_bf16(cpuinfo: Path) -> bool:
    try:
        processor = cpuinfo.read_text()
    except OSError:
        return False
    return "amx_bf16" in processor or ("avx512_bf16" in processor and "AuthenticAMD" in processor)


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """bf16 autocast if it is faster (`has_bf16`), else float32."""
    if has_bf16(device):
        return torch.autocast(device.type, torch.bfloat16)
    return contextlib.nullcontext()


def precision(device: torch.device) -> str:
    """The precision that `autocast` gives on the device, in words."""
    return "bf16 autocast" if has_bf16(device) else "float32"


def to_device(net: nn.Module, device: torch.device) -> nn.Module:
    """Move `net` to the device, with channels-last weights."""
    return net.to(device, memory_format=torch.channels_last)


def for_inference(net: nn.Module, device: torch.device) -> nn.Module:
    """A faster copy of `net` for inference, in eval mode on the device. It cannot be trained.

    Batch norm is fused into the convolution before it. If `autocast` computes in bf16, the weights
    are converted to bf16 once, not in each call. On a CPU, large batches are computed in parts of
    at most AT_ONCE images. The logits are equal to those of `net` up to rounding.
    """
    copy = to_device(fuse(net.eval()), device)
    type(copy).__name__ = type(net).__name__  # for error messages; the class is this copy's only
    if has_bf16(device):
        for module in copy.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.to(torch.bfloat16)
    if device.type == "cpu":
        whole = type(copy).forward

        def in_parts(self: nn.Module, images: torch.Tensor) -> torch.Tensor:
            parts = images.tensor_split(max(1, -(-len(images) // AT_ONCE)))
            return torch.cat([whole(self, part) for part in parts])

        type(copy).forward = in_parts
    return copy.requires_grad_(False)
