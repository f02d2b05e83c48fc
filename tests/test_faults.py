"""Faults outside the code: kills, power loss, full disks, missing permissions.

The scripts run on real images, with small networks, in processes of their own, forked from one that
has imported PyTorch already. `fault_driver.py` says at which moments they are struck. The 30
moments of every script and mode are slow: python -m pytest -m slow tests/test_faults.py
"""

import re
import resource
import shlex
import shutil
from functools import partial
from pathlib import Path

import fault_driver
import pytest
import torch
from programs import Run, rows
from toys import save_networks, use_toys

from models import SELECTED, STUDENTS, Selector
from utils.checkpoint import FILES, read_checkpoint, save_checkpoint

ROOT = Path(__file__).resolve().parent.parent
QUICK = ["--epochs", "3", "--subset", "40", "--batch-size", "10", "--device", "cpu"]
SCRIPTS = {
    "selector": ["trainSelector.py"],
    "googlenet": ["StudentTrain.py", "--model", "2"],
    "teacher": ["teacherTrain.py"],
}
MOMENTS = {"step", "opened", "half", "written", "synced", "renamed", "durable"}


@pytest.fixture(scope="module")
def earlier(tmp_path_factory, toys):
    """A checkpoint folder with the weights of an earlier run of every script."""
    folder = tmp_path_factory.mktemp("earlier")
    save_networks(folder, "teacher", *STUDENTS)
    facts = {"arch": "selector", "depth": 3, "batch_norm": True, "selected": [*SELECTED]}
    save_checkpoint(folder / FILES["selector"], Selector(), facts, 1, 0.1)
    return folder


@pytest.fixture
def folder(tmp_path, earlier):
    return Path(shutil.copytree(earlier, tmp_path / "checkpoints"))


def flags_of(name, folder, data):
    return [*SCRIPTS[name], *QUICK, "--data-dir", str(data), "--checkpoint-dir", str(folder)]


def start(*flags, function=fault_driver.run, limits=()):
    return Run(function, *flags, limits=[use_toys, *limits])


def train(name, folder, data, *more, limits=()):
    return start(*flags_of(name, folder, data), *more, limits=limits).wait()


def struck(at, mode, name, folder, data, *more):
    """Train, stopped at moment `at`. Returns also the names of all moments up to the end."""
    flags = [*flags_of(name, folder, data), *more]
    done = start(at, mode, *flags, function=fault_driver.strike).wait()
    return done, re.findall(r"^moment \d+: (.*)$", done.stderr, re.MULTILINE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, earlier, small_npz):
    """A function of a name: the folder and the moments of an uninterrupted run of its script."""
    runs = {}

    def get(name):
        if name not in runs:
            folder = tmp_path_factory.mktemp(f"whole_{name}") / "checkpoints"
            shutil.copytree(earlier, folder)
            done, moments = struck(0, "kill", name, folder, small_npz)
            assert done.status == 0, done.stderr
            assert {moment.split()[0] for moment in moments} == MOMENTS
            runs[name] = folder, moments
        return runs[name]

    return get


def assert_ends_like(name, folder, reference):
    """The files in `folder` are the same as after an uninterrupted run, except for the times."""

    def made(folder):
        facts = read_checkpoint(folder / f"{name}.pth")
        state = torch.load(folder / f"{name}.state.pth", weights_only=True)
        history = rows(folder / f"{name}.csv")
        for row in history:
            del row["seconds"], row["images_per_second"]
        return [facts.pop("state_dict"), state["net"]], facts, history

    nets, *rest = made(folder)
    same, *expected = made(reference)
    torch.testing.assert_close(nets, same, rtol=0, atol=0)
    assert rest == expected and not list(folder.rglob("*.part"))


def assert_every_file_loads(folder):
    for path in folder.glob("*.pth"):
        torch.load(path, weights_only=True)
        if ".state" not in path.name:
            read_checkpoint(path)


# ------------------------------------------------------------------ kill -9 and power loss


def epochs_done(name, folder):
    path = folder / f"{name}.state.pth"
    return torch.load(path, weights_only=True)["progress"]["epoch"] if path.exists() else None


def chain(name, folder, data, moments, points):
    """Stop the run at the first point, the resumed run at the second, and so on to the end.

    A point is a moment of the uninterrupted run, and a mode. A resumed run has fewer moments, so
    the moment is counted from where it resumes. Returns the moments where runs were stopped.
    """
    ends = [k for k, moment in enumerate(moments, 1) if moment == f"durable {name}.state.pth"]
    anew = moments.index(f"opened {name}.previous.pth")
    hit = []
    for point, mode in [*points, (0, "kill")]:
        epochs = epochs_done(name, folder)
        start = anew if epochs is None else ends[epochs]
        at = point - start if hit and point > start else point
        more = ["--resume"] if hit else []
        for stored in folder.glob("*.logits"):
            shutil.rmtree(stored)  # so that every run writes the same number of files
        done, seen = struck(at, mode, name, folder, data, *more)
        assert done.status == (-9 if point else 0), (point, mode, done.stderr)
        assert_every_file_loads(folder)
        if hit and (not point or seen[-1] == "step"):  # certainly after the message
            said = "the run is finished" if epochs == 3 else f"resuming after epoch {epochs}, step"
            assert ("nothing to resume" if epochs is None else said) in done.stdout
        if point:
            hit.append(seen[-1])
    return hit


def test_a_run_struck_again_and_again_ends_in_the_very_same_weights(folder, small_npz, whole):
    reference, moments = whole("selector")
    first_state = moments.index("half selector.state.pth", moments.index("step")) + 1
    points = [
        (first_state, "kill"),
        (first_state + 3, "power"),  # renamed, its folder not synced
        (first_state + 7, "kill"),  # steps of the second epoch
        (len(moments) - 15, "power"),
    ]
    hit = chain("selector", folder, small_npz, moments, points)
    assert hit[:2] == ["half selector.state.pth", "renamed selector.state.pth"]
    assert_ends_like("selector", folder, reference)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["kill", "power"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_struck_at_thirty_moments_a_run_ends_in_the_very_same_weights(
    tmp_path, earlier, small_npz, whole, name, mode
):
    reference, moments = whole(name)
    points = [1 + k * (len(moments) - 1) // 29 for k in range(30)]
    chained = [point for k, point in enumerate(points) if k % 4 != 3]
    hit = []
    for struck_at in [chained, *([point] for point in points[3::4])]:
        folder = shutil.copytree(earlier, tmp_path / "checkpoints")
        hit += chain(name, folder, small_npz, moments, [(point, mode) for point in struck_at])
        assert_ends_like(name, folder, reference)
        shutil.rmtree(folder)

    writing = [moment for moment in hit if not re.match("step|durable", moment)]
    assert len(hit) == 30 and len(writing) >= 15
    for file in ("pth", "previous.pth", "csv", "state.pth"):
        assert any(moment.endswith(f" {name}.{file}") for moment in writing), file


@pytest.mark.parametrize("moment", ["opened selector.state.pth", "durable selector.pth"])
def test_a_run_killed_in_its_first_epoch_is_not_mixed_with_the_one_before(
    folder, small_npz, whole, moment
):
    """A finished run, then a new one with the same flags: both keep their own weights."""
    reference, moments = whole("selector")
    shutil.copytree(reference, folder, dirs_exist_ok=True)
    earlier = {}
    for file, key in (("selector.pth", "state_dict"), ("selector.state.pth", "net")):
        content = torch.load(folder / file, weights_only=True)
        for tensor in content[key].values():
            tensor += 1  # as a run of another version of PyTorch would differ
        torch.save(content, folder / file)
        earlier[file] = (folder / file).read_bytes()
    first, second = (f"opened selector.{name}.pth" for name in ("previous", "state"))
    kept = moments.index(second) - moments.index(first)
    at = moments.index(moment) + 1 + kept  # the earlier state is kept, too
    assert struck(at, "kill", "selector", folder, small_npz)[1][-1] == moment
    done = train("selector", folder, small_npz, "--resume")
    assert done.status == 0, done.stderr
    assert ("the run is finished" in done.stdout) == (moment == "opened selector.state.pth")
    for name, content in earlier.items():
        assert (folder / name.replace(".", ".previous.", 1)).read_bytes() == content
    if moment == "durable selector.pth":
        assert_ends_like("selector", folder, reference)


# ------------------------------------------------------------------ Ctrl-C and SIGTERM


@pytest.mark.parametrize("mode, status", [("int", 130), ("term", 143)])
@pytest.mark.parametrize("moment", ["step", "half selector.state.pth"])
def test_a_stopped_run_saves_its_state_in_mid_epoch_and_prints_what_continues_it(
    folder, small_npz, whole, moment, mode, status
):
    reference, moments = whole("selector")
    at = moments.index(moment, moments.index("durable selector.state.pth")) + 1
    done, _ = struck(at, mode, "selector", folder, small_npz)
    assert done.status == status and "Traceback" not in done.stderr, done.stderr
    assert_every_file_loads(folder)
    line = next(line for line in done.stderr.splitlines() if line.startswith("stopped after"))
    epoch = "1, step 1 of 4" if moment == "step" else "1, step 0"
    assert line.startswith(f"stopped after epoch {epoch}; continue with: python ")
    resumed = start(*shlex.split(line.split("python ")[1])).wait()
    assert resumed.status == 0 and "resuming after epoch" in resumed.stdout, resumed.stderr
    assert_ends_like("selector", folder, reference)


# ------------------------------------------------------------------ full disks, no permission


def assert_refused(done, *words):
    """Assert exit status 2 and one error line with all these words."""
    assert done.status == 2, done.stderr
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1 and done.stderr.splitlines()[-1] == errors[0], done.stderr
    for word in words:
        assert word in errors[0], errors[0]


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


def disk_of(size):
    """Limit the file size: larger files fail as on a full disk, with another reason."""
    return [partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))]


@pytest.mark.parametrize(
    "size, finished, file",
    [
        (100_000, True, "selector.previous.pth"),
        (300_000, True, "selector.previous.state.pth"),
        (300_000, False, "selector.state.pth"),
    ],
)
def test_a_file_that_does_not_fit_on_the_disk_is_named_and_the_one_before_stays(
    folder, small_npz, whole, size, finished, file
):
    if finished:
        shutil.copytree(whole("selector")[0], folder, dirs_exist_ok=True)
    before = contents(folder)
    done = train("selector", folder, small_npz, limits=disk_of(size))
    assert_refused(done, str(folder / file))
    after = contents(folder)
    assert after.get(file) == before.get(file)
    kept = before.keys() - {"selector.previous.pth"}  # which fits
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert not list(folder.rglob("*.part"))


def test_a_folder_without_permission_to_write_is_named_and_left_alone(folder, small_npz, request):
    before = contents(folder)
    folder.chmod(0o555)
    request.addfinalizer(lambda: folder.chmod(0o755))
    done = train("selector", folder, small_npz, limits=[fault_driver.drop_privileges])
    assert_refused(done, str(folder), "Permission denied")
    assert contents(folder) == before


def test_of_two_runs_in_one_folder_the_second_is_refused(folder, small_npz, whole):
    flags = flags_of("selector", folder, small_npz)
    runs = [start(*flags) for _ in range(2)]
    first, second = sorted((run.wait() for run in runs), key=lambda done: done.status)
    assert first.status == 0, first.stderr
    assert_refused(second, "another run is writing", "selector.pth")
    assert_ends_like("selector", folder, whole("selector")[0])
