"""The precision chosen for each processor, and the parts in which a CPU answers."""

import pytest
import torch

from utils import device
from utils.device import for_inference


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


@torch.inference_mode()
def test_a_cpu_answers_in_parts_of_a_size_that_it_likes(monkeypatch):
    monkeypatch.setattr("utils.device.AT_ONCE", 4)
    monkeypatch.setattr("utils.device.has_bf16", lambda device: False)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3)).eval()
    ready, sizes = for_inference(net, torch.device("cpu")), []
    ready.get_submodule("1").register_forward_hook(lambda _, args, out: sizes.append(len(args[0])))
    for count, expected in ((10, [4, 3, 3]), (4, [4]), (0, [0])):
        images = torch.randn(count, 3, 2, 2)
        torch.testing.assert_close(ready(images), net(images))
        assert sizes == expected
        sizes.clear()
