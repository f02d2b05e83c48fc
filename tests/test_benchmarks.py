"""The fast code computes the same as the plain code, and the benchmarks measure it correctly."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from programs import call

from benchmarks import subjects
from utils.checkpoint import FILES, load_network
from utils.data import load_splits, normalize
from utils.device import for_inference
from utils.logits import predict

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")


@torch.inference_mode()
@pytest.mark.parametrize("arch", FILES)
def test_a_folded_network_is_the_same_function(arch, sample, monkeypatch):
    """Logits within 1e-4 in float32, and within 3 % of their range in bf16; few classes differ."""
    net, _ = load_network(ROOT / "checkpoints" / FILES[arch])
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    images = sample.take(slice(100))
    expected = net(normalize(images.images).contiguous())
    fast = predict(for_inference(net, CPU), images)
    assert (fast - expected).abs().max() < 0.03 * expected.abs().max()
    monkeypatch.setattr("utils.device.has_bf16", lambda device: False)
    folded = for_inference(net, CPU)
    logits = predict(folded, images)
    assert (logits - expected).abs().max() < 1e-4
    if arch != "selector":
        assert torch.equal(logits.argmax(dim=1), expected.argmax(dim=1))
        assert (fast.argmax(dim=1) == expected.argmax(dim=1)).float().mean() >= 0.98
    norms = [sum(isinstance(m, torch.nn.BatchNorm2d) for m in it.modules()) for it in (net, folded)]
    assert norms[1] == (62 if arch == "densenet121" else 0) < norms[0]  # 62 stand before theirs
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_both_sides_of_a_subject_take_the_images_that_they_count(toys, small_npz, monkeypatch):
    monkeypatch.setattr(subjects, "BATCH_SIZE", 8)
    train = load_splits(small_npz)[0].take(slice(50))
    train.data = replace(train.data, classes=tuple(map(str, range(100))))  # of another data set
    train.labels = 11 * train.labels
    counts = {"data": 50, "step googlenet": 32, "epoch googlenet": 32, "distillation googlenet": 32}
    for subject, count in counts.items():
        for side in subjects.SUBJECTS[subject][1:]:
            batches, work = side(train)
            for _ in range(2):  # also when it is repeated
                taken = list(batches())
                assert sum(len(images) for images, *_ in taken) == count
            work(*taken[0])


def test_the_numbers_are_saved_with_the_machine(small_npz, tmp_path):
    path = tmp_path / "benchmarks.json"
    flags = "--device", "cpu", "--data", small_npz, "--rounds", "2", "--json", path
    call("benchmarks.__main__", "data", *flags)
    saved = json.loads(path.read_text())
    assert saved["machine"]["threads"] == 1 and saved["versions"]["torch"] == torch.__version__
    (run,) = saved["runs"]
    assert run["subject"] == "data" and run["unit"] == "images/s" and run["device"] == "cpu"
    assert 0 < run["ratio_min"] <= run["ratio"] <= run["ratio_max"]
    assert run["ours"] > 0 and run["plain"] > 0


@pytest.mark.parametrize(
    "words, named",
    [
        (["--json", "tests"], "--json tests"),
        (["--rounds", "0"], "--rounds"),
        (["quickness"], "quickness"),
        (["data", "--data", "none.npz"], "none.npz"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(words, named, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, err = call("benchmarks.__main__", "--device", "cpu", *words, status=2)
    assert named in err.splitlines()[-1]
