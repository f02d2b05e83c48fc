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
from programs import call
from toys import save_networks

from models import STUDENTS
from utils.data import load_sample
from utils.device import precision
from utils.logits import predict, top1

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def start(*args):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    words = [*TORCHRUN, *map(str, args)]
    return subprocess.Popen(words, cwd=ROOT, env=ENVIRONMENT, text=True, **pipes)


# ------------------------------------------------------------------ the loop, on small networks


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder of a run with two processes, and what each of them recorded."""
    folder = tmp_path_factory.mktemp("two")
    process = start("tests/ranks.py", folder)
    out, err = process.communicate(timeout=150)
    assert process.returncode == 0, out + err
    return folder, [torch.load(folder / f"rank-{k}.pth", weights_only=True) for k in (0, 1)]


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The same with one process."""
    folder = tmp_path_factory.mktemp("one")
    nets = (one_process.Pixels, one_process.Tiny)
    return folder, {
        net.__name__: one_process.train(net, folder / f"{net.__name__}.pth") for net in nets
    }


@pytest.mark.parametrize("net", ["Pixels", "Tiny"])
def test_every_batch_is_dealt_out_and_all_processes_have_the_same_weights(one, two, net):
    seen, parts = one[1][net]["seen"], [found[net]["seen"] for found in two[1]]
    for whole, *shares in zip(seen, *parts, strict=True):
        assert whole == sum(shares, [])
        assert abs(len(shares[0]) - len(shares[1])) <= 1
    first_epoch = sum(seen[: len(seen) // one_process.EPOCHS], [])
    assert sorted(first_epoch) == list(range(one_process.COUNT))
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
        torch.load(folder / "Pixels.state.pth", weights_only=True) for folder in (one[0], two[0])
    )
    torch.testing.assert_close(ours["net"], theirs["net"], rtol=1e-4, atol=1e-6)
    for row, other in zip(one[1]["Pixels"]["history"], two[1][0]["Pixels"]["history"], strict=True):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=1e-4)
        assert row["train_accuracy"] == other["train_accuracy"]


def test_validation_accuracy_is_that_of_one_process_on_the_same_weights(two):
    folder, found = two
    net = one_process.Tiny()
    net.load_state_dict(torch.load(folder / "Tiny.state.pth", weights_only=True)["net"])
    sample, count = load_sample(), one_process.COUNT
    logits = predict(net, sample.images[count : 2 * count + 1])
    accuracy = top1(logits, sample.labels[count : 2 * count + 1])
    for each in found:
        assert each["Tiny"]["history"][-1]["val_accuracy"] == accuracy
        assert each["gathered"].tolist() == list(range(7))


def test_a_missing_file_is_told_by_the_first_process_and_ends_the_other(two):
    first, second = (found["missing"] for found in two[1])
    assert "missing.pth" in first and second == 2


# ------------------------------------------------------------------ a script


def test_a_script_stopped_under_torchrun_resumes_with_another_number_of_processes(
    toys, tmp_path, small_npz
):
    save_networks(tmp_path, *STUDENTS)
    flags = f"--data {small_npz} --checkpoint-dir {tmp_path} --device cpu --subset 60".split()
    process = start("tests/toys.py", "trainSelector.py", *flags, "--epochs", 2000)
    while not (tmp_path / "selector.csv").exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert process.returncode != 0
    assert err.count("continue with: torchrun ... trainSelector.py") == 1, err
    assert out.count("Training the selector") == 1
    assert f"cpu, {precision(torch.device('cpu'))}, 2 processes" in out
    state = torch.load(tmp_path / "selector.state.pth", weights_only=True)
    done = state["progress"]["epoch"]
    assert 1 <= done < 2000

    out, _ = call("trainSelector.py", *flags, "--epochs", done + 2, "--resume")
    assert f"resuming after epoch {done}, step" in out
    assert re.search("2 processes, .*, continuing on .* 1 process, .*: the weights will not", out)
    assert f"started with 2000 epochs, continuing with {done + 2}" in out
    assert torch.load(tmp_path / "selector.pth", weights_only=True)["test_accuracy"] >= 0
