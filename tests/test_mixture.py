"""Students and selector trained together."""

import math
import sys
from pathlib import Path

import pytest
import torch

from utils import cli, mixture
from utils.checkpoint import FILES, load_network
from utils.mixture import apart, mixture_loss

ROOT = Path(__file__).resolve().parent.parent


def test_the_loss_by_hand():
    teacher = torch.tensor([[0.0, 0.0]])
    # d^2 is 2 and 0; the selector trusts each by a half.
    outputs = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]])
    expected = -math.log(0.5 * math.exp(-1) + 0.5)
    assert mixture_loss(outputs, teacher).item() == pytest.approx(expected)
    # Where the selector trusts the first alone, the loss is half its squared distance.
    outputs[0, 4] = 30.0
    assert mixture_loss(outputs, teacher).item() == pytest.approx(1.0)


def test_the_nearer_student_learns_and_the_selector_turns_to_it():
    teacher = torch.tensor([[0.0, 0.0]])
    outputs = torch.tensor([[3.0, 3.0, 1.0, 1.0, 0.0]], requires_grad=True)
    mixture_loss(outputs, teacher).backward()
    first, second, gate = apart(outputs.grad)
    assert first.abs().max() < 0.01 < second.abs().min()
    assert gate.item() > 0.4  # a step against it lowers the logit of student 1


def test_the_command_writes_a_system_that_can_be_measured(small_npz, tmp_path, monkeypatch, capsys):
    words = ["--data-dir", small_npz, "--out", tmp_path, "--device", "cpu", "--epochs", 1]
    words += ["--subset", 40, "--batch-size", 20]
    monkeypatch.setattr(sys, "argv", ["mixture.py", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        cli.run(mixture.main)
    told = capsys.readouterr()
    assert not stop.value.code, told.err
    for arch in ("densenet121", "googlenet", "selector"):
        net, facts = load_network(tmp_path / FILES[arch], arch)
        shipped = load_network(ROOT / "checkpoints" / FILES[arch], arch)[0]
        assert f"{facts['val_accuracy']:.2%}" in told.out
        assert not torch.equal(next(net.parameters()), next(shipped.parameters()))
    assert 0 <= facts["threshold"] <= 1.01 and "cascade_threshold" in facts
