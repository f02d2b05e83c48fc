"""The teacher's stored logits belong to the same crops that the student sees."""

import os
import signal
import sys

import numpy as np
import pytest
import torch
from loop import Pixels

import StudentTrain
from utils import logits
from utils.augment import Augmentation, Batches
from utils.data import CLASSES, MEAN, STD
from utils.files import UserError
from utils.logits import TeacherLogits


@pytest.mark.parametrize("views, teacher_asked", [(0, 4 * 100), (3, 3 * 100), (16, 4 * 100)])
def test_a_student_learns_from_the_teachers_logits_for_the_very_images_that_it_sees(
    tmp_path, small_npz, monkeypatch, views, teacher_asked
):
    """The published code cached the logits in one shuffled order and used them in another.

    In a context the student sees the same crops, degraded, and the answers are to the clean ones.
    """
    teacher, pairs = Pixels().eval(), []
    loss = StudentTrain.distillation_loss

    class Spy(Pixels):
        def forward(self, images):
            seen[:] = [images.clone()]
            return super().forward(images)

    seen = []

    def spy(logits, teacher_logits, *rest):
        pairs.append((*seen, teacher_logits))
        return loss(logits, teacher_logits, *rest)

    monkeypatch.setattr("utils.device.has_bf16", lambda device: False)
    monkeypatch.setattr(StudentTrain, "TEACHER_VIEWS", views)
    facts = {"val_accuracy": 0.9, "classes": CLASSES, "mean": MEAN, "std": STD}
    monkeypatch.setattr(StudentTrain, "load_network", lambda *_: (teacher, facts))
    monkeypatch.setattr(logits, "for_inference", lambda net, device: net)
    monkeypatch.setattr(StudentTrain, "starting_network", lambda *_: (Spy(), None))
    monkeypatch.setattr(StudentTrain, "report_accuracy", lambda path, val, test: None)
    monkeypatch.setattr(StudentTrain, "distillation_loss", spy)
    flags = "--model 1 --epochs 4 --subset 100 --batch-size 30 --data-dir"
    argv = f"StudentTrain.py {flags} {small_npz} --checkpoint-dir".split()
    monkeypatch.setattr(sys, "argv", [*argv, str(tmp_path)])
    StudentTrain.main()
    assert len(pairs) == 16 and teacher.asked == teacher_asked
    for images, answers in pairs:
        assert (answers - teacher.fc(images.flatten(1))).abs().max() < 2e-3  # half precision
    assert not torch.equal(pairs[0][0], pairs[4][0])

    clean, pairs[:] = list(pairs), []
    taught = "--teacher", str(tmp_path / "teacher.pth")
    argv += [str(tmp_path / "degraded"), *taught, "--context", "degraded"]
    monkeypatch.setattr(sys, "argv", argv)
    StudentTrain.main()
    assert teacher.asked == teacher_asked + (0 if views else 4 * 100)
    for (crops, answers), (degraded, same_answers) in zip(clean, pairs, strict=True):
        assert torch.equal(answers, same_answers)
        assert (degraded != crops).flatten(1).any(dim=1).all()


def test_a_signal_while_the_teacher_logits_ends_the_run_before_it_has_answered_all(
    tmp_path, small_npz, monkeypatch, capsys
):
    class Interrupted(Pixels):
        def forward(self, images):
            os.kill(os.getpid(), signal.SIGINT)
            return super().forward(images)

    teacher = Interrupted().eval()
    facts = {"val_accuracy": 0.9, "classes": CLASSES, "mean": MEAN, "std": STD}
    monkeypatch.setattr(StudentTrain, "load_network", lambda *_: (teacher, facts))
    monkeypatch.setattr(logits, "for_inference", lambda net, device: net)
    monkeypatch.setattr(StudentTrain, "starting_network", lambda *_: (Pixels(), None))
    flags = f"--model 1 --data-dir {small_npz} --checkpoint-dir {tmp_path}"
    monkeypatch.setattr(sys, "argv", ["StudentTrain.py", *flags.split()])
    with pytest.raises(SystemExit, match="130"):
        StudentTrain.main()
    assert 0 < teacher.asked < 540  # training images
    assert "stopped after epoch 0, step 0; continue with" in capsys.readouterr().err
    assert (tmp_path / "densenet121.state.pth").exists()


@pytest.fixture
def ask(tmp_path, sample):
    """Get a teacher's logits for a view of 50 images, and the number of images it computed."""

    def ask(epoch, teacher=None, name="0123456789ab", images=sample.images[:50], crop=4):
        teacher = teacher or Pixels().eval()
        batches = Batches(images, 8, 0, Augmentation(crop, True, 8), views=4)
        answers = TeacherLogits(teacher, name, batches, tmp_path / "teacher.logits").epoch(epoch)
        return answers, teacher.asked

    return ask


def test_each_view_is_asked_for_once_and_for_whoever_comes_next(ask, tmp_path):
    first, asked = ask(1)
    assert asked == 50 and first.dtype == torch.float16 and first.shape == (50, 10)
    again, asked = ask(5)
    assert asked == 0 and torch.equal(first, again)
    other, asked = ask(2)
    assert asked == 50 and not torch.equal(first, other)
    assert len(list((tmp_path / "teacher.logits").iterdir())) == 2


def test_logits_for_other_images_or_crops_or_of_another_teacher_are_not_taken(
    ask, sample, tmp_path
):
    ask(0)
    assert ask(0, images=sample.images[1:51])[1] == 50
    assert ask(0, crop=3)[1] == 50
    assert ask(0, name="ba9876543210")[1] == 50
    assert len(list((tmp_path / "teacher.logits").iterdir())) == 4  # none is deleted
    assert ask(0)[1] == 0


@pytest.mark.parametrize("damage", ["short", "empty", "rows", "columns", "nan", "view"])
def test_a_file_that_is_damaged_or_of_another_view_is_replaced(ask, tmp_path, capsys, damage):
    before, _ = ask(0)
    folder = tmp_path / "teacher.logits"
    (path,) = folder.iterdir()
    made_of = np.load(path)["made_of"]
    other = {
        "rows": before.numpy()[1:],
        "columns": before.numpy()[:, 1:],
        "nan": np.full((50, 10), np.nan, np.float16),
    }
    if damage in other:
        np.savez(path, logits=other[damage], made_of=made_of)
    elif damage == "view":
        ask(1)
        (of_view_1,) = (each for each in folder.iterdir() if each != path)
        path.write_bytes(of_view_1.read_bytes())
    else:
        path.write_bytes({"short": path.read_bytes()[:700], "empty": b""}[damage])
    again, asked = ask(0)
    assert asked == 50 and torch.equal(again, before)
    assert path.name in capsys.readouterr().out
    assert ask(0)[1] == 0


def test_logits_that_half_precision_does_not_hold_are_refused(ask, tmp_path):
    teacher = Pixels().eval()
    teacher.fc.bias.data.fill_(1e5)
    with pytest.raises(UserError, match="not finite in half precision"):
        ask(0, teacher)
    assert not list((tmp_path / "teacher.logits").iterdir())
