"""The precision chosen for each processor."""

import pytest
import torch

from utils import device


@pytest.mark.parametrize(
    ("cpuinfo", "bf16"),
    [
        ("vendor_id : AuthenticAMD\nflags : avx512f avx512_bf16", True),
        ("vendor_id : GenuineIntel\nflags : avx512f avx512_bf16 amx_bf16", True),
        ("vendor_id : GenuineIntel\nflags : avx512f avx512_bf16", False),
        ("vendor_id : AuthenticAMD\nflags : avx512f", False),
        (None, False),
    ],
)
def test_bf16_is_used_where_it_is_faster(tmp_path, monkeypatch, cpuinfo, bf16):
    file = tmp_path / "cpuinfo"
    if cpuinfo:
        file.write_text(cpuinfo)
    monkeypatch.setattr(device, "CPUINFO", file)
    cpu = torch.device("cpu")
    assert device.has_bf16(cpu) is bf16
    assert device.precision(cpu) == ("bf16 autocast" if bf16 else "float32")
    with device.autocast(cpu):
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == (torch.bfloat16 if bf16 else torch.float32)
