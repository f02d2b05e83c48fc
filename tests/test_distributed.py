"""Two processes on the CPU, started by torchrun, give the same training as one."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ranks as one_process
import torch

from models import STUDENTS
from utils.checkpoint import FILES
from utils.data import load_sample
from utils.device import precision
from utils.logits import predict, top1

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(*args, launcher=TORCHRUN):
    return subprocess.Popen(
        [*launcher, *map(str, args)],
        cwd=ROOT,
        env=ENVIRONMENT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process, status=0):
    out, err = process.communicate(timeout=150)
    assert process.returncode == status, out + err
    return out, err


# ------------------------------------------------------------------ the loop, on small networks


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of a run with two processes, and what each of them recorded."""
    folder = tmp_path_factory.mktemp("two")
    finish(start("tests/ranks.py", folder))
    return folder, [torch.load(folder / f"rank-{k}.pth", weights_only=True) for k in (0, 1)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The same with one process."""
    folder = tmp_path_factory.mktemp("one")
    nets = (one_process.Plain, one_process.Tricky)
    return folder, {
        net.__name__: one_process.train(net, folder / f"{net.__name__}.pth") for net in nets
    }


@pytest.mark.parametrize("net", ["Plain", "Tricky"])
def test_every_batch_is_dealt_out_without_overlap_or_loss(one, two, net):
    for whole, *parts in zip(
        one[1][net]["seen"], *(found[net]["seen"] for found in two[1]), strict=True
    ):
        assert whole == [place for part in parts for place in part]
        assert abs(len(parts[0]) - len(parts[1])) <= 1
    steps = len(one[1][net]["seen"]) // one_process.EPOCHS
    first_epoch = sum(one[1][net]["seen"][:steps], [])
    assert sorted(first_epoch) == list(range(one_process.COUNT))


@pytest.mark.parametrize("net", ["Plain", "Tricky"])
def test_all_processes_have_the_same_weights_after_every_epoch(two, net):
    first, second = (found[net]["weights"] for found in two[1])
    assert first == second and len(set(first)) == one_process.EPOCHS


def test_processes_share_out_the_images_that_a_teacher_is_asked_for(tmp_path, two):
    whole = one_process.teacher_logits(tmp_path)
    for found in two[1]:
        assert torch.allclose(found["answers"], whole, atol=1e-3)
    assert [path.name for path in tmp_path.iterdir()] == [
        path.name for path in (two[0] / "teacher.logits").iterdir()
    ]


def test_two_processes_learn_what_one_learns(one, two):
    """For a network without batch norm, even if the shares have different sizes."""
    ours, theirs = (
        torch.load(folder / "Plain.state.pth", weights_only=True) for folder in (one[0], two[0])
    )
    torch.testing.assert_close(ours["net"], theirs["net"], rtol=1e-4, atol=1e-6)
    for row, other in zip(one[1]["Plain"]["history"], two[1][0]["Plain"]["history"], strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert row["train_accuracy"] == other["train_accuracy"]


def test_validation_accuracy_is_that_of_one_process_on_the_same_weights(two):
    folder, found = two
    net = one_process.Tricky()
    net.load_state_dict(torch.load(folder / "Tricky.state.pth", weights_only=True)["net"])
    sample, count = load_sample(), one_process.COUNT
    logits = predict(net, sample.images[count : 2 * count + 1])
    accuracy = top1(logits, sample.labels[count : 2 * count + 1])
    for each in found:
        assert each["Tricky"]["history"][-1]["val_accuracy"] == accuracy
        assert each["gathered"].squeeze().tolist() == list(range(7))


# ------------------------------------------------------------------ the scripts


@pytest.fixture
def students(tmp_path):
    for arch in STUDENTS:
        (tmp_path / FILES[arch]).symlink_to(ROOT / "checkpoints" / FILES[arch])
    return tmp_path


def flags(folder, data, epochs):
    return [
        "trainSelector.py",
        "--data-dir",
        data,
        "--checkpoint-dir",
        folder,
        "--device",
        "cpu",
        "--subset",
        "60",
        "--batch-size",
        "20",
        "--epochs",
        str(epochs),
    ]


def wait_for_the_first_epoch(process, history):
    deadline = time.monotonic() + 100
    while not history.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert history.exists(), process.communicate()


def test_a_script_stopped_under_torchrun_resumes_with_another_number_of_processes(
    students, small_npz
):
    process = start(*flags(students, small_npz, 2000))
    wait_for_the_first_epoch(process, students / "selector.csv")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode != 0
    assert err.count("continue with: torchrun ... trainSelector.py") == 1, err
    assert out.count("Training the selector") == 1
    assert f"cpu, {precision(torch.device('cpu'))}, 2 processes" in out
    state = torch.load(students / "selector.state.pth", weights_only=True)
    done = state["progress"]["epoch"]
    assert 1 <= done < 2000

    alone = start(*flags(students, small_npz, done + 2), "--resume", launcher=[sys.executable])
    out, _ = finish(alone)
    assert f"resuming after epoch {done}, step" in out
    assert re.search("2 processes, .*, continuing on .* 1 process, .*: the weights will not", out)
    assert f"started with 2000 epochs, continuing with {done + 2}" in out

    checkpoint = torch.load(students / "selector.pth", weights_only=True)
    assert 0 <= checkpoint["test_accuracy"] <= 1


def test_a_student_trained_by_two_processes_is_a_success(tmp_path, small_npz):
    words = flags(tmp_path, small_npz, 1)[1:]
    out, _ = finish(start("StudentTrain.py", "--model", "2", "--distill-loss", "none", *words))
    assert "next: python " in out
    assert torch.load(tmp_path / "googlenet_alone.pth", weights_only=True)["test_accuracy"] >= 0


def test_a_process_that_dies_ends_the_job(students, small_npz):
    process = start(*flags(students, small_npz, 2000))
    wait_for_the_first_epoch(process, students / "selector.csv")
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGKILL)
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0 and "Signal 9" in err
    torch.load(students / "selector.state.pth", weights_only=True)


def test_a_missing_input_is_told_once(tmp_path, small_npz):
    out, err = finish(start(*flags(tmp_path, small_npz, 1)), status=1)  # torchrun's own status
    assert err.count("densenet121.pth is missing") == 1
