"""The context study: a run on 40 images, from its files and from what it stored."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import call

from models import SELECTED, STUDENTS, TEACHER, MultiStudent, Selector, network
from studies import contexts
from utils.checkpoint import fingerprint_of, load_network, save_checkpoint
from utils.contexts import GROUPS, in_context
from utils.data import data_facts, load_sample, load_splits
from utils.logits import predict, top1


def test_runs_of_several_seeds_are_averaged():
    runs = [
        {
            "accuracy": dict.fromkeys(GROUPS, x),
            "interval": {"mixed": (x - 0.1, x + 0.1)},
            "macs": 100 * x,
            "mcnemar_p": p,
        }
        for x, p in ((0.5, 0.2), (0.7, 0.01), (0.9, 0.9))
    ]
    mean = contexts.averaged(runs)
    assert mean["accuracy"]["mixed"] == pytest.approx(0.7) and mean["mcnemar_p"] == 0.2
    assert mean["interval"]["mixed"] == pytest.approx([0.6, 0.8])
    assert mean["deviation"]["clean"] == pytest.approx(0.2) and mean["runs"] == runs
    assert contexts.averaged(runs[:1]) is runs[0]


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
    monkeypatch.setattr(contexts, "SELECTOR_EPOCHS", 1)
    monkeypatch.setattr(contexts, "IMAGES", 30)
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
        for stage in contexts.STAGES:
            save(f"runs/generalists/{stage}/{arch}.pth", arch, context="mixed", **made)
    made = {"depth": 3, "batch_norm": True, "selected": list(SELECTED), "students": students}
    save("checkpoints/contexts/selector.pth", "selector", context="mixed", **made)

    def study(status=0):
        words = f"--checkpoint-dir checkpoints --data-dir {small_npz} --out results --subset 40"
        words += " --seeds 2 --device cpu"
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
        if not name.startswith("generalists"):
            assert policy["val_accuracy"] <= found["policies"]["oracle"]["val_accuracy"]
    shares = found["policies"]["true context"]["share_densenet121"]
    assert (shares["clean"], shares["degraded"], shares["unseen"]) == (0, 1, 1)
    assert len(found["policies"]["selector, weighted labels"]["runs"]) == 2
    assert found["generalists"]["googlenet, once"]["trained"]["context"] == "mixed"

    shutil.rmtree("runs")  # for the teacher and the generalists, the stored logits are enough
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
    assert computed == {f"densenet121, {split}" for split in ("train", "val", "test")}
    assert results() == found
    with np.load(stored := Path("results/contexts/googlenet-once.npz")) as file:
        arrays = dict(file)
    np.savez(stored, **arrays | {"facts": str(arrays["facts"]).replace('"mixed"', '"noise"')})
    assert f"{stored} is of other weights or images" in study(status=2)


def test_what_is_missing_or_was_trained_from_other_weights_is_named(study):
    missing = Path("runs/generalists/twice/googlenet.pth")
    missing.unlink()
    err = study(status=2)
    assert f"{missing} is missing" in err and "make reproduce-contexts" in err
    save("checkpoints/densenet121.pth", "densenet121", seed=1000)
    err = study(status=2)
    assert "checkpoints/contexts/densenet121.pth is of other weights" in err


def test_images_in_contexts_are_recognized_on_every_processor(monkeypatch):
    """Processors round degraded pixels differently, so only the clean ones and strengths count."""
    images, fog = load_sample(50), contexts.KINDS["fog"]
    key = contexts.key_of(images)
    monkeypatch.setitem(contexts.KINDS, "fog", (lambda images, _: images + 1, fog[1]))
    assert contexts.key_of(images) == key
    monkeypatch.setitem(contexts.KINDS, "fog", (fog[0], fog[1][1:]))
    assert contexts.key_of(images) != key
