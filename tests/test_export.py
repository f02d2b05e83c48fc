"""Exported networks give the same results as in PyTorch."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import call

from evaluation import export
from evaluation.policies import System, assemble
from models import SELECTED, STUDENTS, Cascade, MultiStudent, Selector, network
from models.selector import SmallCNN
from utils.checkpoint import FILES, fingerprint_of, load_network, load_parts
from utils.data import CIFAR10, DataSet, normalize
from utils.device import for_inference
from utils.logits import predict

ROOT = Path(__file__).resolve().parent.parent
onnxruntime = pytest.importorskip("onnxruntime", reason="see requirements-dev.txt")


@pytest.fixture(scope="module")
def clone(small_clone):
    """The folder `small_clone` after running python -m evaluation.export."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(small_clone)
        call("evaluation.export")
    return small_clone


@pytest.fixture
def exported(clone, monkeypatch):
    """In the clone, no network is exported twice."""
    new = export.onnx_bytes

    def onnx_bytes(net, facts):
        path = clone / "runs" / "onnx" / f"{facts['arch']}.onnx"
        if not path.exists():
            path.write_bytes(new(net, facts))
        return path.read_bytes()

    monkeypatch.setattr(export, "onnx_bytes", onnx_bytes)
    monkeypatch.chdir(clone)


@pytest.fixture(scope="module")
def scripts():
    """The Python of docs/export.md: for separate files, and for one file."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "export.md").read_text(), re.DOTALL)


@pytest.fixture(scope="module", params=["selector", "cascade"])
def small(request):
    """A policy for three small students, all of which answer, and its files."""
    torch.manual_seed(0)
    nets = {f"student{k}": SmallCNN(10, depth=k) for k in (1, 2, 3)}
    students, answered = list(nets.values()), [("student1",), ("student2",), ("student3",)]
    if request.param == "selector":
        nets["selector"] = Selector(outputs=3)
        offsets = torch.tensor([-3.5, -0.9, 1.7])
        net, thresholds = MultiStudent(students, nets["selector"], offsets), []
    else:
        thresholds = [0.8, 0.5]
        net, answered[2] = Cascade(students, thresholds), ("student2", "student3")
    for each in nets.values():
        each.eval().head.weight.data *= 30  # sure, and each of another opinion
    facts = vars(CIFAR10) | {"classes": list(CIFAR10.classes)}
    contents = {name: export.onnx_bytes(each, facts) for name, each in nets.items()}
    return System(net, [], answered, thresholds), contents


def shipped(arch):
    return load_network(ROOT / "checkpoints" / FILES[arch])


@torch.no_grad()
@pytest.mark.parametrize("int8", [False, True])
def test_the_script_and_the_one_file_give_the_results_of_the_system(
    small, clone, scripts, sample, monkeypatch, int8
):
    system, contents = small
    images = sample.images[:200]
    if int8:
        contents = {name: export.eight_bit(it, images.numpy()) for name, it in contents.items()}
    monkeypatch.chdir(clone)
    there = {}
    exec(scripts[0], there)
    there["networks"] = {name: onnxruntime.InferenceSession(it) for name, it in contents.items()}
    policy = "selector" if "selector" in contents else "cascade"
    there["routing"] |= {"students": ["student1", "student2", "student3"], "alone": 1}
    there["routing"]["thresholds"] = system.thresholds
    if policy == "selector":
        there["routing"]["offsets"] = system.net.offsets.tolist()
    logits, choice = there[policy](images.numpy())
    assert min(np.bincount(choice, minlength=3)) > 10
    for count in (0, 1, 3):
        some = there[policy](images[:count].numpy())
        assert some[0] == pytest.approx(logits[:count], abs=1e-4)
        assert (some[1] == choice[:count]).all()
    if not int8:
        expected = system.net(normalize(images))
        assert logits == pytest.approx(expected[0].numpy(), abs=1e-3)
        assert (choice == expected[1].numpy()).all()
    session = onnxruntime.InferenceSession(export.one_file(system, contents, "its metadata"))
    assert session.get_modelmeta().custom_metadata_map["routing"] == "its metadata"
    for k in range(50):
        found = session.run(["logits", "choice"], {"images": images[k : k + 1].numpy()})
        assert found[0][0] == pytest.approx(logits[k], abs=1e-3) and found[1] == choice[k]
    with pytest.raises(Exception, match="images"):  # one at a time
        session.run(None, {"images": images[:2].numpy()})


@pytest.mark.parametrize("policy", ["selector", "cascade"])
def test_the_scripts_of_the_page_answer_as_the_project_does(
    exported, scripts, sample, float32, policy
):
    sample = sample.take(slice(100))  # those in the clone
    call("evaluation.export", "--policy", policy, "--out", "runs/again")
    there = {}
    exec(scripts[0].replace("runs/onnx", "runs/again"), there)
    parts = load_parts(lambda file: ROOT / "checkpoints" / file)
    ready = {name: for_inference(net, torch.device("cpu")) for name, (net, _) in parts.items()}
    logits, choice = predict(assemble(policy, parts, ready).net, sample)
    assert (there["choice"] == choice.numpy()).mean() >= 0.999
    assert (there["logits"].argmax(axis=1) == logits.argmax(dim=1).numpy()).mean() >= 0.999
    call("evaluation.export", "--policy", policy, "--one-file", "--out", "runs/one")
    exec(scripts[1].replace("cascade.onnx", f"{policy}.onnx"), there)
    assert there["logits"][0] == pytest.approx(logits[0].numpy(), abs=1e-3)
    assert there["choice"][0] == choice[0]


def test_in_eight_bits_the_classes_stay_the_same(exported, sample, small_npz, monkeypatch):
    monkeypatch.setattr(export, "CALIBRATION", 64)
    flags = "--policy", "googlenet", "--data", small_npz, "--int8", "--out", "runs/int8"
    assert "int8" in call("evaluation.export", *flags)[0]
    sizes, classes = [], []
    for folder in ("onnx", "int8"):
        content = Path("runs", folder, "googlenet.onnx").read_bytes()
        session = onnxruntime.InferenceSession(content)
        (logits,) = session.run(None, {"images": sample.images[:300].numpy()})
        sizes.append(len(content))
        classes.append(logits.argmax(axis=1))
    assert sizes[1] < 0.3 * sizes[0]
    assert (classes[0] == classes[1]).mean() >= 0.98


@torch.no_grad()
def test_images_have_the_size_and_the_colors_of_the_training():
    data = DataSet("mine", ("a", "b"), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 64)
    facts = vars(data) | {"classes": list(data.classes)}
    net = network("cnn", classes=2).eval()
    content = export.onnx_bytes(net, facts)
    assert str(ROOT).encode() not in content  # the path of who exported it
    session = onnxruntime.InferenceSession(content)
    images = torch.randint(256, (3, 64, 64, 3), dtype=torch.uint8)
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    assert logits == pytest.approx(net(normalize(images, data)).numpy(), abs=1e-4)


@pytest.mark.parametrize(
    "policy, students, threshold",
    [
        ("selector", [*SELECTED], "thresholds"),
        ("cascade", [*STUDENTS[::-1]], "cascade_thresholds"),  # cheapest first
        ("ensemble", [*SELECTED], None),
        ("googlenet", ["googlenet"], None),
    ],
)
def test_a_policy_gets_what_it_runs(tmp_path, monkeypatch, policy, students, threshold):
    monkeypatch.setattr(export, "onnx_bytes", lambda net, facts: facts["arch"].encode())
    call("evaluation.export", "--policy", policy, "--out", tmp_path)
    routing, chosen = json.loads((tmp_path / "routing.json").read_text()), shipped("selector")[1]
    assert routing["policy"] == policy and routing["students"] == students
    assert routing["thresholds"] == (chosen[threshold] if threshold else [])
    assert routing["temperature"] == {arch: shipped(arch)[1]["temperature"] for arch in students}
    assert routing["classes"] == chosen["classes"]
    names = students + ["selector"] * (policy == "selector")
    for arch in names:
        assert routing["weights"].pop(arch) == fingerprint_of(shipped(arch)[0])
        assert (tmp_path / f"{arch}.onnx").read_bytes() == arch.encode()
    assert not routing["weights"] and len([*tmp_path.iterdir()]) == len(names) + 1


@pytest.mark.parametrize("content", [None, "raise AttributeError('of another\\nprotobuf')"])
def test_a_package_that_is_missing_or_broken_is_named(tmp_path, monkeypatch, content):
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # importing it fails
    if content:
        (tmp_path / "onnxscript.py").write_text(content)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "onnxscript")
    out, err = call("evaluation.export", "--out", tmp_path / "out", status=2)
    assert out == "" and len(err.splitlines()) == 1 and not (tmp_path / "out").exists()
    assert "onnxscript " in err and "pip install" in err


@pytest.mark.parametrize(
    "flags, word",
    [
        (["--policy", "ensemble", "--one-file"], "--one-file"),
        (["--policy", "googlenet", "--int8", "--data", "missing.npz"], "missing.npz"),
        (["--checkpoint-dir", "nowhere"], "densenet121.pth"),
    ],
)
def test_bad_flags_are_refused_before_any_work(tmp_path, monkeypatch, flags, word):
    monkeypatch.setattr(export, "onnx_bytes", None)
    out, err = call("evaluation.export", *flags, "--out", tmp_path, status=2)
    assert word in err and out == "" and not list(tmp_path.iterdir())
