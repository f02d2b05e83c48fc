"""Accuracy, size and speed of networks and policies in each runtime."""

import json
from itertools import product

import pytest
import torch
from programs import call

from benchmarks import deploy
from models import SELECTED, STUDENTS, TEACHER, Selector, network
from utils.checkpoint import FILES, fingerprint_of, load_network, save_checkpoint
from utils.logits import predict, top1

pytest.importorskip("onnxruntime", reason="see requirements-dev.txt")
RUNTIMES = ("PyTorch", "ONNX float32", "ONNX int8")


@pytest.fixture
def folder(toys, tmp_path):
    """Checkpoints of small networks."""
    torch.manual_seed(0)
    made, students = {"stem": "cifar-pool"}, []
    for name, arch in {"teacher": TEACHER, **dict(zip(STUDENTS, STUDENTS, strict=True))}.items():
        save_checkpoint(tmp_path / FILES[name], network(arch), {"arch": arch, **made}, 1, 0.1)
        students.append(fingerprint_of(load_network(tmp_path / FILES[name])[0]))
    made = {"arch": "selector", "depth": 3, "batch_norm": True, "selected": [*SELECTED]}
    made["students"] = students[1:]
    save_checkpoint(tmp_path / FILES["selector"], Selector(outputs=len(SELECTED)), made, 1, 0.1)
    return tmp_path


def test_each_runtime_is_measured_with_every_network_and_policy(
    folder, float32, small_npz, sample, monkeypatch
):
    monkeypatch.setattr(deploy, "IMAGES", {1: 4, 128: 20})
    flags = "--checkpoint-dir", folder, "--out", folder
    call("benchmarks.deploy", "--data", small_npz, *flags)
    rows = json.loads((folder / "deploy.json").read_text())
    systems = ["teacher", *STUDENTS, "selector", "cascade"]
    found = {(row["system"], row["runtime"], row["threads"], row["batch"]): row for row in rows}
    assert len(rows) == len(found) and found.keys() == {
        *product(systems, RUNTIMES, (1, 2), (1, 128))
    }
    for row in rows:
        ms = 1000 * row["batch"] / row["images_per_s"]
        assert row["ms"] == pytest.approx(ms, rel=0.01, abs=0.001)  # both are rounded
    test = sample.take(slice(600, None))
    for system in systems:
        pytorch, exported, int8 = (found[system, runtime, 1, 1] for runtime in RUNTIMES)
        assert exported["top1"] == pytest.approx(pytorch["top1"], abs=0.003)
        assert int8["bytes"] < exported["bytes"]
        if system in FILES and system != "selector":
            accuracy = top1(predict(load_network(folder / FILES[system])[0], test), test.labels)
            assert pytorch["top1"] == pytest.approx(accuracy, abs=0.003)
            assert pytorch["bytes"] == (folder / FILES[system]).stat().st_size
    heads, lines = deploy.table(rows)
    assert len(lines) == len(systems) * len(RUNTIMES) and len(heads) == len(lines[0]) == 8
