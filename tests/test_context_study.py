"""The context study: its policies on six images, checked by hand, and a run on 40 images."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from models import STUDENTS, MultiStudent, offsets_of
from studies import contexts, tables
from studies.contexts import cascading, ensemble, true_context
from studies.policies import Networks
from utils import cli
from utils.checkpoint import fingerprint_of, load_network
from utils.contexts import GROUPS, in_context
from utils.data import data_facts, load_splits
from utils.files import UserError
from utils.logits import predict, top1

CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"
ONCE, TWICE = (f"runs/generalists/{k * contexts.EPOCHS}-epochs" for k in (1, 2))
CAT, DOG, HARDLY = [4.0, 0.0], [0.0, 5.0], [0.5, 0.0]  # 0.98 for 0, 0.99 for 1, 0.62 for 0


@pytest.fixture
def nets():
    """Six images of class 0: student 1 is correct on 1 to 3, student 2 on 1, 4 and 5."""
    logits = {
        "densenet121": torch.tensor([CAT, CAT, CAT, DOG, DOG, DOG]),
        "googlenet": torch.tensor([HARDLY, DOG, [0.0, 0.3], CAT, HARDLY, DOG]),
        "context": torch.tensor([[1, 0]] * 4 + [[0, 1]] * 2),
    }
    work = {"densenet121": 500, "googlenet": 200, "selector": 10}
    return Networks(logits, work, torch.zeros(6, dtype=torch.long))


def test_policies_answer_and_run_as_worked_out_by_hand(nets):
    for policy, right, first_ran, work in (
        (lambda nets: (nets.run("more_confident"), None), [1, 0, 1, 0, 0, 0], [1] * 6, 700),
        (ensemble, [1, 0, 1, 0, 0, 0], [1] * 6, 700),
        (true_context, [1, 1, 1, 0, 1, 0], [1, 1, 1, 1, 0, 0], (4 * 500 + 2 * 200) / 6),
        # Of the thresholds that ask both about image 3, and not about 1 and 5, nearest to 0.5.
        (cascading(nets), [1, 0, 1, 1, 1, 0], [0, 0, 1, 0, 0, 0], 200 + 500 / 6),
    ):
        outcome, _ = policy(nets)
        assert outcome.right.int().tolist() == right
        assert outcome.ran["densenet121"].int().tolist() == first_ran
        assert outcome.macs == pytest.approx(work)
    some = nets.take(torch.tensor([4, 0]))
    assert true_context(some)[0].right.tolist() == [True, True]


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
    told = contexts.averaged(runs)
    assert told["accuracy"]["mixed"] == pytest.approx(0.7) and told["mcnemar_p"] == 0.2
    assert told["interval"]["mixed"] == pytest.approx([0.6, 0.8])
    assert told["deviation"]["clean"] == pytest.approx(0.2) and told["runs"] == runs
    assert contexts.averaged(runs[:1]) is runs[0]


@pytest.fixture
def study(tmp_path, small_npz, monkeypatch, capsys):
    """Run the study on 40 images of each split; the weights are those in checkpoints/."""
    monkeypatch.setattr(contexts, "SELECTOR_EPOCHS", 1)
    monkeypatch.setattr(contexts, "IMAGES", 30)
    monkeypatch.setattr(contexts, "QUICK", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    train = load_splits(small_npz, 40)[0]
    data = data_facts(train.images, train.labels)
    trained_on = {
        "checkpoints/contexts/densenet121.pth": "degraded",
        "checkpoints/contexts/googlenet.pth": "clean",
        "checkpoints/contexts/selector.pth": "mixed",
        **{f"{folder}/{arch}.pth": "mixed" for folder in (ONCE, TWICE) for arch in STUDENTS},
    }
    for name, context in trained_on.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        checkpoint = torch.load(CHECKPOINTS / path.name, weights_only=True)
        epochs = contexts.EPOCHS * (2 if TWICE in name else 1)
        made = {"context": context, "epochs": epochs, "data": data}
        made |= {"label_rule": "context", "label_weight": None}
        if context in ("degraded", "mixed") and path.stem in STUDENTS:
            made["init"] = fingerprint_of(load_network(CHECKPOINTS / path.name)[0])
        checkpoint["hyperparameters"] |= made
        torch.save(checkpoint, path)
    shutil.copy(CHECKPOINTS / "teacher.pth", tmp_path / "checkpoints")

    def study(*words, status=0):
        monkeypatch.setattr(
            sys,
            "argv",
            [
                "contexts.py",
                "--checkpoint-dir",
                "checkpoints",
                "--data-dir",
                str(small_npz),
                "--out",
                "results",
                "--subset",
                "40",
                "--seeds",
                "2",
                "--device",
                "cpu",
                *words,
            ],
        )
        with pytest.raises(SystemExit) as stop:
            cli.run(contexts.main)
        out, err = capsys.readouterr()
        assert (stop.value.code or 0) == status, out + err
        return out, err

    return study


def test_the_study_runs_from_its_files_and_then_from_what_was_answered(
    study, tmp_path, small_npz, monkeypatch
):
    out, err = study()
    told = json.loads((tmp_path / "results" / "contexts.json").read_text())
    assert {path.name for path in (tmp_path / "results").glob("*.png")} == {
        "contexts_accuracy.png",
        "contexts_share.png",
        "contexts_pictures.png",
    }
    _, val, test = load_splits(small_npz, 40)
    nets = {arch: load_network(CHECKPOINTS / f"{arch}.pth")[0] for arch in STUDENTS}
    selector, facts = load_network(CHECKPOINTS / "selector.pth")
    system = MultiStudent(list(nets.values()), selector, offsets_of(facts["thresholds"])).eval()
    for group in GROUPS:
        seen = in_context(test, group)
        for name, net in nets.items():
            found = told["students"][name]["accuracy"][group]
            assert found == pytest.approx(top1(predict(net, seen.images), test.labels), abs=0.03)
        logits, choice = predict(system, seen.images)
        policy = told["policies"]["selector"]
        assert policy["accuracy"][group] == pytest.approx(top1(logits, test.labels), abs=0.06)
        share = (choice == 0).double().mean().item()
        assert policy["share_densenet121"][group] == pytest.approx(share, abs=0.06)
    logits, _ = predict(system, in_context(val, "mixed").images)
    found = told["policies"]["selector"]["val_accuracy"]
    assert found == pytest.approx(top1(logits, val.labels), abs=0.06)
    for name, policy in told["policies"].items():
        assert set(GROUPS) | {"noise", "sharp"} <= set(policy["accuracy"]), name
        low, high = policy["interval"]["mixed"]
        assert low <= policy["accuracy"]["mixed"] <= high
        if not name.startswith("generalists"):
            assert policy["accuracy"]["mixed"] <= told["policies"]["oracle"]["accuracy"]["mixed"]
    highest = told["policies"]["oracle"]["val_accuracy"]
    for name in ("true context", "selector, weighted labels", "more confident"):
        assert told["policies"][name]["val_accuracy"] <= highest, name
    assert told["policies"]["true context"]["share_densenet121"]["clean"] == 0
    assert told["policies"]["true context"]["share_densenet121"]["unseen"] == 1
    work = [told["students"][arch]["macs"] for arch in STUDENTS]
    assert told["policies"]["more confident"]["macs"] == sum(work)
    assert len(told["policies"]["selector, weighted labels"]["runs"]) == 2
    assert told["generalists"]["googlenet, once"]["trained"]["context"] == "mixed"
    rows = [
        [cell.strip() for cell in line.split("|")][1:-1]
        for line in tables.contexts(told).splitlines()[2:]
    ]
    assert len(rows) == 7 + len(told["policies"])
    (row,) = (row for row in rows if row[0] == "selector: weighted labels")
    facts = told["policies"]["selector, weighted labels"]
    assert row[1:5] == [f"{100 * facts['accuracy'][group]:.1f}" for group in GROUPS]
    assert row[5:] == [
        f"{100 * facts['macs'] / told['teacher']['macs']:.0f} %",
        f"{100 * facts['val_accuracy']:.1f}",
        f"{facts['auroc']:.2f}" if "auroc" in facts else "",  # so few images may have none
        f"{facts['mcnemar_p']:.1g}",
    ]

    shutil.rmtree(tmp_path / "runs")
    (tmp_path / "checkpoints" / "teacher.pth").unlink()
    answers = tmp_path / "results" / "contexts" / "densenet121.npz"
    answers.write_bytes(answers.read_bytes()[:-9])
    monkeypatch.setattr(contexts, "predict", spy := Spy())
    out, err = study()
    assert "densenet121.npz cannot be used" in out
    assert spy.named == {"densenet121, train", "densenet121, val", "densenet121, test", "selector"}
    assert json.loads((tmp_path / "results" / "contexts.json").read_text()) == told


class Spy:
    """`predict` that records the titles it is called with."""

    def __init__(self):
        self.named = set()

    def __call__(self, net, images, title=None, batch_size=500):
        self.named |= {title} - {None}
        return predict(net, images, title, batch_size)


def test_what_is_missing_or_was_trained_on_other_images_is_named_with_its_command(study, tmp_path):
    (tmp_path / TWICE / "googlenet.pth").unlink()
    _, err = study(status=2)
    last = err.splitlines()[-1]
    assert (
        f"{TWICE}/googlenet.pth is missing; make it with: python StudentTrain.py "
        "--model 2 --context mixed --init checkpoints/googlenet.pth --teacher "
        f"checkpoints/teacher.pth --epochs {2 * contexts.EPOCHS} --lr {contexts.LEARNING_RATE} "
        f"--checkpoint-dir {TWICE} --data"
    ) in last
    assert not (tmp_path / "results" / "contexts").exists()
    _, err = study("--epochs", "9", status=2)
    assert f"in another way, its epochs was {contexts.EPOCHS}, not 9; make it with: python" in err
    shutil.copy(CHECKPOINTS / "densenet121.pth", tmp_path / "checkpoints" / "contexts")
    _, err = study(status=2)
    assert "densenet121.pth was trained in another way, its context was 'clean', not 'deg" in err


def test_after_new_training_of_the_first_networks_the_old_system_is_not_used(
    study, tmp_path, monkeypatch
):
    """It is trained again, and the earlier files are kept."""
    system, started = tmp_path / "checkpoints/contexts", []
    before = {arch: (system / f"{arch}.pth").read_bytes() for arch in STUDENTS}
    for arch, last in zip(STUDENTS, ("classifier", "fc"), strict=True):
        new = torch.load(CHECKPOINTS / f"{arch}.pth", weights_only=True)
        new["state_dict"][f"{last}.bias"] += 1
        torch.save(new, tmp_path / f"checkpoints/{arch}.pth")
    init = fingerprint_of(load_network(tmp_path / "checkpoints/densenet121.pth")[0])

    def start(script, flags):
        """DenseNet-121 is trained, then the study is stopped."""
        started.append((script, flags[flags.index("--context") + 1]))
        if script == "trainSelector.py":
            raise UserError("stopped")
        facts = torch.load(io.BytesIO(before["densenet121"]), weights_only=True)
        facts["hyperparameters"]["init"] = init
        torch.save(facts, system / "densenet121.pth")

    monkeypatch.setattr(cli, "run_script", start)
    _, err = study(status=2)
    assert "contexts/densenet121.pth was trained in another way, its init was '" in err
    study("--train", status=2)
    assert started == [("StudentTrain.py", "degraded"), ("trainSelector.py", "mixed")]
    for arch in STUDENTS:
        assert (system / f"{arch}.previous.pth").read_bytes() == before[arch]
    new = (tmp_path / "checkpoints/googlenet.pth").read_bytes()
    assert (system / "googlenet.pth").read_bytes() == new
    assert (system / "selector.previous.pth").exists()


def test_stored_logits_of_another_training_are_not_used(study, tmp_path, small_npz):
    (tmp_path / ONCE / "densenet121.pth").unlink()
    train, val, test = load_splits(small_npz, 40)
    train = train.take(slice(contexts.IMAGES))
    facts = {
        "images": contexts.key_of(train, val, test),
        "weights": "0123456789ab",
        "macs": 1,
        "context": "mixed",
        "epochs": 9,
        "data": None,
        "init": None,
    }
    logits = {"train": len(train), "val": len(val), "test": 3 * len(test)}
    logits = {split: torch.zeros(count, 10) for split, count in logits.items()}
    path = tmp_path / "results/contexts/densenet121-once.npz"
    contexts.store(path, contexts.StoredLogits(logits, facts))
    out, err = study(status=2)
    assert f"{path.name} is of another network, its epochs was 9, not {contexts.EPOCHS}" in out
    assert f"{ONCE}/densenet121.pth is missing; make it with: python" in err


@pytest.mark.parametrize("change", ["columns", "nan"])
def test_stored_logits_that_cannot_be_used_are_not_used(tmp_path, capsys, change):
    logits = {"test": torch.zeros(8, 10)}
    facts = dict.fromkeys((*contexts.MADE, "weights", "context"), 1) | {"images": "key", "macs": 1}
    path, images = tmp_path / "net.npz", {"test": torch.zeros(8)}
    contexts.store(path, contexts.StoredLogits(logits, facts))
    assert contexts.read_stored(path, "key", images, 10)
    logits["test"] = torch.zeros(8, 1) if change == "columns" else torch.full((8, 10), torch.nan)
    contexts.store(path, contexts.StoredLogits(logits, facts))
    assert contexts.read_stored(path, "key", images, 10) is None
    assert "net.npz" in capsys.readouterr().out


def test_the_command_for_a_missing_teacher_names_its_folder(study, tmp_path):
    (tmp_path / "checkpoints/teacher.pth").unlink()
    _, err = study(status=2)
    assert "make it with: python teacherTrain.py --checkpoint-dir checkpoints --data" in err


def test_images_in_contexts_are_recognized_on_every_processor():
    """Other vector instructions round degraded pixels differently."""
    code = "from utils.data import load_sample; from studies.contexts import key_of; "
    code += "print(key_of(load_sample(50)))"
    keys = {
        subprocess.check_output(
            [sys.executable, "-c", code],
            cwd=CHECKPOINTS.parent,
            env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
        )
        for capability in ("default", "avx2")
    }
    assert len(keys) == 1


def test_missing_networks_are_trained_with_their_commands(study, tmp_path, monkeypatch):
    """A checkpoint without a test accuracy is of a training that was interrupted.

    The logits of each network are stored before the next is trained, and then they are enough.
    """
    done = {}
    for path in tmp_path.rglob("*.pth"):
        done[str(path.relative_to(tmp_path))] = path.read_bytes()
    interrupted = tmp_path / ONCE / "googlenet.pth"
    facts = torch.load(interrupted, weights_only=True) | {"test_accuracy": None}
    torch.save(facts, interrupted)
    (tmp_path / "checkpoints/contexts/selector.pth").unlink()
    (tmp_path / "checkpoints/contexts/googlenet.pth").unlink()
    shutil.copy(CHECKPOINTS / "googlenet.pth", tmp_path / "checkpoints")
    started = []

    def start(words):
        flags = dict(zip(words[2:-1:2], words[3::2], strict=True))
        assert words[-1] == "--resume" and flags["--device"] == "cpu"
        arch = ("selector", *STUDENTS)[int(flags.get("--model", 0))]
        name = f"{flags['--checkpoint-dir']}/{arch}.pth"
        (tmp_path / name).write_bytes(done[name])
        started.append((Path(words[1]).name, flags["--context"], flags.get("--epochs"), name))
        return SimpleNamespace(wait=lambda: 0)

    def logits_of(name, net, path, images, batch_size):
        started.append(name)
        return {split: torch.zeros(len(each), 10) for split, each in images.items()}

    def stop(*_):
        raise UserError("all are trained")

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(contexts, "logits_of", logits_of)
    monkeypatch.setattr(contexts, "pair", stop)
    study("--train", status=2)
    assert started == [
        ("trainSelector.py", "mixed", None, "checkpoints/contexts/selector.pth"),
        *("teacher", *STUDENTS, "densenet121, once"),
        ("StudentTrain.py", "mixed", str(contexts.EPOCHS), f"{ONCE}/googlenet.pth"),
        *("googlenet, once", "densenet121, twice", "googlenet, twice"),
    ]
    started.clear()
    shutil.rmtree(tmp_path / "runs")
    study("--train", status=2)
    assert started == []
    monkeypatch.setattr(subprocess, "Popen", lambda words: SimpleNamespace(wait=lambda: 130))
    (tmp_path / "results/contexts/googlenet-once.npz").unlink()
    _, err = study("--train", status=2)
    assert "StudentTrain.py ended with status 130: run this command again to continue" in err
