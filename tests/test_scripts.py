"""The four scripts as a user runs them: as programs, in order, on real images."""

import argparse
import csv
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import fault_driver
import numpy as np
import pytest
import torch
from PIL import Image
from programs import Run

import inference
import StudentTrain
import teacherTrain
import trainSelector
from models import STUDENTS, MultiStudent, offsets_of
from studies import policies, selectors
from utils import cli, files
from utils.augment import Augmentation, Batches
from utils.checkpoint import EXPECTED, FILES, fingerprint_of, load_network
from utils.contexts import image_seeds, in_context, kinds
from utils.data import fingerprint, load_splits
from utils.device import for_inference
from utils.files import UserError
from utils.logits import predict, top1
from utils.method import best_temperature

SCRIPTS = {
    "teacherTrain": teacherTrain,
    "StudentTrain": StudentTrain,
    "trainSelector": trainSelector,
    "inference": inference,
}
ROOT = Path(__file__).resolve().parent.parent
TESTED = 80  # images; all classes are among them
ONE = 1.01 / TESTED  # an image that rounds differently in another batch
SMALL = ["--subset", str(TESTED), "--batch-size", "50"]
QUICK = ["--epochs", "2", "--subset", "40", "--batch-size", "20"]


def run(script, folder, data, *flags):
    """Run a script as a program of its own. Returns its output."""
    where = ["--data-dir", str(data), "--checkpoint-dir", str(folder), "--device", "cpu"]
    done = Run(fault_driver.run, script, *where, *flags).wait()
    assert done.status == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done


def drop_claims():
    """Release all locks, as at the end of a process."""
    while files._claims:
        files._claims.pop().release()


@pytest.fixture
def call(monkeypatch, capsys):
    """`run` in this process, which tests can patch. Returns stdout and stderr."""

    def call(script, folder, data, *flags, status=0):
        places = ["--checkpoint-dir", str(folder), "--device", "cpu"]
        places += ["--data-dir", str(data)] if data else []
        monkeypatch.setattr(sys, "argv", [script, *places, *map(str, flags)])
        with pytest.raises(SystemExit) as stop:
            cli.run(SCRIPTS[script.removesuffix(".py")].main)
        drop_claims()
        out, err = capsys.readouterr()
        assert (stop.value.code or 0) == status, out + err
        return out, err

    return call


@pytest.fixture
def no_figures(monkeypatch):
    """Leave out what takes most of the time of inference.py with few images."""
    monkeypatch.setattr("evaluation.figures.draw_all", lambda *_: [])


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, small_npz):
    """The folder with the files of the four scripts, and the output of each."""
    folder = tmp_path_factory.mktemp("checkpoints")
    printed = {}
    for name, script, flags in (
        ("teacher", "teacherTrain.py", QUICK),
        ("student 1", "StudentTrain.py", ["--model", "1", *QUICK]),
        ("student 2", "StudentTrain.py", ["--model", "2", *QUICK]),
        ("alone", "StudentTrain.py", ["--model", "2", "--distill-loss", "none", *QUICK]),
        ("selector", "trainSelector.py", QUICK),
        ("inference", "inference.py", ["--out", str(folder / "out"), *SMALL]),
    ):
        printed[name] = run(script, folder, small_npz, *flags)
    return folder, printed


def test_each_script_says_what_it_does_shows_progress_and_names_the_next(pipeline, small_npz):
    folder, printed = pipeline
    follow = {
        "teacher": "next: python StudentTrain.py --model 1 --epochs 2 --batch-size 20",
        "student 1": "next: python StudentTrain.py --model 2 --epochs 2 --batch-size 20",
        "student 2": "next: python trainSelector.py",
        "alone": "next: python trainSelector.py",
        "selector": "next: python inference.py",
    }
    places = f" --data {small_npz} --device cpu --subset 40 --checkpoint-dir {folder}"
    for name, next_command in follow.items():
        out, err = printed[name].stdout, printed[name].stderr
        for fact in ("cpu, ", "40 for training, ", " M\n", str(folder)):
            assert fact in out, (name, fact)
        assert re.search(r"\nhyperparameters: [^(]*epochs=2,\s+batch_size=20", out), name
        assert out.rstrip().endswith(next_command + places)
        for fact in ("epoch 2/2", "img/s", "loss ", "top-1 "):
            assert fact in err, (name, fact)


def test_every_checkpoint_is_in_half_precision_and_knows_what_was_measured(pipeline, small_npz):
    folder, _ = pipeline
    val = load_splits(small_npz, 40)[1]
    for arch, name in FILES.items():
        checkpoint = torch.load(folder / name, weights_only=True)
        assert checkpoint["arch"] == EXPECTED[arch] and 1 <= checkpoint["epoch"] <= 2
        assert 0 <= checkpoint["val_accuracy"] <= 1 and 0 <= checkpoint["test_accuracy"] <= 1
        assert checkpoint["hyperparameters"]["batch_size"] == 20
        if arch != "selector":
            net = for_inference(load_network(folder / name)[0], torch.device("cpu"))
            expected = best_temperature(predict(net, val.images), val.labels)
            assert checkpoint["temperature"] == pytest.approx(expected, abs=0.02), arch
        floats = [t for t in checkpoint["state_dict"].values() if t.is_floating_point()]
        assert all(tensor.dtype == torch.float16 for tensor in floats)
        with open(folder / name.replace(".pth", ".csv"), newline="") as file:
            assert [row["epoch"] for row in csv.DictReader(file)] == ["1", "2"]


def copy_of(folder, tmp_path, changed=None):
    """A copy of the checkpoints and states in `folder`, one of them with one weight changed."""
    for path in folder.glob("*.*"):
        if path.suffix not in (".lock", ".logits"):
            # States are large. A script replaces them and never writes into them.
            copy = os.link if path.name.endswith(".state.pth") else shutil.copy
            copy(path, tmp_path / path.name)
    if changed:
        checkpoint = torch.load(tmp_path / changed, weights_only=True)
        checkpoint["state_dict"]["fc.bias"][0] += 1
        torch.save(checkpoint, tmp_path / changed)
    return tmp_path


@pytest.mark.parametrize(
    "context, weighted", [("clean", []), ("mixed", ["--label-weight=difference"])]
)
def test_the_selector_learns_for_each_image_which_student_errs_less(
    pipeline, small_npz, tmp_path, call, monkeypatch, context, weighted
):
    """The labels are for the images it sees; they can be weighted by the students' errors."""

    def stop(*args, **_):
        seen.extend(args)
        raise UserError("stopped")

    folder, seen = copy_of(pipeline[0], tmp_path), []
    monkeypatch.setattr(trainSelector.Run, "batches", stop)
    flags = [*QUICK, "--context", context, *weighted]
    call("trainSelector.py", folder, small_npz, *flags, status=2)
    run, targets, weights = seen
    train = in_context(load_splits(small_npz, 40)[0], context)
    assert torch.equal(run.loader.images, train.images) and run.loader.context == "clean"
    one, two = (
        predict(load_network(folder / FILES[arch])[0], train.images).softmax(dim=1)[
            torch.arange(40), train.labels
        ]
        for arch in STUDENTS
    )
    apart = (one - two).abs() > 0.01  # by more than bf16 rounds
    assert apart.sum() > 15
    assert torch.equal(targets[apart], (one < two)[apart].long())  # the wrong classes err as much
    lost = (one - two).abs() if weighted else torch.ones(40)
    assert (weights - lost / lost.mean()).abs().max() < 0.2  # of up to 4: bf16 rounds


def test_a_selector_can_be_taught_the_context_that_each_student_was_trained_on(
    pipeline, small_npz, tmp_path, call, monkeypatch
):
    def stop(*args, **_):
        seen.extend(args)
        raise UserError("stopped")

    folder, seen = copy_of(pipeline[0], tmp_path), []
    flags = [*QUICK, "--context", "mixed", "--label-rule", "context"]
    before = (folder / "selector.pth").read_bytes()
    _, err = call("trainSelector.py", folder, small_npz, *flags, status=2)
    assert "--label-rule context needs students that were trained on different contexts" in err
    assert "these were trained on 'clean' and 'clean' images" in err
    assert (folder / "selector.pth").read_bytes() == before
    student = torch.load(folder / "densenet121.pth", weights_only=True)
    student["hyperparameters"]["context"] = "degraded"
    torch.save(student, folder / "densenet121.pth")
    with monkeypatch.context() as patch:
        patch.setattr(trainSelector.Run, "batches", stop)
        call("trainSelector.py", folder, small_npz, *flags, status=2)
    _, targets, _ = seen
    found = kinds("mixed", image_seeds(load_splits(small_npz, 40)[0]))
    assert targets.tolist() == [int(kind == "clean") for kind in found]
    call("trainSelector.py", folder, small_npz, *flags)
    shutil.copy(pipeline[0] / "googlenet.pth", folder)
    student["state_dict"]["classifier.bias"] += 1
    torch.save(student, folder / "densenet121.pth")
    _, err = call("inference.py", folder, small_npz, status=2)
    assert "selector.pth" in err and "run trainSelector.py" in err


def test_a_selector_is_resumed_though_its_labels_round_otherwise(
    pipeline, small_npz, tmp_path, call, monkeypatch
):
    folder = copy_of(pipeline[0], tmp_path)
    labels = trainSelector.selector_labels
    monkeypatch.setattr(trainSelector, "selector_labels", lambda *args: 1 - labels(*args))
    out, _ = call("trainSelector.py", folder, small_npz, *QUICK, "--resume")
    assert "the run is finished: all epochs were done on 20" in out


def test_a_selector_that_was_killed_while_it_labeled_its_images_is_the_one_that_is_resumed(
    pipeline, small_npz, tmp_path, call, monkeypatch
):
    def kill(*_):
        raise KeyboardInterrupt

    folder = copy_of(pipeline[0], tmp_path)
    earlier = (folder / "selector.state.pth").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(trainSelector, "selector_labels", kill)
        call("trainSelector.py", folder, small_npz, *QUICK, status=130)
    out, _ = call("trainSelector.py", folder, small_npz, *QUICK, "--resume")
    assert "resuming after epoch 0, step 0" in out
    assert (folder / "selector.previous.state.pth").read_bytes() == earlier


def test_the_test_images_have_no_say_in_the_thresholds(
    pipeline, small_npz, tmp_path, call, monkeypatch
):
    """The weights and thresholds of the selector are the same if the test labels are others."""
    with np.load(small_npz) as arrays:
        others = {**arrays, "test_labels": (arrays["test_labels"] + 1) % 10}
    np.savez(tmp_path / "others.npz", **others)
    chosen = []
    for data in (small_npz, tmp_path / "others.npz"):
        (tmp_path / data.stem).mkdir()
        folder = copy_of(pipeline[0], tmp_path / data.stem)
        given = []
        for name, thresholds in (("selector_thresholds", [0.31]), ("cascade_thresholds", [0.62])):

            def spy(*args, given=given, thresholds=thresholds):
                given.append(torch.cat([torch.as_tensor(each).flatten() for each in args[-2:]]))
                return thresholds

            monkeypatch.setattr(trainSelector, name, spy)
        call("trainSelector.py", folder, data, *QUICK)
        facts = torch.load(folder / "selector.pth", weights_only=True)
        assert facts["thresholds"] + facts["cascade_thresholds"] == [0.31, 0.62]
        chosen.append((given, facts))
    (given, facts), (others, other_facts) = chosen
    assert facts["test_accuracy"] != other_facts["test_accuracy"]
    assert facts["val_accuracy"] == other_facts["val_accuracy"]
    for mine, theirs in zip(given, others, strict=True):
        assert torch.equal(mine, theirs)


def test_a_run_is_not_resumed_with_another_teacher(pipeline, small_npz, tmp_path, call):
    folder = copy_of(pipeline[0], tmp_path, "teacher.pth")
    flags = ["--model", 2, *QUICK, "--resume"]
    _, err = call("StudentTrain.py", folder, small_npz, *flags, status=2)
    assert re.search("same hyperparameters only: teacher was '[0-9a-f]{12}', is '", err)


def test_a_run_whose_best_weights_are_gone_is_not_resumed(pipeline, small_npz, tmp_path, call):
    folder = copy_of(pipeline[0], tmp_path)
    (folder / "googlenet.pth").unlink()
    flags = ["--model", 2, *QUICK, "--epochs", 3, "--resume"]
    _, err = call("StudentTrain.py", folder, small_npz, *flags, status=2)
    assert "googlenet.pth is missing" in err and "googlenet.state.pth: delete it, or leave" in err


def test_a_run_is_not_resumed_with_other_students(pipeline, small_npz, tmp_path, call):
    folder = copy_of(pipeline[0], tmp_path, "googlenet.pth")
    _, err = call("trainSelector.py", folder, small_npz, *QUICK, "--resume", status=2)
    assert "same hyperparameters only:" in err and "students was ['" in err


def test_a_run_starts_from_the_weights_that_init_names(pipeline, small_npz, tmp_path, call):
    folder = copy_of(pipeline[0], tmp_path)
    init = folder / "first.pth"
    shutil.copy(folder / "googlenet.pth", init)
    flags = ["--model", 2, "--lr", "1e-12", "--epochs", 1, *QUICK[2:]]
    run("StudentTrain.py", folder, small_npz, *map(str, flags), "--init", str(init))
    before, after = load_network(init)[0], load_network(folder / "googlenet.pth")[0]
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert torch.equal(old, new), name
    _, err = call("StudentTrain.py", folder, small_npz, *flags, "--resume", status=2)
    assert re.search("same hyperparameters only: init was '[0-9a-f]{12}', is None", err)


def test_a_student_learns_from_the_images_that_indices_names(small_npz, tmp_path, call):
    train, val, _ = load_splits(small_npz)
    path = tmp_path / "indices.npy"
    flags = ["--model", 2, "--distill-loss", "none", "--epochs", 1, "--batch-size", 20]
    flags += ["--indices", path]
    np.save(path, val.indices)
    _, err = call("StudentTrain.py", tmp_path, small_npz, *flags, status=2)
    assert f"{path}: {val.indices[0]} is not the index of a training image" in err
    assert not list(tmp_path.glob("*.pth"))
    np.save(path, np.repeat(train.indices[:20], 2))
    out, _ = call("StudentTrain.py", tmp_path / "other", small_npz, *flags)
    assert f"40 for training, {len(val)} for validation" in out


def test_a_student_learns_from_a_teacher_from_elsewhere(pipeline, small_npz, tmp_path, call):
    """Its stem is detected: the weights of both stems have the same names and shapes."""
    weights = torch.load(pipeline[0] / "teacher.pth", weights_only=True)["state_dict"]
    path = tmp_path / "theirs.pth"
    weights = {name: t.bfloat16() if t.is_floating_point() else t for name, t in weights.items()}
    torch.save({"net": {f"module.{name}": tensor for name, tensor in weights.items()}}, path)
    flags = ["--epochs", 1, *QUICK[2:], "--teacher", path, "--distill-loss", "kl"]
    out, _ = call("StudentTrain.py", tmp_path, small_npz, "--model", 1, *flags)
    follow = f"--distill-loss kl --teacher {path} --epochs 1 --batch-size 20 --data {small_npz}"
    assert f"next: python StudentTrain.py --model 2 {follow}" in out
    told = rf"{path} is not a checkpoint of this project: assuming the (\S+) stem, the classes of "
    told += r"the data set, and the mean and std of CIFAR-10; top-1 on \d+ validation images: "
    told += r"(\S+)% with cifar, (\S+)% with cifar-pool"
    found, cifar, pool = re.search(told, out).groups()
    assert found == ("cifar" if float(cifar) >= float(pool) else "cifar-pool")
    taught = load_network(tmp_path / "densenet121.pth")[1]["hyperparameters"]["teacher"]
    assert taught == fingerprint(load_network(path, "resnet50", found)[0].state_dict().values())


def test_several_teachers_teach_the_mean_of_their_logits(pipeline, small_npz, tmp_path, call):
    paths = [pipeline[0] / "teacher.pth", pipeline[0] / "googlenet.pth"]
    flags = ["--model", 1, *QUICK, "--teacher", *paths]
    out, _ = call("StudentTrain.py", tmp_path, small_npz, *flags)
    assert f"--teacher {paths[0]} {paths[1]} --epochs" in out  # in the next command
    train = load_splits(small_npz, 40)[0]
    facts = load_network(tmp_path / "densenet121.pth")[1]["hyperparameters"]
    (file,) = (pipeline[0] / "teacher.logits").glob(f"{facts['teacher']}-*-00.npz")
    images = Batches(train.images, 20, 0, Augmentation(4, True, 8), 16).view(0, torch.arange(40))
    nets = [load_network(path)[0] for path in paths]
    with torch.inference_mode():
        expected = sum(net(images) for net in nets) / 2
    assert torch.allclose(torch.from_numpy(np.load(file)["logits"]).float(), expected, atol=0.02)


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--teacher", "none.pth"], "none.pth is missing"),
        (["--teacher", "selector.pth"], "selector.pth holds a selector"),
        (["--teacher", "teacher.pth", "selector.pth"], "selector.pth holds a selector"),
        (["--teacher", "teacher.pth", "--distill-loss", "none"], "leave one of them out"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused(
    flags, message, pipeline, small_npz, tmp_path, call, monkeypatch
):
    monkeypatch.chdir(pipeline[0])
    folder = tmp_path / "new"
    _, err = call("StudentTrain.py", folder, small_npz, "--model", 2, *QUICK, *flags, status=2)
    assert message in err and len(err.splitlines()) == 1
    assert not list(folder.glob("*.pth"))


def test_a_run_starts_from_weights_from_elsewhere(pipeline, small_npz, tmp_path, call):
    weights = torch.load(pipeline[0] / "googlenet.pth", weights_only=True)["state_dict"]
    init = tmp_path / "theirs.pth"
    torch.save(weights, init)
    flags = ["--model", 2, "--lr", "1e-12", "--epochs", 1, "--distill-loss", "none", *QUICK[2:]]
    out, _ = call("StudentTrain.py", tmp_path, small_npz, *flags, "--init", init)
    assert f"{init} is not a checkpoint of this project: assuming the cifar-pool stem" in out
    after = load_network(tmp_path / "googlenet_alone.pth")[0]
    for name, weight in after.named_parameters():
        assert torch.equal(weight, weights[name].float()), name


@pytest.mark.parametrize(
    ("name", "stem", "message"),
    [
        ("teacher.pth", "cifar-pool", "teacher.pth would be overwritten by this run: copy it"),
        ("teacher.previous.pth", "cifar-pool", "would be overwritten by this run: copy it"),
        ("teacher.state.pth", "cifar-pool", "would be overwritten by this run: copy it"),
        ("googlenet.pth", "cifar-pool", "googlenet.pth holds 'googlenet', expected 'resnet50'"),
        ("other.pth", "cifar", "other.pth has the cifar-pool stem, but --stem is cifar"),
        ("none.pth", "cifar-pool", "none.pth"),
    ],
)
def test_weights_that_cannot_be_started_from_are_refused(
    name, stem, message, pipeline, small_npz, tmp_path, call, monkeypatch
):
    folder = copy_of(pipeline[0], tmp_path)
    for copy in ("other.pth", "teacher.previous.pth"):
        shutil.copy(folder / "teacher.pth", folder / copy)
    before = (folder / "teacher.pth").read_bytes()
    monkeypatch.setattr(teacherTrain, "STEM", stem)
    _, err = call("teacherTrain.py", folder, small_npz, *QUICK, "--init", folder / name, status=2)
    assert message in err and len(err.splitlines()) == 1
    assert (folder / "teacher.pth").read_bytes() == before


def test_the_metrics_are_those_of_the_networks_in_the_checkpoints(pipeline, small_npz):
    folder, printed = pipeline
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    test = load_splits(small_npz, TESTED)[2]
    nets = {arch: load_network(folder / FILES[arch])[0] for arch in STUDENTS}
    selector, checkpoint = load_network(folder / FILES["selector"])
    system = MultiStudent(list(nets.values()), selector, offsets_of(checkpoint["thresholds"]))
    logits, choice = predict(system, test.images)

    assert metrics["images"] == len(test)
    accuracy = metrics["accuracy"]
    assert accuracy["routed"] == pytest.approx(top1(logits, test.labels), abs=ONE)
    share = (choice == 0).double().mean().item()
    assert metrics["route_share"]["densenet121"] == pytest.approx(share, abs=ONE)
    right = [predict(net, test.images).argmax(1) == test.labels for net in nets.values()]
    either = (right[0] | right[1]).double().mean().item()
    assert accuracy["oracle"] == pytest.approx(either, abs=ONE)
    students = [accuracy[arch] for arch in STUDENTS]
    assert accuracy["better_student"] == max(students)
    assert accuracy["random"] == pytest.approx(sum(students) / 2)
    for name, by_class in metrics["per_class"].items():
        counts = torch.bincount(test.labels, minlength=10)
        total = sum(a * n for a, n in zip(by_class.values(), counts.tolist(), strict=True))
        assert total / len(test) == pytest.approx(accuracy[name]), name
    intervals = metrics["accuracy_interval"]
    assert set(intervals) == set(accuracy) - {"random"}
    assert all(low <= accuracy[name] <= high for name, (low, high) in intervals.items())
    work = metrics["macs_per_image"]
    assert work["googlenet"] < work["routed"] - 9e6 + 1e6 <= work["densenet121"] + 1e6
    assert work["ensemble"] == work["densenet121"] + work["googlenet"]
    assert work["googlenet"] <= work["cascade"] <= work["ensemble"]
    assert all(speed > 0 for speed in metrics["images_per_second"].values())
    assert f"{100 * accuracy['routed']:.2f}" in printed["inference"].stdout


def test_a_student_without_the_teacher_is_kept_apart_and_measured_too(
    pipeline, small_npz, tmp_path, call
):
    folder, printed = pipeline
    alone, told = load_network(folder / "googlenet_alone.pth", "googlenet")
    assert told["hyperparameters"]["distill_loss"] == "none"
    assert "distill_loss=none" in printed["alone"].stdout
    distilled = load_network(folder / "googlenet.pth")[1]["hyperparameters"]
    assert distilled["distill_loss"] == "mse" and distilled["teacher"]
    test = load_splits(small_npz, TESTED)[2]
    accuracy = json.loads((folder / "out" / "metrics.json").read_text())["accuracy"]
    expected = top1(predict(alone, test.images), test.labels)
    assert accuracy["googlenet_alone"] == pytest.approx(expected, abs=ONE)
    assert "densenet121_alone" not in accuracy
    flags = ["--model", 2, "--distill-loss", "none", "--epochs", 1, *QUICK[2:]]
    call("StudentTrain.py", tmp_path, small_npz, *flags)  # no teacher is needed
    assert not (tmp_path / "googlenet.pth").exists()


def test_the_figures_are_drawn(pipeline):
    folder, _ = pipeline
    for name in (
        "per_class_accuracy",
        "samples",
        "confusion",
        "reliability",
        "accuracy_per_epoch",
    ):
        content = (folder / "out" / f"{name}.png").read_bytes()
        assert content.startswith(b"\x89PNG") and len(content) > 10_000


def test_the_report_is_written_and_named_last(pipeline):
    folder, printed = pipeline
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "report.html" in printed["inference"].stdout.splitlines()[-1]
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    for name in ("routed", "cascade", "teacher", "oracle"):
        assert f"{100 * metrics['accuracy'][name]:.2f}&nbsp;%" in page
    for file in FILES.values():
        assert fingerprint_of(load_network(folder / file)[0]) in page


def test_inference_asks_the_selector_in_the_checkpoint(
    pipeline, small_npz, tmp_path, call, no_figures
):
    """The published inference never loaded the selector."""
    folder, _ = pipeline
    for name in FILES.values():
        if name != "teacher.pth":
            (tmp_path / name).symlink_to(folder / name)
    for bias, share in ((-50, 0), (50, 1)):
        checkpoint = torch.load(folder / "selector.pth", weights_only=True)
        checkpoint["state_dict"]["head.bias"][:] = torch.tensor([bias, 0])
        checkpoint["thresholds"] = [0.5]
        (tmp_path / "selector.pth").unlink()
        torch.save(checkpoint, tmp_path / "selector.pth")
        flags = ["--subset", "50", "--out", tmp_path / "out"]
        out, _ = call("inference.py", tmp_path, small_npz, *flags)
        assert "no teacher" in out
        metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert metrics["route_share"]["densenet121"] == share
        assert "teacher" not in metrics["accuracy"]


def test_a_policy_needs_no_more_than_the_networks_that_it_runs(pipeline, small_npz, tmp_path, call):
    image = tmp_path / "image.png"
    Image.fromarray(np.full((32, 32, 3), 90, np.uint8)).save(image)
    for policy, needs, names in (
        ("googlenet", ["googlenet"], ["googlenet"]),
        ("densenet121", ["densenet121"], ["densenet121"]),
        ("ensemble", ["densenet121", "googlenet"], ["both"]),
        ("more_confident", ["densenet121", "googlenet"], STUDENTS),
        ("cascade", ["densenet121", "googlenet", "selector"], ["googlenet", "both"]),
        ("selector", ["densenet121", "googlenet", "selector"], STUDENTS),
    ):
        folder = tmp_path / policy
        folder.mkdir()
        for arch in needs:
            (folder / FILES[arch]).symlink_to(pipeline[0] / FILES[arch])
        out, _ = call("inference.py", folder, None, image, "--policy", policy)
        assert any(f" {name} " in out.splitlines()[1] for name in names), out
    out, _ = call("inference.py", folder, None, image, "--policy=cascade", "--threshold=0")
    assert " googlenet " in out
    out, _ = call("inference.py", folder, None, image, "--policy=cascade", "--threshold=1.01")
    assert " both " in out


def test_the_threshold_moves_the_cascade_from_one_student_to_the_mean_of_both(
    pipeline, small_npz, tmp_path, call, no_figures
):
    for threshold, same_as in ((0, "googlenet"), (1.01, "ensemble")):
        flags = ["--policy", "cascade", "--threshold", threshold, "--out", tmp_path, *SMALL]
        call("inference.py", pipeline[0], small_npz, *flags)
        metrics = json.loads((tmp_path / "metrics.json").read_text())
        assert metrics["accuracy"]["cascade"] == pytest.approx(
            metrics["accuracy"][same_as], abs=ONE
        )
        assert metrics["macs_per_image"]["cascade"] == metrics["macs_per_image"][same_as]


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--policy=googlenet", "--threshold=0.5"], "--threshold: --policy googlenet has no"),
        (["--policy=cascade", "--threshold=0.5,0.9"], "--threshold: --policy cascade has 1"),
        (["--policy=coin"], "--policy: invalid choice: 'coin'"),
        (["--checkpoint-dir", ""], "--checkpoint-dir"),
        *((["--threshold", value], "--threshold") for value in ("1.5", "nan", "-0.1", "x")),
    ],
)
def test_a_nonsense_policy_or_threshold_is_named(flags, message, monkeypatch, capsys, tmp_path):
    assert message in refused("inference", flags, monkeypatch, capsys, tmp_path)


def test_a_tilde_that_the_shell_leaves_is_the_home_folder():
    parser = cli.common_parser("", {"BATCH_SIZE": 1})
    cli.add_out(parser, Path("runs"), "files")
    args = parser.parse_args(["--out=~/res", "--data=~/mine.npz"])
    assert (args.out, args.data) == (Path.home() / "res", str(Path.home() / "mine.npz"))


@pytest.mark.parametrize(
    "script, present, missing, made_by",
    [
        ("StudentTrain.py --model 1", 0, "teacher.pth", "teacherTrain.py"),
        ("trainSelector.py", 0, "densenet121.pth", "StudentTrain.py --model 1"),
        ("trainSelector.py", 1, "googlenet.pth", "StudentTrain.py --model 2"),
        ("inference.py", 2, "selector.pth", "trainSelector.py"),
    ],
)
def test_a_missing_input_is_named_with_the_command_that_makes_it(
    pipeline, small_npz, tmp_path, call, script, present, missing, made_by
):
    for arch in STUDENTS[:present]:
        (tmp_path / FILES[arch]).symlink_to(pipeline[0] / FILES[arch])
    script, *flags = script.split()
    _, err = call(script, tmp_path, small_npz, *flags, status=2)
    assert missing in err and made_by in err and len(err.splitlines()) == 1


def test_a_student_whose_logits_are_not_finite_ends_inference_and_spares_its_files(
    small_npz, tmp_path, call
):
    """Weights that are finite in half precision, but give infinite logits in float32."""
    for arch in (*STUDENTS, "selector"):
        checkpoint = torch.load(ROOT / "checkpoints" / FILES[arch], weights_only=True)
        if arch == "googlenet":
            for name, tensor in checkpoint["state_dict"].items():
                tensor.fill_(60_000) if name.endswith("bn.weight") else None
        if arch == "selector":
            checkpoint["hyperparameters"]["students"] = [
                fingerprint(load_network(tmp_path / FILES[it])[0].state_dict().values())
                for it in STUDENTS
            ]
        torch.save(checkpoint, tmp_path / FILES[arch])
    (tmp_path / "metrics.json").write_text("of an earlier run")
    flags = ["--subset", 20, "--out", tmp_path]
    _, err = call("inference.py", tmp_path, small_npz, *flags, status=2)
    assert "GoogLeNet: the logits of 20 of 20 images are not finite" in err.splitlines()[-1]
    assert (tmp_path / "metrics.json").read_text() == "of an earlier run"
    assert not list(tmp_path.glob("*.png"))


def test_a_loss_that_is_not_finite_is_an_error_of_one_line(small_npz, tmp_path, pipeline, call):
    for arch in STUDENTS:
        (tmp_path / FILES[arch]).symlink_to(pipeline[0] / FILES[arch])
    flags = ["--lr", "1e30", "--subset", "200"]
    _, err = call("trainSelector.py", tmp_path, small_npz, *flags, status=2)
    error = [line for line in err.splitlines() if "error:" in line]
    assert len(error) == 1 and "epoch 1, step" in error[0] and "--lr" in error[0]
    assert not (tmp_path / "selector.pth").exists()


def refused(script, flags, monkeypatch, capsys, tmp_path):
    """Run `script`, which must exit with status 2 without any work or file. Returns stderr."""
    folder = tmp_path / "checkpoints"
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--checkpoint-dir", str(folder), *flags])
    with pytest.raises(SystemExit) as stop:
        cli.run(SCRIPTS[script].main)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and not folder.exists()
    return err


WHOLE_ABOVE_0 = ("0", "-3", "1.5", "many", "nan", "", "1e9")
FLAGS = {
    "--epochs": WHOLE_ABOVE_0,
    "--batch-size": WHOLE_ABOVE_0,
    "--subset": WHOLE_ABOVE_0,
    "--lr": ("0", "-0.1", "nan", "inf", "1e999", "fast", ""),
    "--seed": ("-1", "1.5", "nan", "2147483648", "9" * 30, "x"),
    "--device": ("tpu9", "meta", "cuda:99", "", "cpu:x", "privateuseone", "hpu"),
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flag", FLAGS)
def test_a_nonsense_flag_is_named(script, flag, monkeypatch, capsys, tmp_path):
    model = ["--model", "1"] if script == "StudentTrain" else []
    for value in FLAGS[flag]:
        err = refused(script, [*model, f"{flag}={value}"], monkeypatch, capsys, tmp_path)
        last = err.splitlines()[-1]
        assert last.startswith(f"{script}.py: error: ") and flag in last


@pytest.mark.parametrize(
    "flag, path",
    [
        ("--data", "nowhere.npz"),
        ("--data", "long" * 2000 + ".npz"),
        ("--data", "README.md/data"),
        ("--checkpoint-dir", "README.md"),
        ("--checkpoint-dir", "long" * 2000),
    ],
)
def test_a_path_that_cannot_be_is_named(flag, path, small_npz, monkeypatch, capsys, tmp_path):
    places = {"--data": str(small_npz), "--checkpoint-dir": str(tmp_path)} | {flag: path}
    words = [word for place in places.items() for word in place]
    monkeypatch.setattr(sys, "argv", ["teacherTrain.py", "--epochs=1", "--subset=9", *words])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        cli.run(teacherTrain.main)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and path in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "required: --model"),
        (["--model=3"], "invalid choice: 3"),
        (["--model=x"], "invalid int value"),
        (["--modle=1"], "--model"),
    ],
)
def test_a_student_that_is_none_is_refused(flags, message, monkeypatch, capsys, tmp_path):
    assert message in refused("StudentTrain", flags, monkeypatch, capsys, tmp_path)


CONSTANTS = {
    "EPOCHS": (0, -1, 2.5, "6", None, True),
    "BATCH_SIZE": (0, -64, 64.0),
    "LEARNING_RATE": (0, -0.1, math.nan, math.inf, "0.1"),
    "OPTIMIZER": ("adam", None),
    "MOMENTUM": (-0.1, 1, math.nan),
    "WEIGHT_DECAY": (-1e-4, math.nan, math.inf),
    "WARMUP": (-0.1, 1.0, math.nan),
    "CROP": (-1, 32, 2.5),
    "FLIP": ("yes", None),
    "CUTOUT": (-8, 193, 8.0),
    "SEED": (-1, 0.5, 2**31),
    "STEM": ("imagenet", None, 3),
    "DISTILL_LOSS": ("mae", None),
    "ALPHA": (-1, math.nan, "0"),
    "TEMPERATURE": (0, -4, math.inf),
    "TEACHER_VIEWS": (-1, 0.5, None),
    "CONTEXT": ("night", None, 3),
    "LABEL_RULE": ("error", None, True),
    "LABEL_WEIGHT": ("none", 0.5, True),
    "DEPTH": (0, 5, 3.0),
    "BATCH_NORM": ("False", None),
    "THRESHOLD": (math.nan, -0.1, 1.5, "0.5"),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_nonsense_constant_in_the_block_is_named(script, monkeypatch, capsys, tmp_path):
    block = {name: value for name, value in vars(SCRIPTS[script]).items() if name in CONSTANTS}
    assert block
    for name in block:
        for value in CONSTANTS[name]:
            with monkeypatch.context() as patch:
                patch.setattr(SCRIPTS[script], name, value)
                flags = ["--model", "1"] if script == "StudentTrain" else []
                err = refused(script, flags, patch, capsys, tmp_path)
            assert err.startswith(f"{script}.py: error: {name} = {value!r}"), err
            assert len(err.splitlines()) == 1


@pytest.mark.parametrize("name", ["CROP", "EPOCHS", "STEM", "SEED"])  # SEEDS is of the studies
def test_a_misspelt_constant_is_named(name, monkeypatch, capsys, tmp_path):
    monkeypatch.delattr(teacherTrain, name)
    monkeypatch.setattr(teacherTrain, f"{name}S", 4, raising=False)
    err = refused("teacherTrain", [], monkeypatch, capsys, tmp_path)
    assert err.startswith(f"teacherTrain.py: error: {name}") and len(err.splitlines()) == 1


def test_the_settings_of_a_run_are_the_constants_of_its_script_with_the_flags_applied():
    args = argparse.Namespace(epochs=7, learning_rate=0.5, lr=1, seed=0)
    settings = cli.settings(vars(teacherTrain), args)
    assert (settings["epochs"], settings["learning_rate"], settings["crop"]) == (7, 0.5, 4)
    for script in (teacherTrain, StudentTrain):
        names = {name.upper() for name in cli.settings(vars(script), args)}
        assert names - {"DATA", "LAYERS"} <= {*cli.NUMBERS, *cli.CHOICES} & {*CONSTANTS}


def test_a_system_is_trained_and_measured_in_a_context(
    pipeline, small_npz, tmp_path, call, no_figures
):
    folder = copy_of(pipeline[0], tmp_path)
    call("StudentTrain.py", folder, small_npz, "--model", 2, "--context", "degraded", *QUICK)
    flags = ["--context", "mixed", "--label-weight", "difference", *QUICK]
    out, _ = call("trainSelector.py", folder, small_npz, *flags)
    assert f"next: python inference.py --context mixed --data {small_npz} --device" in out
    test, printed = load_splits(small_npz, 60)[2], {}
    for context in ("clean", "mixed"):
        flags = ["--context", context, "--subset", 60, "--out", tmp_path / context]
        printed[context], _ = call("inference.py", folder, small_npz, *flags)
        metrics = json.loads((tmp_path / context / "metrics.json").read_text())
        seen, images = kinds(context, image_seeds(test)), in_context(test, context).images
        assert metrics["context"] == context
        assert {kind: facts["images"] for kind, facts in metrics["per_context"].items()} == {
            kind: seen.count(kind) for kind in set(seen)
        }
        net = for_inference(load_network(folder / "googlenet.pth")[0], images.device)
        right = predict(net, images).argmax(dim=1) == test.labels
        for kind, facts in metrics["per_context"].items():
            own = right[torch.tensor([each == kind for each in seen])]
            assert facts["accuracy"]["googlenet"] == pytest.approx(own.double().mean().item())
            assert sum(facts["sent"].values()) == facts["images"]
        for name, accuracy in metrics["accuracy"].items():
            parts = metrics["per_context"].values()
            total = sum(part["images"] * part["accuracy"][name] for part in parts)
            assert total == pytest.approx(60 * accuracy)
    assert "by context" in printed["mixed"] and "by context" not in printed["clean"]
    for path, context in (("googlenet", "degraded"), ("selector", "mixed")):
        facts = torch.load(folder / f"{path}.pth", weights_only=True)["hyperparameters"]
        assert facts["context"] == context
    _, err = call("inference.py", folder, small_npz, "--context", "fog", "x.png", status=2)
    assert "--context is for the test set" in err
    shutil.copy(pipeline[0] / "googlenet.pth", folder)
    _, err = call("inference.py", folder, small_npz, status=2)
    assert "selector.pth" in err and "run trainSelector.py" in err


def test_classes_without_an_image_are_left_out(pipeline, small_npz, tmp_path, call):
    call("inference.py", pipeline[0], small_npz, "--subset", 3, "--out", tmp_path / "out")
    text = (tmp_path / "out" / "metrics.json").read_text()
    assert "NaN" not in text
    assert 1 <= len(json.loads(text)["per_class"]["routed"]) <= 3


def test_without_the_test_set_inference_falls_back_to_the_sample_and_says_so(
    pipeline, tmp_path, call, monkeypatch, no_figures
):
    monkeypatch.setattr("utils.data.FOLDER", tmp_path / "empty")  # the only one that may be so
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("PATH", "")  # where npm would be
    flags = ["--subset", 30, "--out", tmp_path / "out"]
    _, err = call("inference.py", pipeline[0], tmp_path / "empty", *flags)
    assert "test set is not available" in err and "data/sample.npz" in err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["dataset"].startswith("sample") and metrics["images"] == 30
    _, err = call("inference.py", pipeline[0], tmp_path / "emtpy", *flags, status=2)
    assert f"--data {tmp_path / 'emtpy'}: no such file or folder" in err


# ------------------------------------------------------------------ own data, and quick tries


@pytest.fixture
def typed(monkeypatch, capsys):
    """Run a command as typed by a user, in this process. Returns stdout."""

    def typed(command):
        _, *words = shlex.split(command)
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stop:
            cli.run(SCRIPTS[Path(words[0]).stem].main)
        drop_claims()
        out, err = capsys.readouterr()
        assert not stop.value.code, out + err
        return out

    return typed


def test_the_next_commands_typed_as_printed_lead_to_answers_in_the_classes_of_the_data(
    tmp_path, sample, typed, monkeypatch
):
    names = ["cat", 'Löwe, "big"', "$x$"]
    data, folder = tmp_path / "my data.NPZ", tmp_path / "my networks"
    some = sample.labels < 3
    images, labels = sample.images[some].numpy(), sample.labels[some].numpy()
    with open(data, "wb") as file:
        np.savez(
            file,
            train_images=images[:200],
            train_labels=labels[:200],
            test_images=images[200:],
            test_labels=labels[200:],
            classes=names,
        )
    monkeypatch.chdir(tmp_path)  # from elsewhere
    command = f"python {shlex.quote(str(ROOT))}/teacherTrain.py --device cpu --subset 20"
    command += " --data-dir 'my data.NPZ' --checkpoint-dir 'my networks'"
    scripts = []
    while not scripts or scripts[-1] != "inference.py":
        scripts.append(Path(shlex.split(command)[1]).name)
        more = " --epochs 1 --batch-size 20"
        out = typed(command + (" --out out" if scripts[-1] == "inference.py" else more))
        assert f"my data.NPZ, 3 classes: {', '.join(names)}\n" in out
        command = out.splitlines()[-1].removeprefix("next: ")
    assert scripts == [
        "teacherTrain.py",
        "StudentTrain.py",
        "StudentTrain.py",
        "trainSelector.py",
        "inference.py",
    ]
    assert '\nLöwe, "big"      ' in out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["per_class"]["teacher"]) == names
    assert metrics["dataset"] == "test images of my data.NPZ"
    for file in FILES.values():
        assert load_network(folder / file)[1]["classes"] == names

    Image.fromarray(images[0]).save(tmp_path / "one.png")
    answers = "inference.py one.png --csv a.csv --checkpoint-dir 'my networks' --device cpu"
    typed(f"python {answers}")
    with open("a.csv", newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["class"] in names


@pytest.mark.parametrize(
    "main, words",
    [
        (StudentTrain.main, ["--model", "2"]),
        (trainSelector.main, []),
        (inference.main, []),
        (policies.main, ["--collect"]),
        (selectors.main, []),
    ],
)
def test_networks_for_other_classes_than_the_datas_are_refused(
    main, words, small_npz, tmp_path, monkeypatch
):
    with np.load(small_npz) as file:
        np.savez(tmp_path / "mine.npz", **{name: file[name] for name in file if name != "classes"})
    for file in FILES.values():
        (tmp_path / file).symlink_to(ROOT / "checkpoints" / file)
    words += ["--data-dir", "mine.npz", "--checkpoint-dir", ".", "--device", "cpu"]
    words += [] if main in (StudentTrain.main, trainSelector.main) else ["--out", "out"]
    monkeypatch.setattr(sys, "argv", ["script.py", *words])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="calls class 0 'airplane', and mine.npz 'class 0': use"):
        main()
    assert not [
        path for path in Path().rglob("*") if path.suffix not in (".pth", ".lock", ".npz", "")
    ]
    drop_claims()


def test_a_quick_try_leaves_what_a_whole_run_made_as_it_is(
    pipeline, small_npz, tmp_path, typed, monkeypatch, no_figures
):
    whole, quick = tmp_path / "checkpoints", tmp_path / "runs" / "quick"
    whole.mkdir()
    copy_of(pipeline[0], whole)
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    monkeypatch.setattr("utils.checkpoint.CHECKPOINTS", whole)
    monkeypatch.setattr("utils.checkpoint.QUICK", quick)
    monkeypatch.chdir(tmp_path)
    places = f"--subset 40 --data-dir {small_npz} --device cpu"

    def left():
        return sorted(path.relative_to(quick).parts[0] for path in quick.rglob("*.pth"))

    assert (
        "networks      checkpoints/densenet121.pth, checkpoints/googlenet.pth, checkpoints/t"
        in (typed(f"python inference.py {places}"))
    )
    assert (quick / "inference" / "metrics.json").exists() and left() == []
    typed(f"python trainSelector.py {places} --epochs 1")
    assert left() == ["selector.pth", "selector.state.pth"]
    out = typed(f"python StudentTrain.py --model 2 {places} --epochs 1 --batch-size 20")
    assert "teacher       checkpoints/teacher.pth\n" in out
    assert (quick / "teacher.logits").exists()
    words = f"{places} --epochs 1 --batch-size 20 --checkpoint-dir mine --teacher"
    typed(f"python StudentTrain.py --model 2 {words} checkpoints/teacher.pth")
    assert (tmp_path / "mine" / "teacher.logits").exists()
    assert not (tmp_path / "checkpoints" / "teacher.logits").exists()
    assert out.endswith(
        f"next: python trainSelector.py --data {small_npz} --device cpu --subset 40\n"
    )
    out = typed(out.splitlines()[-1].removeprefix("next: ") + " --epochs 1")
    assert "students      checkpoints/densenet121.pth, runs/quick/googlenet.pth\n" in out
    assert (quick / "selector.previous.pth").exists()
    follow = out.splitlines()[-1].removeprefix("next: ")
    assert follow.endswith("--run quick")
    out = typed(follow)
    assert (
        "networks      checkpoints/densenet121.pth, runs/quick/googlenet.pth, checkpoints/te" in out
    )
    assert "selector      runs/quick/selector.pth, " in out
    # Without that folder, --subset means fewer images only.
    assert "checkpoints/googlenet.pth" in typed(f"python inference.py {places}")
    assert {p.name: p.read_bytes() for p in whole.iterdir() if p.suffix != ".lock"} == before


def test_a_run_with_a_name_of_its_own_has_its_own_folder_and_shares_the_students(
    pipeline, small_npz, tmp_path, typed, monkeypatch, no_figures
):
    whole = tmp_path / "checkpoints"
    whole.mkdir()
    copy_of(pipeline[0], whole)
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    monkeypatch.setattr("utils.checkpoint.CHECKPOINTS", whole)
    monkeypatch.setattr("utils.checkpoint.QUICK", tmp_path / "runs" / "quick")
    monkeypatch.chdir(tmp_path)
    for name in ("DEPTH", "EPOCHS", "CROP"):
        monkeypatch.setattr(trainSelector, name, getattr(trainSelector, name))  # --set changes them
    train = f"python trainSelector.py --subset 20 --data-dir {small_npz} --device cpu"
    out = typed(f"{train} --run seed-7 --seed 7 --set DEPTH=2 EPOCHS=1 CROP=0")
    facts = torch.load("runs/seed-7/selector.pth", weights_only=True)["hyperparameters"]
    assert [facts[name] for name in ("seed", "depth", "epochs", "crop")] == [7, 2, 1, 0]
    out = typed(out.splitlines()[-1].removeprefix("next: "))
    assert "checkpoints/densenet121.pth" in out
    assert "selector      runs/seed-7/selector.pth, " in out
    assert "wrote runs/seed-7/inference/metrics.json" in out
    assert {p.name: p.read_bytes() for p in whole.iterdir() if p.suffix != ".lock"} == before

    out = typed(f"{train} --students checkpoints --checkpoint-dir a --epochs 1")
    assert {path.name for path in Path("a").glob("*.pth")} == {"selector.pth", "selector.state.pth"}
    follow = out.splitlines()[-1].removeprefix("next: ")
    assert "--students checkpoints" in follow
    assert "networks      checkpoints/densenet121.pth, checkpoints/googlenet.pth\n" in typed(follow)


@pytest.mark.parametrize(
    "flags, named",
    [
        (["--set", "CROP"], "--set CROP"),
        (["--set", "CROP=32"], "CROP"),
        (["--set", "CROPS=3"], "CROPS"),
        (["--set", "DEPTH=2"], "DEPTH"),  # of the selector
        (["--set", "OPTIMIZER=adam"], "OPTIMIZER"),
        (["--run", "a/b"], "--run"),
        (["--run", ".."], "--run"),
        (["--run", ""], "--run"),
    ],
)
def test_a_nonsense_change_or_name_of_a_run_is_refused(flags, named, monkeypatch, capsys, tmp_path):
    assert named in refused("teacherTrain", flags, monkeypatch, capsys, tmp_path).splitlines()[-1]


@pytest.mark.parametrize("package", ["torchvision", "filelock"])  # an early and a late import
@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_during_the_imports_ends_in_one_line(script, package, tmp_path):
    (tmp_path / f"{package}.py").write_text("raise KeyboardInterrupt")
    words = [sys.executable, ROOT / f"{script}.py", "--help"]
    where = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(words, env=where, capture_output=True, text=True)
    assert (done.stderr, done.stdout) == ("interrupted\n", "")
    assert done.returncode in (130, -2)  # ended by SIGINT: 130 in a shell


@pytest.mark.skipif(not shutil.which("make"), reason="needs make")
def test_the_packages_go_into_the_environment_whatever_pip_is_told_to_do(tmp_path):
    """PIP_USER=1, which some systems set, is an error in a virtual environment."""
    (tmp_path / "requirements.txt").touch()
    pip = '#!/bin/sh\n[ "$PIP_USER" = 0 ] && echo "$@" >> installed\n'
    make_it = f"mkdir -p .venv/bin && printf '%s' '{pip}' | tee .venv/bin/pip > .venv/bin/python"
    python = f'#!/bin/sh\n[ "$1" = -c ] || {{ {make_it} && chmod +x .venv/bin/*; }}\n'
    (tmp_path / "python").write_text(python)
    (tmp_path / "python").chmod(0o755)
    words = ["make", "-f", ROOT / "Makefile", "PYTHON=./python", ".venv/runtime"]
    subprocess.run(words, cwd=tmp_path, env={**os.environ, "PIP_USER": "1"}, check=True)
    assert (tmp_path / "installed").read_text() == "-m pip install -r requirements.txt\n"
