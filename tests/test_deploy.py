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

    def save(name, net, **made):
        save_checkpoint(tmp_path / FILES[name], net, made, 1, 0.1)
        return fingerprint_of(load_network(tmp_path / FILES[name])[0])

    save("teacher", network(TEACHER), arch=TEACHER, stem="cifar-pool")
    made = {"arch": "selector", "stem": None, "depth": 3, "batch_norm": True}
    made["students"] = [
        save(arch, network(arch), arch=arch, stem="cifar-pool") for arch in STUDENTS
    ]
    save("selector", Selector(outputs=len(SELECTED)), selected=[*SELECTED], **made)
    return tmp_path


def test_each_runtime_is_measured_with_every_network_and_policy(
    folder, float32, small_npz, sample, monkeypatch
):
    monkeypatch.setattr(deploy, "IMAGES", {1: 4, 128: 20})
    flags = "--checkpoint-dir", folder, "--out", folder
    call("benchmarks.deploy", "--data", small_npz, *flags)
    rows = json.loads((folder / "deploy.json").read_text())
    systems = ["teacher", *STUDENTS, "selector", "cascade"]
    systems += ["cascade_selected"] if len(STUDENTS) > len(SELECTED) else []
    keys = ("system", "runtime", "threads", "batch")
    assert {tuple(row[key] for key in keys) for row in rows} == {
        *product(systems, RUNTIMES, (1, 2), (1, 128))
    }
    found = {(row["system"], row["runtime"]): row for row in rows}
    test = sample.take(slice(600, None))
    for name in ("teacher", *STUDENTS):
        accuracy = top1(predict(load_network(folder / FILES[name])[0], test), test.labels)
        assert found[name, "PyTorch"]["top1"] == pytest.approx(accuracy, abs=0.003)
        assert found[name, "PyTorch"]["bytes"] == (folder / FILES[name]).stat().st_size
    for system in systems:
        pytorch, exported, int8 = (found[system, runtime] for runtime in RUNTIMES)
        assert exported["top1"] == pytest.approx(pytorch["top1"], abs=0.003)
        assert int8["bytes"] < exported["bytes"]
    for row in rows:
        ms = 1000 * row["batch"] / row["images_per_s"]
        assert row["ms"] == pytest.approx(ms, rel=0.01, abs=0.001)  # both are rounded
    heads, lines = deploy.table(rows)
    assert len(lines) == len(found) and len(heads) == len(lines[0]) == 8
