"""The training loop, on a network small enough to run it many times."""

import math
import os
import re
import signal
import sys
from operator import attrgetter

import pytest
import torch
import torch.nn.functional as F
from loop import Loop, Tiny
from programs import call, rows

from utils.files import UserError, previous
from utils.logits import predict
from utils.run import Run

EPOCHS, IMAGES, BATCH_SIZE = 3, 40, 8


def trainer(
    path, sample, after_step=lambda step: None, accuracies=(), count=IMAGES, first=0, **changes
):
    torch.manual_seed(0)
    images, labels = sample.images[first:][:count], sample.labels[first:][:count]
    scripted, steps = iter(accuracies), iter(range(1, 10**6))

    def loss(logits, labels):
        after_step(next(steps))
        return F.cross_entropy(logits, labels)

    def validate(logits):
        accuracy = (logits.argmax(1) == labels).double().mean().item()
        return F.cross_entropy(logits, labels).item(), next(scripted, accuracy)

    changes = {"epochs": EPOCHS, "batch_size": BATCH_SIZE} | changes
    return Loop(Tiny(), path, images, labels, loss, validate, images, **changes)


def rates(path, sample, **changes):
    """The learning rate in each step of a run."""
    found = []
    run = trainer(
        path, sample, lambda _: found.append(run.optimizers[0].param_groups[0]["lr"]), **changes
    )
    run.fit()
    return found


def files(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def history(path):
    return rows(path.with_suffix(".csv"))


def test_the_best_epoch_by_validation_is_kept_and_the_history_tells_of_all(tmp_path, sample):
    path = tmp_path / "teacher.pth"
    trainer(path, sample, accuracies=[0.5, 0.9, 0.1]).fit()
    checkpoint = torch.load(path, weights_only=True)
    assert (checkpoint["epoch"], checkpoint["val_accuracy"]) == (2, 0.9)
    told = [(row["epoch"], row["val_accuracy"]) for row in history(path)]
    assert told == [("1", "0.5"), ("2", "0.9"), ("3", "0.1")]
    for row in history(path):
        assert 0 < float(row["train_loss"]) < 10 and 0 <= float(row["train_accuracy"]) <= 1


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_a_run_of_few_steps_ends_too(tmp_path, sample, steps):
    """OneCycleLR divides by zero if the warm-up has only one step."""
    trainer(tmp_path / "t.pth", sample, epochs=1, count=steps * BATCH_SIZE).fit()
    assert len(history(tmp_path / "t.pth")) == 1


@pytest.mark.parametrize(
    "number, status, optimizer",
    [(signal.SIGINT, 130, "adamw"), (signal.SIGTERM, 143, "sgd"), (signal.SIGHUP, 129, "muon")],
)
@pytest.mark.parametrize("step", [1, 3, 5, 9])
def test_a_stopped_run_resumes_to_the_very_same_weights(
    tmp_path, sample, capsys, monkeypatch, number, status, optimizer, step
):
    monkeypatch.setattr(sys, "argv", ["teacherTrain.py", "--epochs", "3"])
    whole, stopped = tmp_path / "whole.pth", tmp_path / "stopped.pth"
    reference = trainer(whole, sample, optimizer=optimizer)
    reference.fit()

    def stop_at(k):
        if k == step:
            os.kill(os.getpid(), number)

    run = trainer(stopped, sample, stop_at, optimizer=optimizer)
    with pytest.raises(SystemExit) as stop:
        run.fit()
    assert stop.value.code == status
    assert "python teacherTrain.py --epochs 3 --resume" in capsys.readouterr().err
    torch.rand(7)  # whatever else drew random numbers in the meantime
    resumed = trainer(stopped, sample, optimizer=optimizer, resume=True)
    resumed.fit()

    for name, tensor in reference.net.state_dict().items():
        assert torch.equal(tensor, resumed.net.state_dict()[name]), name
    for ours, theirs in zip(history(stopped), history(whole), strict=True):
        for timing in ("seconds", "images_per_second"):
            del ours[timing], theirs[timing]
        assert ours == theirs
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_second_signal_stops_at_once(tmp_path, sample):
    def stop(step):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the step goes on")

    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path / "teacher.pth", sample, stop).fit()


def test_a_run_stopped_while_it_begins_saves_its_state(tmp_path, sample, monkeypatch):
    path, begin = tmp_path / "teacher.pth", Run._begin

    def stopped(self):
        os.kill(os.getpid(), signal.SIGTERM)
        begin(self)

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="143"):
        patch.setattr(Run, "_begin", stopped)
        trainer(path, sample)
    trainer(path, sample, resume=True).fit()
    assert len(history(path)) == EPOCHS and not previous(path).exists()


@pytest.mark.parametrize(
    "optimizer, expected",
    [
        ("sgd", [0.104334, 0.08217, 0.032516, 0.03312, 0.282267]),
        ("adamw", [0.103211, 0.082172, 0.034552, 0.039964, 0.278806]),
        ("muon", [0.103259, 0.079258, 0.034545, 0.039873, 0.27749]),
    ],
)
def test_a_seed_gives_the_weights_that_it_gave_before(
    tmp_path, sample, monkeypatch, optimizer, expected
):
    """The mean absolute values of five tensors, from 2026-11-25; processors differ by 1e-6."""
    for module in ("utils.device", "utils.optim"):
        monkeypatch.setattr(f"{module}.has_bf16", lambda device: False)
    run = trainer(tmp_path / "teacher.pth", sample, optimizer=optimizer)
    run.fit()
    weights = run.net.state_dict()
    names = ("conv.weight", "inner.weight", "fc.weight", "fc.bias", "norm.running_var")
    found = [weights[name].abs().mean().item() for name in names]
    assert found == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "poisoned, value, step, named",
    [
        ("fc.weight", math.nan, 8, "epoch 2, step 4"),  # the first step to see it
        ("norm.running_mean", math.inf, 10, "validation"),  # the last step: its loss is finite
    ],
)
def test_what_is_not_finite_ends_the_run_and_spares_the_last_good_files(
    tmp_path, sample, poisoned, value, step, named
):
    path = tmp_path / "teacher.pth"

    def poison(now):
        if now == step:
            attrgetter(poisoned)(run.net).data.fill_(value)  # autograd is not to notice

    run = trainer(path, sample, poison)
    with pytest.raises(UserError, match=named):
        run.fit()
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["epoch"] == 1 and len(history(path)) == 1
    assert all(tensor.isfinite().all() for tensor in checkpoint["state_dict"].values())
    trainer(path, sample, resume=True).fit()
    assert len(history(path)) == EPOCHS


@pytest.mark.parametrize(
    "other, difference",
    [
        ({"learning_rate": 0.02}, "learning_rate was 0.01, is 0.02"),
        ({"stem": "cifar-pool"}, "stem was 'cifar', is 'cifar-pool'"),  # of the very same weights
        ({"first": 1}, "data was '40 images, SHA-256 .*', is '40 images, SHA-256 "),
        ({"count": 39}, "data was '40 images, SHA-256 .*', is '39 images, SHA-256 "),
        ({"epochs": 2}, "epochs is 2, but 3 are done or started"),
    ],
)
def test_resuming_another_run_is_refused_with_the_difference(tmp_path, sample, other, difference):
    path = tmp_path / "teacher.pth"
    trainer(path, sample).fit()
    before = files(tmp_path)
    with pytest.raises(UserError, match=difference):
        trainer(path, sample, resume=True, **other)
    assert files(tmp_path) == before


def test_a_finished_run_stays_as_it_is_or_goes_on_along_the_new_schedule(tmp_path, sample, capsys):
    path = tmp_path / "teacher.pth"
    trainer(path, sample).fit()
    before = files(tmp_path)
    trainer(path, sample, resume=True).fit()
    assert files(tmp_path) == before
    longer = rates(path, sample, epochs=6, resume=True)
    assert "started with 3 epochs, continuing with 6" in capsys.readouterr().out
    assert [int(row["epoch"]) for row in history(path)] == [1, 2, 3, 4, 5, 6]
    whole = rates(tmp_path / "whole.pth", sample, epochs=6)
    assert longer == whole[len(whole) // 2 :]


def test_a_run_in_its_second_epoch_may_end_with_it(tmp_path, sample):
    path = tmp_path / "teacher.pth"
    stop = trainer(path, sample, lambda k: os.kill(os.getpid(), signal.SIGINT) if k == 7 else None)
    with pytest.raises(SystemExit):
        stop.fit()
    trainer(path, sample, epochs=2, resume=True).fit()
    assert len(history(path)) == 2


@pytest.mark.parametrize("damage", ["cut", "checkpoint", "other network", "no weights"])
def test_a_state_that_cannot_be_continued_is_refused_and_stays(tmp_path, sample, damage):
    path = tmp_path / "teacher.pth"
    trainer(path, sample).fit()
    state = path.with_suffix(".state.pth")
    if damage == "no weights":
        path.unlink()
    elif damage == "other network":
        saved = torch.load(state, weights_only=True)
        del saved["net"]["fc.weight"]
        torch.save(saved, state)
    else:
        state.write_bytes(
            {"cut": state.read_bytes()[:1000], "checkpoint": path.read_bytes()}[damage]
        )
    before = state.read_bytes()
    with pytest.raises(UserError, match=r"teacher\.state\.pth") as refused:
        trainer(path, sample, resume=True)
    assert state.read_bytes() == before and len(str(refused.value).splitlines()) == 1


def test_a_signal_that_was_ignored_at_the_start_stays_ignored(tmp_path, sample):
    """So `nohup` and background jobs of a shell go on."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        hang_up = lambda step: os.kill(os.getpid(), signal.SIGHUP)  # noqa: E731
        trainer(tmp_path / "teacher.pth", sample, hang_up, epochs=1).fit()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_state_written_elsewhere_is_continued_and_said_to_round_differently(
    tmp_path, sample, capsys
):
    path, state = tmp_path / "teacher.pth", tmp_path / "teacher.state.pth"
    trainer(path, sample, epochs=1).fit()
    trainer(path, sample, epochs=1, resume=True).fit()
    assert "bit for bit" not in capsys.readouterr().out
    torch.save(torch.load(state, weights_only=True) | {"place": "cuda, 8 processes"}, state)
    trainer(path, sample, epochs=2, resume=True).fit()
    assert re.search("on cuda, 8 processes, .* on cpu, .* bit for bit", capsys.readouterr().out)
    assert len(history(path)) == 2


def test_a_gpu_without_enough_memory_is_told_in_one_line(tmp_path, small_npz, monkeypatch):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")

    monkeypatch.setattr(Run, "outputs", fail)
    flags = f"--subset 20 --device cpu --data {small_npz} --checkpoint-dir {tmp_path}"
    _, err = call("teacherTrain.py", *flags.split(), status=2)
    assert "memory" in err.splitlines()[-1] and "--batch-size" in err.splitlines()[-1]


def test_predict_runs_in_eval_mode_and_keeps_the_order(sample):
    net = Tiny().train()
    whole = predict(net, sample.images[:50], batch_size=50)
    parts = predict(net, sample.images[:50], batch_size=7)
    assert torch.allclose(whole, parts, atol=0.05) and not net.training
