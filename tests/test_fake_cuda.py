"""The scripts on a simulated GPU: PyTorch's fake tensors have a device, but no numbers.

A CPU tensor that meets a CUDA one is an error to them, too. So is float64 on the device here, which
Apple's GPUs lack. Left out is what needs numbers or a driver: files and the backward pass.
"""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import inference
import StudentTrain
import teacherTrain
import trainSelector
from utils import checkpoint, data, logits, run, training_step

ROOT = Path(__file__).resolve().parent.parent
CUDA = torch.device("cuda", 0)
STEP = run.Run.step


class NoFloat64(TorchDispatchMode):
    """Refuse float64 on devices other than the CPU."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor) and each.device.type != "cpu":
                assert each.dtype != torch.float64, f"{func} gives float64 on {each.device}"
        return out


def move(self, fn, recurse=True):
    """Replacement of Module._apply, which cannot swap weights that are fake tensors."""
    for net in self.modules():
        for places in (net._parameters, net._buffers):
            for name, each in places.items():
                if each is not None:
                    moved = fn(each.detach())
                    places[name] = nn.Parameter(moved) if places is net._parameters else moved
    return self


def copied(self, memo):
    """Replacement of Tensor.__deepcopy__, which reads the memory of the tensor."""
    if id(self) not in memo:
        copy = self.detach().clone()
        memo[id(self)] = nn.Parameter(copy) if isinstance(self, nn.Parameter) else copy
    return memo[id(self)]


def step(self, loss, correct):
    """Run.step without the backward pass; optimizers skip weights without gradients."""
    assert all(each.device == CUDA for each in self.net.state_dict().values())
    assert loss.dtype == torch.float32 and loss.device == correct.device == CUDA
    STEP(self, loss, correct)


@pytest.fixture
def cuda(monkeypatch):
    """A simulated GPU: all values are read as 0, and a selection of rows gives the first half."""
    for script in (teacherTrain, StudentTrain, trainSelector, inference):
        monkeypatch.setattr(script, "pick_device", lambda name: CUDA)
    for module in (logits, trainSelector):
        monkeypatch.setattr(module, "amend_checkpoint", lambda path, **facts: None)
    monkeypatch.setattr(
        checkpoint, "check_students", lambda *_: None
    )  # fingerprints are of numbers
    monkeypatch.setattr(run, "save_checkpoint", lambda *_: None)
    monkeypatch.setattr(inference, "write_report", lambda *_: None)  # statistics need numbers
    monkeypatch.setattr(run.Run, "_save_state", lambda self: None)
    monkeypatch.setattr(run.Run, "step", step)
    monkeypatch.setattr(training_step, "RecordedStep", None)  # needs a driver
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: True)
    monkeypatch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(nn.Module, "_apply", move)
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda *_, **__: None)  # it waits for a number
    for name, answer in {
        "__deepcopy__": copied,
        "backward": lambda self: None,
        "__bool__": lambda self: True,
        "item": lambda self: 0,
        "__float__": lambda self: 0.0,
        "tolist": lambda self: [0] * len(self),
        "numpy": lambda self: np.zeros(self.shape, str(self.dtype).removeprefix("torch.")),
        "unique": lambda self: self[:1],
        "nonzero": lambda self: torch.arange((len(self) + 1) // 2, device=self.device)[:, None],
    }.items():
        monkeypatch.setattr(torch.Tensor, name, answer)
    data._colors.cache_clear()
    with FakeTensorMode(allow_non_fake_inputs=True), NoFloat64():
        yield
    data._colors.cache_clear()


def test_the_mode_tells_a_cpu_tensor_from_a_cuda_one(cuda):
    with pytest.raises(RuntimeError, match="two .*devices"):
        torch.zeros(3, device=CUDA) + torch.zeros(3)
    with pytest.raises(AssertionError, match="float64"):
        torch.zeros(3, device=CUDA).double()


@pytest.mark.parametrize(
    "script, flags",
    [
        (teacherTrain, ["--epochs=1", "--subset=40"]),
        (StudentTrain, ["--epochs=1", "--subset=40", "--model=2"]),
        (StudentTrain, ["--epochs=1", "--subset=40", "--model=2", "--context=degraded"]),
        (trainSelector, ["--epochs=1", "--subset=40", "--context=degraded"]),
        (inference, ["--subset=40", "--context=degraded"]),
        (inference, ["--policy=googlenet", "1.png", "2.png"]),
    ],
)
def test_no_cpu_tensor_meets_a_cuda_one(script, flags, small_npz, tmp_path, monkeypatch, request):
    for path in (ROOT / "checkpoints").glob("*.pth"):
        (tmp_path / path.name).symlink_to(path)
    for name in ("1.png", "2.png"):
        Image.new("RGB", (40, 40)).save(tmp_path / name)
    places = ["--checkpoint-dir", str(tmp_path)]
    if "1.png" not in flags:
        places += ["--data", str(small_npz)]
    monkeypatch.setattr(sys, "argv", ["x.py", *places, *flags])
    monkeypatch.chdir(tmp_path)
    request.getfixturevalue("cuda")
    script.main()
