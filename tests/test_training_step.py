"""Recorded training steps: the same weights as without recording.

CUDA graphs are simulated on the CPU: while a graph is recorded, every operation is noted, and a
replay computes the same operations again, on the same tensors. What was computed while recording is
undone, because a GPU only records then.
"""

import contextlib
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from loop import Loop
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toys import save_networks

from utils import run, training_step
from utils.device import to_device
from utils.files import UserError
from utils.optim import optimizers

ROOT = Path(__file__).resolve().parent.parent


class Graph(TorchDispatchMode):
    """Replacement of torch.cuda.CUDAGraph."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.noted.append((func, args, kwargs or {}, result))
        return result

    def pool(self):
        return None

    @torch.no_grad()
    def replay(self):
        for func, args, kwargs, result in self.noted:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)


@pytest.fixture
def recorded(monkeypatch):
    """The sizes of the batches whose step was recorded; `Run` records as on a GPU."""
    sizes = []

    class Undone(training_step.RecordedStep):
        def __init__(self, net, made, images):
            sizes.append(len(images))
            states = [state for optimizer in made for state in optimizer.state.values()]
            changed = [*net.parameters(), *(each for state in states for each in state.values())]
            before = [each.detach().clone() for each in changed]
            super().__init__(net, made, images)
            with torch.no_grad():
                for each, number in zip(changed, before, strict=True):
                    each.copy_(number)

    def with_tensors(net, name, lr, *rest):
        made = optimizers(net, name, lr, *rest)
        for group in (group for optimizer in made for group in optimizer.param_groups):
            group["lr"] = torch.tensor(lr)
        return made

    monkeypatch.setattr("torch.cuda.CUDAGraph", Graph)
    monkeypatch.setattr("torch.cuda.graph", lambda graph, **_: graph)
    monkeypatch.setattr("torch.cuda.Stream", lambda: None)
    monkeypatch.setattr("torch.cuda.stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr("torch.cuda.synchronize", lambda: None)
    monkeypatch.setattr(training_step, "has_bf16", lambda device: False)
    monkeypatch.setattr(training_step, "RecordedStep", Undone)
    monkeypatch.setattr(run, "optimizers", with_tensors)
    monkeypatch.setattr(training_step.TrainingStep, "_on_one_gpu", lambda self, images: True)
    return sizes


def recipe():
    """The constants, the loss on features and its call in docs/features.md."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs/features.md").read_text(), re.DOTALL)


def train(folder, device="cpu", optimizer="muon", epochs=2, resume=False, layers=()):
    """Train a small network on 50 images: two batches of 13 and two of 12 in each epoch.

    With `layers`, the first of them learns attention from the second one.
    """
    defined = {"torch": torch}
    exec(recipe()[1], defined)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (50, 32, 32, 3), generator=generator).to(device, torch.uint8)
    labels = torch.arange(50, device=device) % 10
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        nn.Conv2d(12, 10, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )

    def loss(logits, labels):
        alone = F.cross_entropy(logits, labels)
        return alone + 10 * defined["attention_loss"](*run.features[:2]) if layers else alone

    settings = {"epochs": epochs, "batch_size": 13, "optimizer": optimizer, "weight_decay": 0.05}
    validation = lambda logits: (0.0, 0.5), images[:1]
    data = folder / "net.pth", images, labels
    settings |= {"layers": layers, "resume": resume}
    run = Loop(to_device(net, device), *data, loss, *validation, **settings)
    run.fit()
    losses = [row["train_loss"] for row in run.progress.history]
    return losses, [number.cpu() for number in net.state_dict().values()]


def same(one, other, tolerance=5e-5):
    assert one[0] == pytest.approx(other[0], rel=tolerance)
    for each, number in zip(one[1], other[1], strict=True):
        torch.testing.assert_close(each, number, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_replayed_steps_give_the_weights_of_plain_ones(optimizer, tmp_path, request):
    plain = train(tmp_path, optimizer=optimizer)
    sizes = request.getfixturevalue("recorded")
    same(train(tmp_path, optimizer=optimizer), plain)
    assert sorted(sizes) == [12, 13]


def test_replayed_steps_learn_from_features_as_plain_ones_do(tmp_path, request):
    without, layers = train(tmp_path), ("2", "0", "5")  # the last one is not used by the loss
    plain = train(tmp_path, layers=layers)
    assert plain[0] != without[0]
    request.getfixturevalue("recorded")
    same(train(tmp_path, layers=layers), plain)


def test_a_layer_that_the_network_does_not_have_is_named(tmp_path):
    with pytest.raises(UserError, match="layer9"):
        train(tmp_path, layers=("layer9",))


def test_the_recipe_for_a_loss_on_features_trains_a_student(tmp_path, small_npz, monkeypatch):
    constants, function, line = recipe()
    script = (ROOT / "StudentTrain.py").read_text()
    for before, after in (
        (re.search("^LAYERS = .*\n", script, re.MULTILINE)[0], constants),
        ("def main()", f"{function}\n\ndef main()"),
        ("            run.step(loss", f"{line}            run.step(loss"),
    ):
        assert script.count(before) == 1
        script = script.replace(before, after)
    save_networks(tmp_path, "teacher")
    flags = f"--model 1 --epochs 1 --subset 20 --data-dir {small_npz} --checkpoint-dir {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["StudentTrain.py", *flags.split(), "--device", "cpu"])
    exec(compile(script, "StudentTrain.py", "exec"), scope := {"__name__": "changed"})
    scope["main"]()
    made = torch.load(tmp_path / "densenet121.pth", weights_only=True)["hyperparameters"]
    assert made["beta"] == 1000 and len(made["layers"]) == 2


def test_a_resumed_run_replays_too(tmp_path, request):
    def resumed(folder):
        train(folder, epochs=1)
        return train(folder, epochs=2, resume=True)

    plain = resumed(tmp_path / "plain")
    sizes = request.getfixturevalue("recorded")
    same(resumed(tmp_path / "replayed"), plain)
    assert sorted(sizes) == [12, 12, 13, 13]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_on_a_gpu_replayed_steps_give_the_weights_of_plain_ones(optimizer, tmp_path, monkeypatch):
    replayed = train(tmp_path, "cuda", optimizer)
    monkeypatch.setattr(training_step.TrainingStep, "_on_one_gpu", lambda self, images: False)
    same(replayed, train(tmp_path, "cuda", optimizer), 1e-2)  # bf16
