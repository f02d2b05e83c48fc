"""The fast code computes the same as the plain code, and the benchmarks measure it correctly."""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import FORKS, call

from benchmarks import __main__ as bench
from benchmarks import reproduce
from benchmarks.subjects import SUBJECTS, Place, prepare
from models import TEACHER, network
from utils.checkpoint import FILES, load_network, save_checkpoint
from utils.data import normalize
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


def test_both_sides_of_a_subject_take_the_images_that_they_count(toys, small_npz, tmp_path):
    """Also on data of other classes."""
    with np.load(small_npz) as file:
        arrays = {name: file[name] for name in file if name != "classes"}
    for labels in ("train_labels", "test_labels"):
        arrays[labels] = arrays[labels] * 11
    np.savez(tmp_path / "mine.npz", **arrays)
    place = Place(CPU, tmp_path / "mine.npz", tmp_path, batch_size=8, images=20)
    net, data = network(TEACHER, classes=100), place.splits[0].data
    made = {"arch": TEACHER, "stem": "cifar-pool"}
    save_checkpoint(tmp_path / "teacher.pth", net, made, 1, 0.1, data)
    images = {"data": 20, "step googlenet": 32, "epoch googlenet": 20, "distillation googlenet": 20}
    for subject, expected in images.items():
        _, ours, theirs = SUBJECTS[subject]
        assert ours(place)() == theirs(place)() == expected


@pytest.fixture
def benchmark(monkeypatch):
    """Run the program with tiny matrices, and with sides that need not import PyTorch anew."""
    monkeypatch.setattr(bench, "SIDE", {"cpu": 8})
    monkeypatch.setattr(bench.multiprocessing, "get_context", lambda kind: FORKS)
    return lambda *words, **kind: call("benchmarks.__main__", "--device", "cpu", *words, **kind)


def test_the_numbers_are_saved_with_the_machine(benchmark, small_npz, tmp_path):
    path = tmp_path / "benchmarks.json"
    words = ["data", "--images", "20", "40", "--rounds", "2", "--json", path, "--threads", "1"]
    benchmark(*words, "--data-dir", small_npz)
    saved = json.loads(path.read_text())
    assert saved["machine"]["fp32_gflops"] > 0 and saved["versions"]["torch"] == torch.__version__
    assert [run["images"] for run in saved["runs"]] == [20, 40]
    for run in saved["runs"]:
        assert run["subject"] == "data" and run["unit"] == "images/s" and run["device"] == "cpu"
        assert 0 < run["ratio_min"] <= run["ratio"] <= run["ratio_max"]
        assert run["ours"] > 0 and run["plain"] > 0 and run["ours_peak_mb"] > 50


def test_workers_of_a_dataloader_start_in_a_side_as_in_any_script(small_npz, tmp_path):
    """In a process that was not forked, each would import PyTorch anew, in each epoch."""
    with ProcessPoolExecutor(1, FORKS) as side:
        side.submit(prepare, "data", "plain", 1, Place(CPU, small_npz, tmp_path)).result()
        method = side.submit(multiprocessing.get_start_method).result()
    assert method == multiprocessing.get_start_method()


@pytest.mark.parametrize(
    "words, named",
    [
        (["--json", "tests"], "--json tests"),
        (["--rounds", "0"], "--rounds"),
        (["quickness"], "quickness"),
        (["data", "--data", "none.npz"], "none.npz"),  # an error in the process of a side
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(benchmark, words, named, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, err = benchmark(*words, status=2)
    assert named in err.splitlines()[-1]


@pytest.mark.parametrize("bf16", [True, False])
def test_the_bf16_rate_is_measured_only_where_training_uses_bf16(bf16, monkeypatch):
    """A CPU without bf16 emulates it, at a hundredth of the float32 rate."""
    monkeypatch.setattr(bench, "has_bf16", lambda device: bf16)
    monkeypatch.setattr(bench, "SIDE", {"cpu": 8})
    about = bench.machine(CPU)
    assert ("bf16_gflops" in about) == bf16 and about["fp32_gflops"] > 0


def test_the_estimated_time_is_told_in_words():
    words = {20: "less than a minute", 80: "0 h 01 min", 3599: "1 h 00 min", 9000: "2 h 30 min"}
    assert {seconds: reproduce.in_words(seconds) for seconds in words} == words
