"""What picking the CPU does to the process."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FAULTS = """
import resource, sys
import torch
from utils.device import pick_device
if sys.argv[1] == "kept":
    pick_device("cpu")
for round in range(40):
    if round == 30:  # the C library has found places for all
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    activations = [torch.ones(size) for size in (10_000_000, 5_000_000, 1_000_000)]
    del activations
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told to")
def test_memory_that_is_freed_is_not_cleared_by_the_kernel_again():
    faults = {
        how: int(subprocess.check_output([sys.executable, "-c", FAULTS, how], cwd=ROOT, text=True))
        for how in ("given back", "kept")
    }
    assert faults["given back"] > 100  # ten times 64 MB, in pages of 4 kB or 2 MB
    assert faults["kept"] < faults["given back"] / 10
