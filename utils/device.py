"""Where a network runs, in which precision, and from which seed."""

import contextlib
import ctypes
import os
import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

from utils.files import UserError

CPUINFO = Path("/proc/cpuinfo")  # Linux's


def pick_device(name: str) -> torch.device:
    """The device that --device names; "auto" is a GPU where there is one, else the CPU.

    Of several processes on one machine each takes a GPU of its own. Raises UserError where this
    computer has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # set by torchrun
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
        torch.autocast(device.type, torch.bfloat16, enabled=False)
    # A device that this build of PyTorch lacks fails in a way of its own, an import among others.
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0].split(". ")[0]
        raise UserError(f"--device {name} cannot be used: {reason}; try --device cpu") from error
    return device


def keep_freed_memory() -> None:
    """Let memory that is freed from now on stay with this process, where the C library is glibc.

    A training step frees its activations and asks for as much again. By default glibc gives large
    blocks back to the kernel, which has to clear them anew each time.
    """
    m_trim_threshold, m_mmap_max = -1, -4  # of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):  # the last is Windows'
        libc = ctypes.CDLL(None)
        libc.mallopt(m_trim_threshold, -1)
        libc.mallopt(m_mmap_max, 0)


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 matrices faster than float32 ones, in hardware.

    Intel's processors do so with AMX alone: where a virtual machine hides it, a training step with
    AVX-512's bf16 instructions takes a third longer than in float32. AMD's do with AVX-512, too.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    try:
        processor = CPUINFO.read_text()
    except OSError:
        return False
    return "amx_bf16" in processor or ("avx512_bf16" in processor and "AuthenticAMD" in processor)


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """bf16 autocast where it is the faster (`has_bf16`), float32 elsewhere."""
    return torch.autocast(device.type, torch.bfloat16, enabled=has_bf16(device))


def precision(device: torch.device) -> str:
    """What `autocast` does on the device, in words."""
    return "bf16 autocast" if has_bf16(device) else "float32"


@contextlib.contextmanager
def enough_memory(device: torch.device, batch_size: int) -> Iterator[None]:
    """Raise UserError, with a smaller --batch-size, where the block runs out of memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # torch's own errors are RuntimeErrors
        if isinstance(error, RuntimeError) and not any(
            words in str(error) for words in ("out of memory", "allocate memory")
        ):
            raise
        remedy = f": try --batch-size {batch_size // 2}" if batch_size > 1 else ""
        raise UserError(
            f"out of memory on {device} with --batch-size {batch_size}{remedy}"
        ) from error


def to_device(net: nn.Module, device: torch.device) -> nn.Module:
    """`net` on the device, its weights laid out channels last."""
    return net.to(device, memory_format=torch.channels_last)


def for_inference(net: nn.Module, device: torch.device) -> nn.Module:
    """A copy of `net` in eval mode on the device that answers faster, and cannot be trained.

    A batch norm behind a convolution becomes part of it, and where `autocast` computes in bf16 the
    weights are bf16 already, not cast at each call. The logits are those of `net` but for rounding.
    """
    copy = to_device(fuse(net.eval()), device)
    type(copy).__name__ = type(net).__name__  # a class of this copy's own, for messages
    if has_bf16(device):
        for module in copy.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.to(torch.bfloat16)
    return copy.requires_grad_(False)


def seed_everything(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
