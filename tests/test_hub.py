"""Loading the weights as other users do: with torch.hub, and without this project's code."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from programs import call

import hubconf
from models import SELECTED, STUDENTS, TEACHER, offsets_of
from utils.checkpoint import FILES, load_network, read_checkpoint, write_dict
from utils.data import normalize
from utils.files import UserError
from utils.logits import top1

ROOT = Path(__file__).resolve().parent.parent
SYSTEMS = ("multistudent", "cascade", "more_confident", "ensemble")
ENTRIES = ("teacher", TEACHER, *STUDENTS, "selector", *SYSTEMS)


def hub(name, **options):
    return torch.hub.load(str(ROOT), name, source="local", **options)


def shipped(arch):
    return load_network(ROOT / "checkpoints" / FILES[arch])


@pytest.fixture(scope="module")
def images(sample):
    return normalize(sample.images[:40])


@pytest.mark.parametrize("name", [*STUDENTS, "selector"])
@torch.no_grad()
def test_the_hub_gives_the_networks_of_the_checkpoints(name, images):
    net = hub(name)
    assert not net.training
    assert torch.equal(net(images), shipped(name)[0](images))


@torch.no_grad()
def test_the_hubs_multistudent_is_the_routed_system_of_the_checkpoints(images):
    selector, info = shipped("selector")
    chances = selector(images).softmax(dim=1)[:, 0]
    every = torch.stack([shipped(arch)[0](images) for arch in STUDENTS])
    routed = hub("multistudent")
    assert not routed.training and torch.equal(routed.offsets, offsets_of(info["thresholds"]))
    for threshold in (*info["thresholds"], chances.median().item() + 1e-6):  # divides the images
        routed.offsets = offsets_of([threshold])
        logits, choice = routed(images)
        assert torch.equal(choice, (chances < threshold).long())
        torch.testing.assert_close(logits, every[choice, torch.arange(len(images))])
    assert len(choice.unique()) == 2
    for name in SYSTEMS[1:]:
        logits, choice = hub(name, checkpoint_dir=str(ROOT / "checkpoints"))(images)
        mean = (logits - every[:2].mean(dim=0)).abs().amax(dim=1) < 1e-4  # of SELECTED
        last = len(SELECTED if name == "ensemble" else STUDENTS) - 1
        assert name == "more_confident" or torch.equal(mean, choice == last), name
    assert mean.all()


@pytest.mark.parametrize("name", ENTRIES)
def test_untrained_networks_need_no_checkpoint(name, images, monkeypatch, tmp_path):
    monkeypatch.setattr(hubconf, "_CHECKPOINTS", tmp_path)
    net = getattr(hubconf, name)(pretrained=False)
    assert net.training
    out = net.eval()(images[:2])
    logits = out[0] if name in SYSTEMS else out
    assert logits.shape == ((2, 2) if name == "selector" else (2, 10))
    with pytest.raises(UserError, match="[.]pth.*[.]py"):
        getattr(hubconf, name)()


@torch.no_grad()
def test_the_stem_is_the_one_asked_for(sample):
    for stem, pool in (("cifar", torch.nn.Identity), ("cifar-pool", torch.nn.MaxPool2d)):
        net = hub("densenet121", pretrained=False, stem=stem)
        assert isinstance(net.features.pool0, pool)
        net = hub("densenet121", stem=stem)
        assert isinstance(net.features.pool0, pool)
        assert top1(net(normalize(sample.images[:40])), sample.labels[:40]) > 0.8
    folder = ROOT / "checkpoints"
    with pytest.raises(ValueError, match="stem.*densenet121.pth"):
        hub("densenet121", stem="cifar", checkpoint_dir=folder)


def test_the_hub_has_these_entries_and_no_others():
    public = {name for name, it in vars(hubconf).items() if name[0] != "_" and callable(it)}
    assert public == set(ENTRIES)  # what torch.hub.list returns


def test_the_example_of_the_readme_runs_as_it_stands(monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (script,) = (block for block in blocks if "torch.hub.load(" in block)
    monkeypatch.chdir(ROOT)
    exec(script.replace("path/to/the/clone", str(ROOT)), {})
    printed = capsys.readouterr().out
    assert re.fullmatch(r"tensor\(\[(\d, ){4}\d\]\) tensor\(\[([01], ){4}[01]\]\)\n", printed)


def test_the_number_of_classes_is_that_of_the_weights_or_the_one_asked_for(images):
    net = hub("multistudent", pretrained=False, num_classes=3).eval()
    assert net(images[:2])[0].shape == (2, 3)
    assert hub("densenet121", num_classes=10)
    for pretrained, number in ((True, 3), (False, 1), (False, 1001)):
        with pytest.raises(ValueError, match=f"classes is {number}"):
            hub("densenet121", pretrained=pretrained, num_classes=number)


@torch.no_grad()
def test_pytorchs_defaults_do_not_change_the_network(images):
    """Before, the defaults led to networks in float64 and networks without weights."""
    expected = shipped("selector")[0](images)
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            net = hub("multistudent")
        fresh = hub("googlenet", pretrained=False)
    finally:
        torch.set_default_dtype(torch.float32)
    for each in (net, fresh):
        floats = [tensor for tensor in each.state_dict().values() if tensor.is_floating_point()]
        assert {tensor.dtype for tensor in floats} == {torch.float32}
    assert torch.equal(net.selector(images), expected)


@pytest.mark.parametrize("name", ["teacher", "selector", "multistudent"])
def test_images_of_another_kind_are_refused(name):
    net = hub(name, pretrained=False).eval()
    uint8, large = torch.zeros(2, 3, 32, 32, dtype=torch.uint8), torch.zeros(2, 3, 224, 224)
    for wrong in (uint8, large, torch.zeros(2, 32, 32, 3)):
        with pytest.raises(ValueError, match="images are"):
            net(wrong)


HUB = f"""
import sys, torch
sys.modules |= dict.fromkeys(["matplotlib", "fcntl"])  # to import one fails; Windows has no fcntl
net = torch.hub.load({str(ROOT)!r}, "selector", source="local")
print(tuple(net(torch.zeros(2, 3, 32, 32)).shape))
"""


@torch.no_grad()
def test_the_docs_load_a_student_without_this_project_and_the_hub_works_on_windows_and_elsewhere(
    sample, small_clone
):
    blocks = re.findall(
        r"```python\n(.*?)```", (ROOT / "checkpoints" / "README.md").read_text(), re.DOTALL
    )
    (script,) = (block for block in blocks if "torchvision.models.densenet121(" in block)
    # -I: not even the folder it runs in can be imported from. filelock warns without fcntl.
    command = [sys.executable, "-I", "-W", "ignore", "-c", script + HUB]
    done = subprocess.run(command, cwd=small_clone, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    told, shape = done.stdout.splitlines()
    logits = shipped("densenet121")[0](normalize(sample.images[:100]))
    expected = 100 * top1(logits, sample.labels[:100])
    assert float(told.rstrip(" %")) == pytest.approx(expected, abs=1.01)
    assert shape == "(2, 2)"


@pytest.mark.parametrize("words", [[], ["picture.png"], ["picture.png", "--policy", "cascade"]])
def test_a_selector_of_other_students_is_refused(tmp_path, small_npz, words):
    for file in FILES.values():
        (tmp_path / file).symlink_to(ROOT / "checkpoints" / file)
    checkpoint = read_checkpoint(tmp_path / FILES["googlenet"])
    checkpoint["state_dict"]["fc.bias"][0] += 1
    (tmp_path / FILES["googlenet"]).unlink()
    write_dict(tmp_path / FILES["googlenet"], checkpoint)
    flags = words or ["--data", small_npz]
    _, err = call("inference.py", *flags, "--checkpoint-dir", tmp_path, status=2)
    assert re.search("selector.pth .*trainSelector.py", err.splitlines()[-1])
    with pytest.raises(UserError, match="selector.pth .*trainSelector.py"):
        hubconf.multistudent(checkpoint_dir=str(tmp_path))
