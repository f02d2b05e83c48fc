"""The teacher's stored logits belong to the same crops that the student sees."""

import numpy as np
import pytest
import torch
from loop import Pixels
from programs import call
from toys import save_networks

import StudentTrain
from utils.augment import Augmentation, Batches
from utils.checkpoint import load_network
from utils.files import UserError
from utils.logits import TeacherLogits
from utils.run import Run


@pytest.fixture
def teacher(tmp_path, toys, float32):
    """An untrained teacher, which is also in tmp_path/teacher.pth."""
    save_networks(tmp_path, "teacher")
    return load_network(tmp_path / "teacher.pth")[0]


@pytest.mark.parametrize("views", [0, 3])
def test_a_student_learns_from_the_teachers_logits_for_the_very_images_that_it_sees(
    tmp_path, small_npz, monkeypatch, teacher, views
):
    """The published code cached the logits in one shuffled order and used them in another.

    In a context the student sees the same crops, degraded, and the logits are of the clean ones.
    """
    seen, taught = [], []
    outputs, loss = Run.outputs, StudentTrain.distillation_loss

    def see(self, images):
        seen.append(images.clone())
        return outputs(self, images)

    def learn(logits, teacher_logits, *rest):
        taught.append(teacher_logits.float())
        return loss(logits, teacher_logits, *rest)

    monkeypatch.setattr(Run, "outputs", see)
    monkeypatch.setattr(StudentTrain, "distillation_loss", learn)
    monkeypatch.setattr(StudentTrain, "TEACHER_VIEWS", views)
    flags = "--model=1", "--epochs=4", "--subset=60", "--batch-size=30", "--data", small_npz
    flags += "--device=cpu", "--teacher", tmp_path / "teacher.pth", "--checkpoint-dir"
    call("StudentTrain.py", *flags, tmp_path)
    assert len(seen) == len(taught) == 8 and not torch.equal(seen[0], seen[2])
    with torch.no_grad():
        for images, logits in zip(seen, taught, strict=True):
            assert (logits - teacher(images)).abs().max() < 2e-3  # stored in half precision

    stored = {path: path.stat().st_mtime_ns for path in tmp_path.glob("teacher.logits/*")}
    assert len(stored) == views
    crops, seen[:], clean, taught[:] = list(seen), [], list(taught), []
    call("StudentTrain.py", *flags, tmp_path / "degraded", "--context", "degraded")
    assert stored == {path: path.stat().st_mtime_ns for path in tmp_path.glob("teacher.logits/*")}
    for crop, degraded, logits, same in zip(crops, seen, clean, taught, strict=True):
        assert torch.equal(logits, same)
        assert (degraded != crop).flatten(1).any(dim=1).all()


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


DAMAGES = {  # what is stored, and what the file says about itself
    "rows": lambda logits, made_of: (logits[1:], made_of),
    "one column": lambda logits, made_of: (logits[:, :1], made_of),
    "not finite": lambda logits, made_of: (np.full_like(logits, np.nan), made_of),
    "another teacher": lambda logits, made_of: (logits, ["ba9876543210", *made_of[1:]]),
    "nothing": lambda logits, made_of: (logits, []),
}


@pytest.mark.parametrize("damage", ["short", "empty", *DAMAGES])
def test_a_file_that_is_damaged_or_of_something_else_is_replaced(ask, tmp_path, capsys, damage):
    """Its content says of which teacher, images, augmentation and view it is."""
    before, _ = ask(0)
    (path,) = (tmp_path / "teacher.logits").iterdir()
    if damage in DAMAGES:
        with np.load(path) as file:
            logits, made_of = DAMAGES[damage](file["logits"], file["made_of"].tolist())
        np.savez(path, logits=logits, made_of=made_of)
    else:
        path.write_bytes({"short": path.read_bytes()[:700], "empty": b""}[damage])
    again, asked = ask(0)
    assert asked == 50 and torch.equal(again, before)
    (line,) = capsys.readouterr().out.splitlines()
    assert path.name in line
    assert ask(0)[1] == 0


def test_logits_that_half_precision_does_not_hold_are_refused(ask, tmp_path):
    teacher = Pixels().eval()
    teacher.fc.bias.data.fill_(1e5)
    with pytest.raises(UserError, match="not finite in half precision"):
        ask(0, teacher)
    assert not list((tmp_path / "teacher.logits").iterdir())
