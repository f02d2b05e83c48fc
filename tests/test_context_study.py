"""The context study: a run on 40 images, from its files and from what it stored."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import call

from models import SELECTED, STUDENTS, TEACHER, MultiStudent, Selector, macs, network
from studies import contexts
from utils.checkpoint import fingerprint_of, load_network, save_checkpoint
from utils.contexts import GROUPS, in_context
from utils.data import data_facts, load_sample, load_splits, normalize
from utils.logits import predict, top1


def save(name, arch, seed=0, **made):
    """Write a checkpoint, with other weights for each name and seed, and return the network."""
    torch.manual_seed(seed + len(name))
    net = Selector() if arch == "selector" else network(arch)
    made |= {"arch": arch, "stem": None if arch == "selector" else "cifar-pool"}
    save_checkpoint(Path(name), net, made, 1, 0.1)
    return load_network(name)[0]


@pytest.fixture
def study(toys, float32, tmp_path, small_npz, monkeypatch):
    """Run the study with small networks on 40 images of each split."""
    monkeypatch.setattr(contexts, "QUICK", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    train = load_splits(small_npz, 40)[0]
    data = data_facts(train.images, train.labels)
    save("checkpoints/teacher.pth", TEACHER)
    students = []
    for arch in STUDENTS:
        first = fingerprint_of(save(f"checkpoints/{arch}.pth", arch))
        context = contexts.TRAINED_ON.get(arch, "clean")
        made = {"data": data, "init": first}
        name = f"checkpoints/contexts/{arch}.pth"
        students.append(fingerprint_of(save(name, arch, context=context, **made)))
        for row in contexts.NETS.values():
            if row.folder and row.arch == arch:
                save(f"runs/others/{row.folder}/{arch}.pth", arch, context=row.context, **made)
    made = {"depth": 3, "batch_norm": True, "selected": list(SELECTED), "students": students}
    for folder in ("checkpoints/contexts", "runs/others/published"):
        save(f"{folder}/selector.pth", "selector", context="mixed", data=data, **made)

    def study(status=0):
        words = f"--checkpoint-dir checkpoints --data-dir {small_npz} --out results --subset 40"
        words += " --device cpu"
        return call("studies.contexts", *words.split(), status=status)[1]

    return study


def results():
    return json.loads(Path("results/contexts.json").read_text())


def test_the_study_runs_from_its_files_and_then_from_stored_logits(study, small_npz, monkeypatch):
    study()
    found = results()
    assert {path.name for path in Path("results").glob("*.png")} == {
        f"contexts_{name}.png" for name in ("accuracy", "share", "pictures")
    }
    test, system = load_splits(small_npz, 40)[2], Path("checkpoints/contexts")
    nets = {arch: load_network(system / f"{arch}.pth")[0] for arch in SELECTED}
    selector, _ = load_network(system / "selector.pth")
    routed = MultiStudent([nets[arch] for arch in SELECTED], selector).eval()
    for group in GROUPS:
        seen = in_context(test, group)
        for name, net in nets.items():
            accuracy = found["students"][name]["accuracy"][group]
            assert accuracy == pytest.approx(top1(predict(net, seen), test.labels), abs=0.03)
        logits, choice = predict(routed, seen)
        policy = found["policies"]["selector"]
        assert policy["accuracy"][group] == pytest.approx(top1(logits, test.labels))
        share = (choice == 0).double().mean().item()
        assert policy["share_densenet121"][group] == pytest.approx(share)
    for name, policy in found["policies"].items():
        assert set(GROUPS) | {"noise", "sharp"} <= set(policy["accuracy"]), name
        low, high = policy["interval"]["mixed"]
        assert low <= policy["accuracy"]["mixed"] <= high
        if not contexts.POLICIES[name][2]:
            assert policy["val_accuracy"] <= found["policies"]["oracle"]["val_accuracy"]
    assert found["generalists"]["googlenet, once"]["trained"]["context"] == "mixed"
    pair = found["policies"]["selector, pair"]["macs"]
    assert pair == found["students"]["googlenet"]["macs"] + macs(selector)

    shutil.rmtree("runs")  # the stored logits are enough
    Path("checkpoints/teacher.pth").unlink()
    damaged = Path("results/contexts/densenet121.npz")
    damaged.write_bytes(damaged.read_bytes()[:-9])
    computed = set()
    monkeypatch.setattr(
        contexts,
        "predict",
        lambda net, images, title, size: computed.add(title) or predict(net, images),
    )
    study()
    assert computed == {f"densenet121, {split}" for split in ("val", "test")}
    assert results() == found
    with np.load(stored := Path("results/contexts/googlenet-once.npz")) as file:
        arrays = dict(file)
    np.savez(stored, **arrays | {"facts": str(arrays["facts"]).replace('"mixed"', '"noise"')})
    assert f"{stored} is of other weights or images" in study(status=2)


def test_what_is_missing_or_was_trained_from_other_weights_is_named(study):
    missing = Path("runs/others/twice/googlenet.pth")
    missing.unlink()
    err = study(status=2)
    assert f"{missing} is missing" in err and "make reproduce-contexts" in err
    save("checkpoints/densenet121.pth", "densenet121", seed=1000)
    err = study(status=2)
    assert "checkpoints/contexts/densenet121.pth is of other weights" in err


def test_averaged_weights_have_the_batch_norm_of_mixed_images(small_npz):
    train = load_splits(small_npz, 40)[0]
    nets = [network("cnn"), network("cnn")]
    bias = [net.state_dict()["head.bias"].clone() for net in nets]
    net = contexts.averaged(nets, train)
    assert torch.equal(net.state_dict()["head.bias"], sum(bias) / 2)
    seen = normalize(in_context(train, "mixed").images, train.data)
    mean = net.blocks[0](seen).mean(dim=(0, 2, 3))
    assert torch.allclose(net.blocks[1].running_mean, mean, atol=1e-4)


def test_images_in_contexts_are_recognized_on_every_processor(monkeypatch):
    """Processors round degraded pixels differently, so only the clean ones and strengths count."""
    images, fog = load_sample(50), contexts.KINDS["fog"]
    key = contexts.key_of(images)
    monkeypatch.setitem(contexts.KINDS, "fog", (lambda images, _: images + 1, fog[1]))
    assert contexts.key_of(images) == key
    monkeypatch.setitem(contexts.KINDS, "fog", (fog[0], fog[1][1:]))
    assert contexts.key_of(images) != key
