"""Muon takes the steps of torch.optim.Muon, for the convolutions but the first."""

import pytest
import torch

from models import network
from utils.optim import Muon, optimizers


def test_a_step_is_that_of_pytorchs_muon_whatever_the_order_of_the_window(monkeypatch):
    """`torch.optim.Muon` computes in bf16 and supports matrices only."""
    monkeypatch.setattr("utils.optim.has_bf16", lambda device: True)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(16, 8, 3, 3, generator=generator)
    ours = start.clone(memory_format=torch.channels_last).requires_grad_()
    theirs = start.flatten(1).clone().requires_grad_()
    settings = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.5}
    both = [
        Muon([ours], **settings),
        torch.optim.Muon([theirs], ns_steps=3, adjust_lr_fn="match_rms_adamw", **settings),
    ]
    for _ in range(3):
        gradient = torch.randn(start.shape, generator=generator)
        ours.grad = gradient.to(memory_format=torch.channels_last)
        theirs.grad = gradient.flatten(1)
        for optimizer in both:
            optimizer.step()
    moved = (ours - start).abs().mean()
    assert (ours.flatten(1) - theirs).abs().mean() < 0.02 * moved
    assert moved > 1e-3


@pytest.mark.parametrize("arch", ["resnet50", "densenet121", "googlenet"])
def test_muon_has_the_convolutions_but_the_first_and_adamw_has_the_rest(arch):
    net = network(arch)
    muon, adamw = optimizers(net, "muon", 0.01, 0.9, 0.05)
    names = {id(p): name for name, p in net.named_parameters()}
    convolutions = [
        f"{name}.weight" for name, m in net.named_modules() if isinstance(m, torch.nn.Conv2d)
    ]
    (group,) = muon.param_groups
    assert {names[id(p)] for p in group["params"]} == set(convolutions[1:])
    decay = {names[id(p)]: g["weight_decay"] for g in adamw.param_groups for p in g["params"]}
    assert set(decay) == set(names.values()) - set(convolutions[1:])
    assert decay[convolutions[0]] == 0.05 and set(decay.values()) == {0.05, 0.0}
    assert sum(map(bool, decay.values())) == 2  # the first convolution and the last layer
