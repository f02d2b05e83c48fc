"""The fast code computes the same as the plain code, and the benchmarks measure it correctly."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from benchmarks import __main__ as bench
from benchmarks import plain, reproduce
from benchmarks.subjects import SUBJECTS, Place
from models import network
from utils.checkpoint import FILES, load_network
from utils.data import normalize
from utils.device import for_inference
from utils.logits import predict
from utils.optim import optimizers

ROOT = Path(__file__).resolve().parent.parent


@torch.inference_mode()
@pytest.mark.parametrize("arch", FILES)
def test_folded_batch_norm_and_autocast_answer_as_float32_does(arch, sample):
    """Tolerance of bf16: logits of about 10 differ by less than 0.3; few predictions differ."""
    net, _ = load_network(ROOT / "checkpoints" / FILES[arch])
    images = sample.images[:100]
    expected = net(normalize(images).contiguous())
    logits = predict(for_inference(net, torch.device("cpu")), images)
    assert (logits - expected).abs().max() < 0.03 * expected.abs().max()
    if arch != "selector":
        assert (logits.argmax(dim=1) == expected.argmax(dim=1)).float().mean() >= 0.98


@torch.inference_mode()
@pytest.mark.parametrize("arch", FILES)
def test_a_folded_network_is_the_same_function_in_float32(arch, sample, monkeypatch):
    """Logits within 1e-4 and the same predictions; the original network is unchanged."""
    monkeypatch.setattr("utils.device.has_bf16", lambda device: False)
    net, _ = load_network(ROOT / "checkpoints" / FILES[arch])
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    images = sample.images[:100]
    expected = net(normalize(images).contiguous())
    folded = for_inference(net, torch.device("cpu"))
    logits = predict(folded, images)
    assert (logits - expected).abs().max() < 1e-4
    if arch != "selector":
        assert torch.equal(logits.argmax(dim=1), expected.argmax(dim=1))
    norms = [sum(isinstance(m, torch.nn.BatchNorm2d) for m in it.modules()) for it in (net, folded)]
    assert norms[1] == (62 if arch == "densenet121" else 0) < norms[0]  # 62 stand before theirs
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_fused_step_is_that_of_the_plain_optimizer(name, sample):
    after = []
    for fused in (True, False):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 10))
        (optimizer,) = optimizers(net, name, 0.01, 0.9, 0.05)
        for group in optimizer.param_groups:
            assert group["fused"]
            group["fused"] = fused
        for _ in range(3):
            F.cross_entropy(net(normalize(sample.images[:8])), sample.labels[:8]).backward()
            optimizer.step()
            optimizer.zero_grad()
        after.append(net[1].weight)
    assert torch.allclose(*after, atol=1e-6)


def test_both_sides_of_a_subject_take_the_images_that_they_count(small_npz):
    place = Place(torch.device("cpu"), small_npz, ROOT / "checkpoints", batch_size=8, images=20)
    for subject in ("data", "step googlenet", "epoch googlenet", "routed, all", "one image"):
        ours, theirs = (side(place) for side in SUBJECTS[subject])
        expected = {"data": 20, "epoch googlenet": 20, "step googlenet": 4 * 8, "routed, all": 20}
        expected["one image"] = 40
        assert ours() == theirs()
        assert subject not in expected or ours() == expected[subject]


def test_steps_are_measured_on_data_of_other_classes(small_npz, tmp_path):
    with np.load(small_npz) as file:
        arrays = {name: file[name] for name in file if name != "classes"}
    for labels in ("train_labels", "test_labels"):
        arrays[labels] = arrays[labels] * 11
    np.savez(tmp_path / "mine.npz", **arrays)
    place = Place(torch.device("cpu"), tmp_path / "mine.npz", ROOT / "checkpoints", batch_size=8)
    assert [side(place)() for side in SUBJECTS["step googlenet"]] == [32, 32]


def test_the_plain_loop_learns(sample):
    loader = plain.loader(sample, batch_size=16)
    images, labels = next(iter(loader))
    assert images.shape == (16, 3, 32, 32) and images.dtype == torch.float32
    torch.manual_seed(0)
    loop = plain.Loop(network("googlenet"), torch.device("cpu"))
    before = F.cross_entropy(loop.net(images), labels).item()
    for _ in range(4):
        loop.step(images, labels)
    assert F.cross_entropy(loop.net(images), labels).item() < before


def test_the_numbers_are_saved_with_the_machine(small_npz, tmp_path):
    path = tmp_path / "benchmarks.json"
    words = ["data", "--images", "20", "40", "--rounds", "2", "--json", path, "--device", "cpu"]
    subprocess.run(
        [sys.executable, "-m", "benchmarks", *words, "--data-dir", small_npz, "--threads", "1"],
        cwd=ROOT,
        check=True,
        timeout=250,
    )
    saved = json.loads(path.read_text())
    assert saved["machine"]["fp32_gflops"] > 0 and saved["versions"]["torch"] == torch.__version__
    assert [run["images"] for run in saved["runs"]] == [20, 40]
    for run in saved["runs"]:
        assert run["subject"] == "data" and run["unit"] == "images/s" and run["device"] == "cpu"
        assert 0 < run["ratio_min"] <= run["ratio"] <= run["ratio_max"]
        assert run["ours"] > 0 and run["plain"] > 0 and run["ours_peak_mb"] > 50


@pytest.mark.parametrize(
    "words, message",
    [
        (["--json", "."], "--json . must name a file"),
        (["--json", "tests"], "--json tests must name a file"),
        (["--rounds", "0"], "'0' is not a whole number"),
    ],
)
def test_bad_flags_are_refused_before_the_first_measurement(words, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit, match="2"):
        bench.main()
    out, err = capsys.readouterr()
    assert message in err and not out


@pytest.mark.parametrize("bf16", [True, False])
def test_the_bf16_rate_is_measured_only_where_training_uses_bf16(bf16, monkeypatch):
    """A CPU without bf16 emulates it, at a hundredth of the float32 rate."""
    used = []
    monkeypatch.setattr(bench, "has_bf16", lambda device: bf16)
    monkeypatch.setattr(
        torch, "randn", lambda *shape, device, dtype: used.append(dtype) or torch.ones(2, 2)
    )
    rates = bench.limits(torch.device("cpu"))
    assert used == [torch.float32, torch.bfloat16][: 1 + bf16]
    assert ("bf16_gflops" in rates) == bf16 and rates["fp32_gflops"] > 0


def test_an_unknown_subject_is_named():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "quickness"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "no subject 'quickness': choose from data" in done.stderr


def test_the_time_that_is_left_is_that_of_the_epochs_that_are_left(monkeypatch):
    step = {"teacher": 4e-3, "densenet121": 2e-3, "googlenet": 1e-3}
    epochs = {"teacher": 10, "densenet121": 20, "googlenet": 20, "selector": 5}
    monkeypatch.setattr(reproduce, "ANSWER", 0.5)
    monkeypatch.setattr(reproduce, "SELECTOR", 0.1)
    monkeypatch.setattr(reproduce.StudentTrain, "TEACHER_VIEWS", 16)
    done = {"teacher": 9, "googlenet": 20}
    found = reproduce.stages(step, epochs, done)
    assert [stage.epochs for stage in found] == [1, 20, 0, 5, None]
    assert [stage.seconds for stage in found] == pytest.approx(
        [
            4e-3 * (45_000 + 2_500),
            20 * 2e-3 * (45_000 + 2_500) + 16 * 2e-3 * 45_000,  # and the teacher's answers
            0,
            0.5 * 3e-3 * 50_000 + 5 * 0.1 * 1e-3 * 45_000,
            0.5 * 10_000 * 3 * 7e-3,
        ]
    )
    quick = reproduce.stages(step, epochs, {}, (100, 100, 100))
    assert quick[0].seconds == pytest.approx(10 * 4e-3 * 150)


@pytest.mark.parametrize(
    "seconds, words",
    [(20, "less than a minute"), (80, "1 min"), (3599, "1 h 00 min"), (9000, "2 h 30 min")],
)
def test_a_time_is_told_in_hours_and_minutes(seconds, words):
    assert reproduce.in_words(seconds) == words


def test_epochs_count_as_done_where_a_run_can_go_on(tmp_path):
    history = "epoch,val_accuracy\n1,0.5\n2,0.6\n"
    for name in ("teacher", "googlenet"):
        (tmp_path / f"{name}.csv").write_text(history)
    (tmp_path / "teacher.state.pth").touch()
    assert reproduce.epochs_done(tmp_path) == {"teacher": 2}
