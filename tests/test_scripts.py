"""The four scripts as a user runs them, in order, on real images and with small networks."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from programs import call, rows

import StudentTrain
import trainSelector
from models import SELECTED, STUDENTS, MultiStudent, offsets_of
from utils.augment import Augmentation, Batches
from utils.checkpoint import EXPECTED, FILES, fingerprint_of, load_network
from utils.contexts import image_seeds, in_context, kinds
from utils.data import load_splits
from utils.device import for_inference
from utils.files import UserError
from utils.logits import predict, top1
from utils.method import best_temperature

ROOT = Path(__file__).resolve().parent.parent
TESTED = 80  # images; all classes are among them
ONE = 1.01 / TESTED  # an image that rounds differently in another batch
SMALL = ["--subset", TESTED, "--batch-size", 50]
QUICK = ["--epochs", 2, "--subset", 40, "--batch-size", 20]

pytestmark = pytest.mark.usefixtures("toys")


@pytest.fixture(scope="module")
def run(small_npz):
    """Run a script with a folder of checkpoints. Returns stdout and stderr."""

    def run(script, folder, *flags, data=small_npz, status=0):
        places = ["--checkpoint-dir", folder, "--device", "cpu"]
        return call(script, *places, *(["--data", data] if data else []), *flags, status=status)

    return run


@pytest.fixture
def no_figures(monkeypatch):
    """Leave out what takes most of the time of inference.py with few images."""
    monkeypatch.setattr("evaluation.figures.draw_all", lambda *_: [])


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory, toys, run):
    """The folder with the files of the four scripts, and the output of each."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, {
        name: run(script, folder, *flags)
        for name, script, flags in (
            ("teacher", "teacherTrain.py", QUICK),
            *(
                (f"student {k}", "StudentTrain.py", ["--model", k, *QUICK])
                for k, _ in enumerate(STUDENTS, 1)
            ),
            ("alone", "StudentTrain.py", ["--model", 2, "--distill-loss", "none", *QUICK]),
            ("selector", "trainSelector.py", QUICK),
            ("inference", "inference.py", ["--out", folder / "out", *SMALL]),
        )
    }


@pytest.fixture
def folder(pipeline, tmp_path):
    """A copy of the folder of the four scripts."""
    ignored = shutil.ignore_patterns("*.lock", "*.logits", "out")
    return Path(shutil.copytree(pipeline[0], tmp_path / "copy", ignore=ignored))


def change(path, **facts):
    """Change facts in a checkpoint; without any, one of its weights."""
    checkpoint = torch.load(path, weights_only=True)
    if not facts:
        checkpoint["state_dict"]["head.bias"][0] += 1
    torch.save(checkpoint | facts, path)


def made_by(path):
    return load_network(path)[1]["hyperparameters"]


# ------------------------------------------------------------------ training


def test_each_script_says_what_it_does_shows_progress_and_names_the_next(pipeline, small_npz):
    folder, printed = pipeline
    follow = {
        "teacher": "next: python StudentTrain.py --model 1 --epochs 2 --batch-size 20",
        "student 1": "next: python StudentTrain.py --model 2 --epochs 2 --batch-size 20",
        f"student {len(STUDENTS)}": "next: python trainSelector.py",
        "selector": "next: python inference.py",
    }
    places = f" --data {small_npz} --device cpu --subset 40 --checkpoint-dir {folder}"
    for name, next_command in follow.items():
        out, err = printed[name]
        for fact in ("cpu, ", "40 for training, ", str(folder), "batch_size=20"):
            assert fact in out, (name, fact)
        assert out.rstrip().endswith(next_command + places)
        for fact in ("epoch 2/2", "img/s", "loss ", "top-1 "):
            assert fact in err, (name, fact)


def test_every_checkpoint_knows_what_was_measured(pipeline, small_npz):
    folder, _ = pipeline
    val = load_splits(small_npz, 40)[1]
    for arch, name in FILES.items():
        net, facts = load_network(folder / name)
        assert facts["arch"] == EXPECTED[arch] and 1 <= facts["epoch"] <= 2
        assert 0 <= facts["test_accuracy"] <= 1
        assert facts["hyperparameters"]["batch_size"] == 20
        if arch != "selector":
            logits = predict(for_inference(net, torch.device("cpu")), val)
            expected = best_temperature(logits, val.labels)
            assert facts["temperature"] == pytest.approx(expected, abs=0.02), arch
        history = rows(folder / name.replace(".pth", ".csv"))
        assert [row["epoch"] for row in history] == ["1", "2"]
    distilled, alone = (made_by(folder / f"googlenet{end}.pth") for end in ("", "_alone"))
    assert distilled["distill_loss"] == "mse" and distilled["teacher"]
    assert alone["distill_loss"] == "none" and not alone["teacher"]


@pytest.fixture
def labels(monkeypatch, run):
    """Run trainSelector.py up to its first batch: the run and the targets."""

    def stop(*args, **_):
        seen.extend(args)
        raise UserError("stopped")

    def labels(folder, *flags):
        with monkeypatch.context() as patch:
            patch.setattr(trainSelector.Run, "batches", stop)
            run("trainSelector.py", folder, *QUICK, *flags, status=2)
        return seen

    seen = []
    return labels


@pytest.mark.parametrize("context", ["clean", "mixed"])
def test_the_selector_learns_for_each_image_which_student_errs_less(
    folder, small_npz, labels, context
):
    """The labels are for the images it sees."""
    started, targets = labels(folder, "--context", context)
    train = in_context(load_splits(small_npz, 40)[0], context)
    assert torch.equal(started.loader.images, train.images) and started.loader.context == "clean"
    one, two = (
        predict(load_network(folder / FILES[arch])[0], train).softmax(dim=1)[
            torch.arange(40), train.labels
        ]
        for arch in SELECTED
    )
    apart = (one - two).abs() > 0.01  # by more than bf16 rounds
    assert apart.sum() > 15
    assert torch.equal(targets[apart], (one < two)[apart].long())  # the wrong classes err as much


def test_a_selector_can_be_taught_the_context_that_each_student_was_trained_on(
    folder, small_npz, labels, run
):
    flags = ["--context", "mixed", "--label-rule", "context"]
    before = (folder / "selector.pth").read_bytes()
    _, err = run("trainSelector.py", folder, *QUICK, *flags, status=2)
    assert "--label-rule context" in err and "clean and clean" in err
    assert (folder / "selector.pth").read_bytes() == before
    recipe = made_by(folder / "densenet121.pth") | {"context": "degraded"}
    change(folder / "densenet121.pth", hyperparameters=recipe)
    _, targets = labels(folder, *flags)
    found = kinds("mixed", image_seeds(load_splits(small_npz, 40)[0]))
    assert targets.tolist() == [int(kind == "clean") for kind in found]


def test_without_a_teacher_the_cascade_has_no_thresholds_for_its_accuracy(pipeline, folder, run):
    (folder / "teacher.pth").unlink()
    run("trainSelector.py", folder, *QUICK)
    keys = {"cascade_thresholds", "cascade_teacher_thresholds"}
    for place, found in ((pipeline[0], keys), (folder, {"cascade_thresholds"})):
        assert keys & load_network(place / "selector.pth")[1].keys() == found


@pytest.mark.parametrize("script", ["teacherTrain.py", "trainSelector.py"])
def test_the_test_images_have_no_say_in_what_is_learned_kept_or_chosen(
    script, folder, small_npz, tmp_path, run
):
    """The published code chose its best epoch on the test images."""
    arrays, found = dict(np.load(small_npz)), []
    for _ in range(2):
        np.savez(tmp_path / "data.npz", **arrays)
        run(script, folder, *QUICK, data=tmp_path / "data.npz")
        name = "teacher.pth" if script == "teacherTrain.py" else "selector.pth"
        found.append(torch.load(folder / name, weights_only=True))
        arrays["test_images"] = 255 - arrays["test_images"]
        arrays["test_labels"] = (arrays["test_labels"] + 1) % 10
    one, other = found
    assert one.pop("test_accuracy") != other.pop("test_accuracy")
    weights, others = (each.pop("state_dict").values() for each in found)
    assert one == other and all(map(torch.equal, weights, others))


def test_a_run_starts_from_the_weights_that_init_names(folder, run, tmp_path):
    ours = folder / "googlenet.pth"
    weights = load_network(ours)[0].state_dict()
    theirs = tmp_path / "theirs.pth"
    torch.save(weights, theirs)
    flags = ["--model", 2, "--lr", "1e-12", "--distill-loss=none", "--epochs", 1, *QUICK[2:]]
    for init in (ours, theirs):
        out, _ = run("StudentTrain.py", folder, *flags, "--init", init)
        for name, weight in load_network(folder / "googlenet_alone.pth")[0].named_parameters():
            assert torch.equal(weight, weights[name]), name
    assert f"{theirs} is not a checkpoint of this project: assuming the cifar-pool stem" in out
    _, err = run("StudentTrain.py", folder, *flags, "--resume", status=2)
    assert re.search("init was '[0-9a-f]{12}', is None", err)


def test_a_student_learns_from_the_images_that_indices_names(small_npz, tmp_path, run):
    train, val, _ = load_splits(small_npz)
    path = tmp_path / "indices.npy"
    flags = ["--model", 2, "--distill-loss", "none", "--epochs", 1, "--indices", path]
    np.save(path, val.indices)
    _, err = run("StudentTrain.py", tmp_path, *flags, status=2)
    assert str(path) in err and not list(tmp_path.glob("*.pth"))
    np.save(path, np.repeat(train.indices[:20], 2))
    out, _ = run("StudentTrain.py", tmp_path / "other", *flags)  # no teacher is needed
    assert f"40 for training, {len(val)} for validation" in out
    assert not (tmp_path / "other" / "googlenet.pth").exists()


def test_a_student_learns_from_a_teacher_from_elsewhere(folder, small_npz, tmp_path, run):
    """Its stem is detected: the weights of both stems have the same names and shapes."""
    weights = torch.load(folder / "teacher.pth", weights_only=True)["state_dict"]
    path = tmp_path / "theirs.pth"
    weights = {name: t.bfloat16() if t.is_floating_point() else t for name, t in weights.items()}
    torch.save({"net": {f"module.{name}": tensor for name, tensor in weights.items()}}, path)
    flags = ["--epochs", 1, *QUICK[2:], "--teacher", path, "--distill-loss", "kl"]
    out, _ = run("StudentTrain.py", tmp_path, "--model", 1, *flags)
    follow = f"--distill-loss kl --teacher {path} --epochs 1 --batch-size 20 --data {small_npz}"
    assert f"next: python StudentTrain.py --model 2 {follow}" in out
    told = rf"{path} is not a checkpoint of this project: assuming the (\S+) stem, .* "
    told += r"(\S+)% with cifar, (\S+)% with cifar-pool"
    found, cifar, pool = re.search(told, out).groups()
    assert found == ("cifar" if float(cifar) >= float(pool) else "cifar-pool")
    teacher = load_network(path, "resnet50", found)[0]
    assert made_by(tmp_path / "densenet121.pth")["teacher"] == fingerprint_of(teacher)


def test_several_teachers_teach_the_mean_of_their_logits(folder, small_npz, tmp_path, run):
    paths = [folder / "teacher.pth", folder / "googlenet.pth"]
    out, _ = run("StudentTrain.py", tmp_path, "--model", 1, *QUICK, "--teacher", *paths)
    assert f"--teacher {paths[0]} {paths[1]} --epochs" in out  # in the next command
    train = load_splits(small_npz, 40)[0]
    name = made_by(tmp_path / "densenet121.pth")["teacher"]
    (file,) = (folder / "teacher.logits").glob(f"{name}-*-00.npz")
    images = Batches(train.images, 20, 0, Augmentation(4, True, 8), 16).view(0, torch.arange(40))
    with torch.inference_mode():
        expected = sum(load_network(path)[0](images) for path in paths) / 2
    assert torch.allclose(torch.from_numpy(np.load(file)["logits"]).float(), expected, atol=0.02)


@pytest.mark.parametrize(
    "words, named",
    [
        ("teacherTrain.py --init teacher.pth", "teacher.pth would be overwritten"),
        ("teacherTrain.py --init teacher.previous.pth", "teacher.previous.pth would be"),
        ("teacherTrain.py --init teacher.state.pth", "teacher.state.pth would be overwritten"),
        ("teacherTrain.py --init googlenet.pth", "'googlenet'"),
        ("teacherTrain.py --init other.pth --stem cifar", "--stem"),
        ("teacherTrain.py --init none.pth", "none.pth"),
        ("StudentTrain.py --model 2 --teacher none.pth", "none.pth"),
        ("StudentTrain.py --model 2 --teacher selector.pth", "selector.pth"),
        ("StudentTrain.py --model 2 --teacher teacher.pth selector.pth", "selector.pth"),
        ("StudentTrain.py --model 2 --teacher teacher.pth --distill-loss none", "--distill-loss"),
    ],
)
def test_weights_that_cannot_be_started_or_learned_from_are_refused(
    words, named, folder, run, monkeypatch
):
    for copy in ("other.pth", "teacher.previous.pth"):
        shutil.copy(folder / "teacher.pth", folder / copy)
    before = {path.name: path.read_bytes() for path in folder.glob("*.pth")}
    monkeypatch.chdir(folder)
    script, *flags = words.split()
    _, err = run(script, ".", *QUICK, *flags, status=2)
    assert named in err and len(err.splitlines()) == 1
    assert {path.name: path.read_bytes() for path in folder.glob("*.pth")} == before


# ------------------------------------------------------------------ resuming


@pytest.mark.parametrize(
    "script, changed, named",
    [
        ("StudentTrain.py --model=2", "teacher.pth", "teacher was"),
        ("trainSelector.py", "googlenet.pth", "students was"),
    ],
)
def test_a_run_is_not_resumed_with_another_teacher_or_students(script, changed, named, folder, run):
    change(folder / changed)
    script, *flags = script.split()
    assert named in run(script, folder, *flags, *QUICK, "--resume", status=2)[1]


def test_a_selector_is_resumed_though_it_was_killed_while_it_labeled_or_labels_round_otherwise(
    folder, run, monkeypatch
):
    def kill(*_):
        raise KeyboardInterrupt

    labels, earlier = trainSelector.selector_labels, (folder / "selector.state.pth").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(trainSelector, "selector_labels", kill)
        run("trainSelector.py", folder, *QUICK, status=130)
    out, _ = run("trainSelector.py", folder, *QUICK, "--resume")
    assert "resuming after epoch 0, step 0" in out
    assert (folder / "selector.previous.state.pth").read_bytes() == earlier
    monkeypatch.setattr(trainSelector, "selector_labels", lambda *args: 1 - labels(*args))
    assert "the run is finished" in run("trainSelector.py", folder, *QUICK, "--resume")[0]


# ------------------------------------------------------------------ evaluation


def test_the_metrics_are_those_of_the_networks_in_the_checkpoints(pipeline, small_npz):
    folder, printed = pipeline
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    test = load_splits(small_npz, TESTED)[2]
    names = [*STUDENTS, "googlenet_alone"]
    nets = {name: load_network(folder / f"{name}.pth")[0] for name in names}
    selector, checkpoint = load_network(folder / FILES["selector"])
    offsets = offsets_of(checkpoint["thresholds"])
    routed = MultiStudent([nets[arch] for arch in SELECTED], selector, offsets)
    logits, choice = predict(routed, test)

    accuracy = metrics["accuracy"]
    found = {name: top1(predict(net, test), test.labels) for name, net in nets.items()}
    found["routed"] = top1(logits, test.labels)
    assert {name: accuracy[name] for name in found} == pytest.approx(found, abs=ONE)
    share = (choice == 0).double().mean().item()
    assert metrics["route_share"]["densenet121"] == pytest.approx(share, abs=ONE)
    students = [accuracy[arch] for arch in SELECTED]
    assert accuracy["better_student"] == max(students)
    assert accuracy["random"] == pytest.approx(sum(students) / len(students))
    assert "densenet121_alone" not in accuracy
    counts = torch.bincount(test.labels, minlength=10).tolist()
    for name, by_class in metrics["per_class"].items():
        total = sum(a * n for a, n in zip(by_class.values(), counts, strict=True))
        assert total / len(test) == pytest.approx(accuracy[name]), name
    for name, (low, high) in metrics["accuracy_interval"].items():
        assert low <= accuracy[name] <= high
    assert f"{100 * accuracy['routed']:.2f}" in printed["inference"][0]


def test_what_a_comparison_needs_is_kept_and_the_report_is_named_last(pipeline, small_npz):
    folder, printed = pipeline
    page = (folder / "out" / "report.html").read_text(encoding="utf-8")
    assert "report.html" in printed["inference"][0].splitlines()[-1]
    for name in ("per_class_accuracy", "samples", "confusion", "reliability", "accuracy_per_epoch"):
        assert (folder / "out" / f"{name}.png").stat().st_size > 10_000
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    with np.load(folder / "out" / "predictions.npz") as file:
        kept = dict(file)
    test = load_splits(small_npz, TESTED)[2]
    assert kept["labels"].tolist() == test.labels.tolist()
    assert kept["indices"].tolist() == test.indices.tolist()
    for name in ("teacher", *STUDENTS, "googlenet_alone", "routed", "cascade", "ensemble"):
        right = kept[f"predictions/{name}"] == kept["labels"]
        assert right.mean() == pytest.approx(metrics["accuracy"][name]), name
    share = (kept["choice/routed"] == 0).mean()
    assert share == pytest.approx(metrics["route_share"]["densenet121"])
    assert kept["logits/selector"].shape == (TESTED, 2)
    assert metrics["command"].startswith("python inference.py --")
    assert metrics["versions"]["torch"] == torch.__version__
    for name, file in FILES.items():
        net, facts = load_network(folder / file)
        assert metrics["weights"][name] == fingerprint_of(net)
        assert fingerprint_of(net) in page
        assert metrics["hyperparameters"][name]["epochs"] == 2
        assert len(metrics["val_accuracy_per_epoch"][name]) == 2
        if name != "selector":  # with its thresholds it is another
            assert facts["val_accuracy"] == max(metrics["val_accuracy_per_epoch"][name])


def test_inference_asks_the_selector_in_the_checkpoint(folder, tmp_path, run, no_figures):
    """The published inference never loaded the selector."""
    (folder / "teacher.pth").unlink()
    weights = load_network(folder / "selector.pth")[0].state_dict()
    for bias, share in ((-50.0, 0), (50.0, 1)):
        weights["head.bias"] = torch.tensor([bias, 0])
        change(folder / "selector.pth", state_dict=weights, thresholds=[0.5])
        out, _ = run("inference.py", folder, "--subset", "50", "--out", tmp_path / "out")
        assert "no teacher" in out
        metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
        assert metrics["route_share"]["densenet121"] == share
        assert "teacher" not in metrics["accuracy"]


def test_a_policy_needs_no_more_than_the_networks_that_it_runs(pipeline, tmp_path, run):
    image, threshold = ROOT / "results" / "samples.png", "--threshold=0" + ",0" * len(STUDENTS[2:])
    for flags, needs in (
        (["googlenet"], ["googlenet"]),
        (["ensemble"], STUDENTS),
        (["more_confident"], STUDENTS),
        (["cascade", threshold], STUDENTS),
        (["cascade", "--target=teacher"], [*STUDENTS, "selector"]),
        (["selector"], [*SELECTED, "selector"]),
    ):
        folder = tmp_path / "-".join(flags)
        folder.mkdir()
        for arch in needs:
            (folder / FILES[arch]).symlink_to(pipeline[0] / FILES[arch])
        out, _ = run("inference.py", folder, image, "--policy", *flags, data=None)
        assert str(image) in out


def test_a_student_whose_logits_are_not_finite_ends_inference_and_spares_its_files(folder, run):
    """Weights that are finite in half precision, but give infinite logits in float32."""
    net, _ = load_network(folder / "densenet121.pth")
    for name, tensor in net.state_dict().items():
        tensor.fill_(0 if "running" in name else 60_000)
    change(folder / "densenet121.pth", state_dict=net.state_dict())
    recipe = made_by(folder / "selector.pth")
    recipe["students"][STUDENTS.index("densenet121")] = fingerprint_of(net)
    change(folder / "selector.pth", hyperparameters=recipe)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    _, err = run("inference.py", folder, "--subset", 20, "--out", folder, status=2)
    assert "20 of 20 images" in err.splitlines()[-1]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_system_is_trained_and_measured_in_a_context(
    folder, small_npz, tmp_path, run, no_figures
):
    run("StudentTrain.py", folder, "--model", 2, "--context", "degraded", *QUICK)
    assert made_by(folder / "googlenet.pth")["context"] == "degraded"
    out, _ = run("trainSelector.py", folder, "--context", "mixed", *QUICK)
    assert f"next: python inference.py --context mixed --data {small_npz} --device" in out
    out, _ = run("inference.py", folder, "--context", "mixed", "--subset", 60, "--out", tmp_path)
    assert "by context" in out
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    test = load_splits(small_npz, 60)[2]
    seen, split = kinds("mixed", image_seeds(test)), in_context(test, "mixed")
    net = for_inference(load_network(folder / "googlenet.pth")[0], torch.device("cpu"))
    right = predict(net, split).argmax(dim=1) == test.labels
    assert metrics["context"] == "mixed" and metrics["per_context"].keys() == set(seen)
    for kind, facts in metrics["per_context"].items():
        own = right[torch.tensor([each == kind for each in seen])]
        assert facts["images"] == len(own) == sum(facts["sent"].values())
        assert facts["accuracy"]["googlenet"] == pytest.approx(own.double().mean().item())
    for name, accuracy in metrics["accuracy"].items():
        parts = metrics["per_context"].values()
        total = sum(part["images"] * part["accuracy"][name] for part in parts)
        assert total == pytest.approx(60 * accuracy)


def test_classes_without_an_image_are_left_out(pipeline, tmp_path, run, no_figures):
    run("inference.py", pipeline[0], "--subset", 3, "--out", tmp_path / "out")
    text = (tmp_path / "out" / "metrics.json").read_text()
    assert "NaN" not in text
    assert 1 <= len(json.loads(text)["per_class"]["routed"]) <= 3


def test_without_the_test_set_inference_falls_back_to_the_sample_and_says_so(
    pipeline, tmp_path, run, monkeypatch, no_figures
):
    monkeypatch.setattr("utils.data.FOLDER", tmp_path / "empty")  # the only one that may be so
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("PATH", "")  # where npm would be
    flags = ["--subset", 30, "--out", tmp_path / "out"]
    _, err = run("inference.py", pipeline[0], *flags, data="cifar10")
    assert "test set is not available" in err and "data/sample.npz" in err
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["dataset"].startswith("sample") and metrics["images"] == 30
    _, err = run("inference.py", pipeline[0], *flags, data=tmp_path / "emtpy", status=2)
    assert f"--data {tmp_path / 'emtpy'}" in err


# ------------------------------------------------------------------ own data, and quick tests


def typed(command):
    """Run a command as typed by a user. Returns stdout."""
    return call(*shlex.split(command)[1:])[0]


def test_the_next_commands_typed_as_printed_lead_to_predictions_in_the_classes_of_the_data(
    tmp_path, sample, monkeypatch
):
    names = ["cat", 'Löwe, "big"', "$x$"]
    images, labels = (each[sample.labels < 3].numpy() for each in (sample.images, sample.labels))
    arrays = {"train_images": images[:200], "train_labels": labels[:200]}
    arrays |= {"test_images": images[200:], "test_labels": labels[200:], "classes": names}
    with open(tmp_path / "my data.NPZ", "wb") as file:
        np.savez(file, **arrays)
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
    students = ["StudentTrain.py"] * len(STUDENTS)
    assert scripts == ["teacherTrain.py", *students, "trainSelector.py", "inference.py"]
    assert '\nLöwe, "big"      ' in out
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(metrics["per_class"]["teacher"]) == names
    assert metrics["dataset"] == "test images of my data.NPZ"
    Image.fromarray(images[0]).save("one.png")
    typed("python inference.py one.png --csv a.csv --checkpoint-dir 'my networks' --device cpu")
    row = rows("a.csv")[0]
    assert row["class"] in names and all(f"{name} " in row["weights"] for name in SELECTED)


@pytest.mark.parametrize(
    "words",
    [
        "StudentTrain.py --model 2",
        "trainSelector.py",
        "inference.py --out out",
        "studies.policies --collect --out out",
        "studies.selectors --out out",
    ],
)
def test_networks_for_other_classes_than_the_datas_are_refused(
    words, pipeline, small_npz, tmp_path, monkeypatch
):
    with np.load(small_npz) as file:
        np.savez(tmp_path / "mine.npz", **{name: file[name] for name in file if name != "classes"})
    for file in FILES.values():
        (tmp_path / file).symlink_to(pipeline[0] / file)
    monkeypatch.chdir(tmp_path)
    words += " --data-dir mine.npz --checkpoint-dir . --device cpu"
    _, err = call(*words.split(), status=2)
    assert ".pth has 10 classes: airplane" in err and "mine.npz has 10 classes" in err
    made = {path.suffix for path in Path().rglob("*")}
    assert made <= {".pth", ".lock", ".npz", ""}


@pytest.fixture
def whole(folder, tmp_path, monkeypatch):
    """The networks of whole runs are in checkpoints/, where nothing may change."""
    whole = folder.rename(tmp_path / "checkpoints")
    before = {path.name: path.read_bytes() for path in whole.iterdir()}
    monkeypatch.setattr("utils.checkpoint.CHECKPOINTS", whole)
    monkeypatch.setattr("utils.checkpoint.QUICK", tmp_path / "runs" / "quick")
    monkeypatch.chdir(tmp_path)
    yield
    assert {p.name: p.read_bytes() for p in whole.iterdir() if p.suffix != ".lock"} == before


def test_a_quick_test_leaves_what_a_whole_run_made_as_it_is(whole, small_npz, no_figures):
    quick = Path("runs/quick")
    places = f"--subset 40 --data {small_npz} --device cpu"

    def left():
        return sorted(path.name for path in quick.rglob("*.pth"))

    ours = "checkpoints/densenet121.pth"
    assert f"{ours}, checkpoints/googlenet.pth" in typed(f"python inference.py {places}")
    assert (quick / "inference" / "metrics.json").exists() and left() == []
    typed(f"python trainSelector.py {places} --epochs 1")
    assert left() == ["selector.pth", "selector.state.pth"]
    last, small = f"--model {len(STUDENTS)}", STUDENTS[-1] in StudentTrain.SMALL
    teacher = STUDENTS[-2] if small else "teacher"
    out = typed(f"python StudentTrain.py {last} {places} --epochs 1 --batch-size 20")
    assert f"teacher       checkpoints/{teacher}.pth\n" in out
    assert (quick / f"{teacher}.logits").exists()
    words = f"{places} --epochs 1 --batch-size 20 --checkpoint-dir mine --teacher"
    typed(f"python StudentTrain.py {last} {words} checkpoints/teacher.pth")
    assert Path("mine/teacher.logits").exists() and not Path("checkpoints/teacher.logits").exists()
    follow = out.splitlines()[-1].removeprefix("next: ")
    assert follow == f"python trainSelector.py --data {small_npz} --device cpu --subset 40"
    out = typed(f"{follow} --epochs 1")
    assert ours in out and f", runs/quick/{STUDENTS[-1]}.pth\n" in out
    assert (quick / "selector.previous.pth").exists()
    follow = out.splitlines()[-1].removeprefix("next: ")
    assert follow.endswith("--run quick")
    out = typed(follow)
    assert ours in out and f", runs/quick/{STUDENTS[-1]}.pth, checkpoints/te" in out
    assert "selector      runs/quick/selector.pth, " in out
    # Without that folder, --subset means fewer images only.
    assert "checkpoints/googlenet.pth" in typed(f"python inference.py {places}")


def test_a_run_with_a_name_of_its_own_has_its_own_folder_and_shares_the_students(
    whole, small_npz, no_figures
):
    train = f"python trainSelector.py --subset 20 --data-dir {small_npz} --device cpu"
    out = typed(f"{train} --run seed-7 --seed 7 --set DEPTH=2 EPOCHS=1 CROP=0")
    recipe = made_by("runs/seed-7/selector.pth")
    assert [recipe[name] for name in ("seed", "depth", "epochs", "crop")] == [7, 2, 1, 0]
    out = typed(out.splitlines()[-1].removeprefix("next: "))
    assert "checkpoints/densenet121.pth" in out
    assert "selector      runs/seed-7/selector.pth, " in out
    assert " to runs/seed-7/inference\nand runs/seed-7/inference/report.html" in out

    out = typed(f"{train} --students checkpoints --checkpoint-dir a --epochs 1")
    assert {path.name for path in Path("a").glob("*.pth")} == {"selector.pth", "selector.state.pth"}
    follow = out.splitlines()[-1].removeprefix("next: ")
    assert "--students checkpoints" in follow
    assert "networks      checkpoints/densenet121.pth, checkpoints/googlenet.pth" in typed(follow)


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
