"""The scripts on another device than the CPU give the results of the CPU.

The device is simulated by tensors that say they are on "meta", and keep their numbers on the CPU. A
CPU tensor that meets one of them is an error. So is float64, which Apple's GPUs lack.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from programs import call
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import inference
import StudentTrain
import teacherTrain
import trainSelector
from models import STUDENTS
from utils import data

ROOT = Path(__file__).resolve().parent.parent
FAR = torch.device("meta")
ASIDE = torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default


class Far(torch.Tensor):
    """A tensor on the other device; `near` has its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, near):
        layout = near.size(), near.stride(), near.storage_offset()
        far = torch.Tensor._make_wrapper_subclass(cls, *layout, dtype=near.dtype, device=FAR)
        far.near = near
        return far

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return computed(func, args, kwargs or {})

    def __reduce_ex__(self, protocol):
        return self.near.__reduce_ex__(protocol)

    def tolist(self):
        return self.near.tolist()


def computed(func, args, kwargs):
    """The result of an operation, on the device of its tensors or the one that it names."""
    tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    known = {id(each.near): each for each in tensors if isinstance(each, Far)}
    if known and func not in ASIDE:
        strangers = [each for each in tensors if not isinstance(each, Far) and each.ndim]
        assert not strangers, f"{func}: tensors are on two devices"
    far = func not in (ASIDE[1], torch.ops.aten._local_scalar_dense.default) and bool(known)
    if func is ASIDE[1]:
        far = isinstance(args[0], Far)
    if kwargs.get("device") is not None:
        far = torch.device(kwargs["device"]) == FAR
        kwargs = {**kwargs, "device": torch.device("cpu")}

    def moved(each):
        if not isinstance(each, torch.Tensor):
            return each
        assert each.dtype != torch.float64, f"{func} gives float64"
        return known[id(each)] if id(each) in known else Far(each)

    near = tree_map(lambda each: each.near if isinstance(each, Far) else each, (args, kwargs))
    result = func(*near[0], **near[1])
    return tree_map(moved, result) if far else result


class OtherDevice(TorchDispatchMode):
    """For operations without a tensor, such as torch.zeros."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        with self:  # in inference mode, operations come whole
            parts = func.decompose(*args, **(kwargs or {}))
        return computed(func, args, kwargs or {}) if parts is NotImplemented else parts


class Moved(TorchFunctionMode):
    """For torch.tensor, which makes an empty tensor on "meta"."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor:
            device = kwargs.pop("device", "cpu")
            return torch.tensor(*args, **kwargs).to(device)
        return func(*args, **kwargs)


@pytest.fixture
def other_device(monkeypatch):
    for script in (teacherTrain, StudentTrain, trainSelector, inference):
        monkeypatch.setattr(script, "pick_device", lambda name: FAR)
    fused = sys.modules["torch.optim.optimizer"]
    monkeypatch.setattr(fused, "_get_fused_kernels_supported_devices", lambda: [FAR.type])
    data._colors.cache_clear()
    with OtherDevice(), Moved():
        yield
    data._colors.cache_clear()


def test_the_mode_tells_the_devices_apart(other_device):
    with pytest.raises(AssertionError, match="two devices"):
        torch.zeros(3, device=FAR) + torch.zeros(3)
    with pytest.raises(AssertionError, match="float64"):
        torch.zeros(3, device=FAR).double()
    assert (torch.ones(3, device=FAR) + 1).sum().item() == 6


QUICK = ["--epochs", 1, "--subset", 40, "--batch-size", 20]
COMMANDS = [
    ["teacherTrain.py", *QUICK],
    ["StudentTrain.py", "--model=1", *QUICK],
    *(
        ["StudentTrain.py", f"--model={k}", "--context=degraded", *QUICK]
        for k in range(2, len(STUDENTS) + 1)
    ),
    ["trainSelector.py", "--context=degraded", *QUICK],
    ["inference.py", "--context=degraded", "--subset", 40],
]


def test_the_results_are_those_of_the_cpu(toys, float32, small_npz, tmp_path, request, monkeypatch):
    monkeypatch.setattr("evaluation.figures.draw_all", lambda *_: [])

    def results(folder):
        places = ["--checkpoint-dir", folder]
        for script, *flags in COMMANDS:
            out = ["--out", folder] if script == "inference.py" else []
            call(script, *flags, "--data", small_npz, *places, *out)
        answers, _ = call("inference.py", ROOT / "results" / "samples.png", *places)
        metrics = json.loads((folder / "metrics.json").read_text())
        for name in ("images_per_second", "command"):
            metrics.pop(name)
        weights = [torch.load(path, weights_only=True) for path in sorted(folder.glob("*.pth"))]
        return answers, metrics, [each.get("state_dict", each.get("net")) for each in weights]

    *expected, weights = results(tmp_path / "cpu")
    request.getfixturevalue("other_device")
    *found, same = results(tmp_path / "far")
    assert found == expected
    torch.testing.assert_close(same, weights, rtol=0, atol=0)
