"""Exported networks give the same results as in PyTorch."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import subjects
from evaluation import export
from models import SELECTED, STUDENTS, MultiStudent, network, offsets_of
from utils import cli
from utils.checkpoint import FILES, load_network, read_checkpoint, write_dict
from utils.data import DataSet, fingerprint, normalize
from utils.device import for_inference
from utils.logits import predict

ROOT = Path(__file__).resolve().parent.parent
onnxruntime = pytest.importorskip("onnxruntime", reason="see requirements-dev.txt")


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the program with these arguments: exit status and output."""

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["export.py", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.run(export.main)
        return stop.value.code or 0, capsys.readouterr()

    return command


@pytest.fixture(scope="module")
def clone(small_clone):
    """The folder `small_clone` after running python -m evaluation.export."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(small_clone)
        patch.setattr(sys, "argv", ["export.py"])
        export.main()
    return small_clone


@pytest.fixture(scope="module")
def scripts():
    """The Python of docs/export.md: for ONNX Runtime, and for torch.export."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)


def shipped(arch):
    return load_network(ROOT / "checkpoints" / FILES[arch])


def test_the_script_of_the_page_chooses_and_answers_as_the_project_does(
    clone, scripts, sample, monkeypatch
):
    sample = sample.take(slice(300))  # those in the clone
    monkeypatch.chdir(clone)
    monkeypatch.setattr("utils.device.has_bf16", lambda device: False)
    there = {}
    exec(scripts[0], there)
    networks = {
        name: for_inference(shipped(name)[0], torch.device("cpu"))
        for name in (*SELECTED, "selector")
    }
    system = MultiStudent([networks[arch] for arch in SELECTED], networks["selector"]).eval()
    chances = predict(networks["selector"], sample.images).softmax(dim=1)[:, 0].sort().values
    middle = chances[149:151].mean().item()  # each student gets half of the images
    for threshold in (*shipped("selector")[1]["thresholds"], middle):
        system.offsets = offsets_of([threshold])
        there["routing"]["offsets"] = system.offsets.tolist()
        logits, choice = predict(system, sample.images)
        if threshold == middle:
            there["logits"], there["choice"] = there["route"](sample.images.numpy())
        assert (there["choice"] == choice.numpy()).mean() >= 0.999
        assert (there["logits"].argmax(axis=1) == logits.argmax(dim=1).numpy()).mean() >= 0.999
    assert there["choice"].mean() == pytest.approx(0.5, abs=0.004)


def test_any_number_of_images_is_answered(clone, scripts, sample, monkeypatch):
    monkeypatch.chdir(clone)
    there = {}
    exec(scripts[0], there)
    for count in (0, 1, 3):
        logits, choice = there["route"](sample.images[:count].numpy())
        assert logits.shape == (count, 10) and choice.shape == (count,)
        assert logits == pytest.approx(there["logits"][:count], abs=1e-4)


@torch.no_grad()
def test_torch_export_of_the_page_gives_the_networks(clone, scripts, sample, monkeypatch):
    monkeypatch.chdir(clone)
    exec(scripts[1], {})
    images = normalize(sample.images[:5])
    for name in ("selector", *SELECTED):
        program = torch.export.load(f"runs/onnx/{name}.pt2").module()
        torch.testing.assert_close(program(images), shipped(name)[0](images))


@torch.no_grad()
def test_images_have_the_size_and_the_colors_of_the_training():
    data = DataSet("mine", ("a", "b"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 64)
    facts = vars(data) | {"classes": list(data.classes)}
    net = network("cnn", classes=2).eval()
    session = onnxruntime.InferenceSession(export.onnx_bytes(net, facts))
    images = torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8)
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    assert logits == pytest.approx(net(normalize(images, data)).numpy(), abs=1e-4)


def test_the_facts_stand_beside_the_networks(clone):
    routing = json.loads((clone / "runs" / "onnx" / "routing.json").read_text())
    chosen = shipped("selector")[1]
    assert routing["policy"] == "selector" and routing["students"] == list(SELECTED)
    assert routing["thresholds"] == chosen["thresholds"] and routing["classes"] == chosen["classes"]
    assert routing["temperature"] == {arch: shipped(arch)[1]["temperature"] for arch in SELECTED}
    for arch, weights in routing["weights"].items():
        assert weights == fingerprint(shipped(arch)[0].state_dict().values())
        content = (clone / "runs" / "onnx" / f"{arch}.onnx").read_bytes()
        assert str(ROOT).encode() not in content  # the path of who exported it


@pytest.mark.parametrize(
    "policy, students, threshold",
    [
        ("cascade", [*STUDENTS[::-1]], "cascade_thresholds"),  # cheapest first
        ("ensemble", [*STUDENTS], None),
        ("googlenet", ["googlenet"], None),
    ],
)
def test_a_policy_gets_what_it_runs(command, tmp_path, monkeypatch, policy, students, threshold):
    monkeypatch.setattr(export, "onnx_bytes", lambda net, facts: facts["arch"].encode())
    assert command("--policy", policy, "--out", tmp_path)[0] == 0
    routing = json.loads((tmp_path / "routing.json").read_text())
    assert routing["students"] == students and list(routing["weights"]) == students
    assert routing["thresholds"] == (shipped("selector")[1][threshold] if threshold else [])
    assert {path.name for path in tmp_path.glob("*.onnx")} == {f"{arch}.onnx" for arch in students}
    assert (tmp_path / f"{students[0]}.onnx").read_bytes() == students[0].encode()


def test_a_temperature_of_a_checkpoint_is_told(command, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "onnx_bytes", lambda net, facts: b"")
    checkpoint = read_checkpoint(ROOT / "checkpoints" / "googlenet.pth") | {"temperature": 1.5}
    write_dict(tmp_path / "googlenet.pth", checkpoint)
    words = "--policy", "googlenet", "--checkpoint-dir", tmp_path, "--out", tmp_path
    assert command(*words)[0] == 0
    routing = json.loads((tmp_path / "routing.json").read_text())
    assert routing["temperature"] == {"googlenet": 1.5}


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
@pytest.mark.parametrize("broken", [False, True])
def test_a_package_that_is_missing_or_broken_is_named(
    command, tmp_path, monkeypatch, package, broken
):
    if broken:
        (tmp_path / f"{package}.py").write_text("raise AttributeError('of another\\nprotobuf')")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, package, raising=False)
    else:
        monkeypatch.setitem(sys.modules, package, None)  # importing it fails
    status, said = command("--out", tmp_path / "out", "--checkpoint-dir", tmp_path)
    assert status == 2 and said.out == "" and len(said.err.splitlines()) == 1
    for word in (f"{package} ", "pip install", "protobuf" if broken else "ImportError"):
        assert word in said.err.replace("ModuleNotFoundError", "ImportError")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("part", ["selector", "googlenet"])
def test_a_missing_network_is_told_with_its_command(command, tmp_path, part):
    for arch in (*STUDENTS, "selector"):
        if arch != part:
            (tmp_path / FILES[arch]).symlink_to(ROOT / "checkpoints" / FILES[arch])
    status, said = command("--checkpoint-dir", tmp_path, "--out", tmp_path / "out")
    assert status == 2 and said.out == "" and len(said.err.splitlines()) == 1
    assert f"{part}.pth is missing; run " in said.err


def test_both_sides_of_the_benchmark_answer_the_same_images(clone, small_npz, monkeypatch):
    def exported(net, facts):
        return (clone / "runs" / "onnx" / f"{facts['arch']}.onnx").read_bytes()

    monkeypatch.setattr(subjects, "onnx_bytes", exported)
    place = subjects.Place(torch.device("cpu"), small_npz, ROOT / "checkpoints")
    images = {"ONNX Runtime, one image": 40, "ONNX Runtime, 128 images": 128}
    for subject, count in images.items():
        ours, theirs = (side(place) for side in subjects.SUBJECTS[subject][1:])
        assert ours() == theirs() == count


def test_the_benchmark_is_left_out_where_it_cannot_run(monkeypatch):
    subject, cpu = "ONNX Runtime, one image", torch.device("cpu")
    assert subjects.left_out(subject, cpu) is None
    assert "on the CPU" in subjects.left_out(subject, torch.device("cuda"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # importing it fails
    assert "pip install onnx onnxscript onnxruntime" in subjects.left_out(subject, cpu)
    assert subjects.left_out("routed, all", cpu) is None
