"""The CSV file of inference.py: complete rows after any end, and the same file after --resume."""

import csv
import gc
import re
import resource
import signal
import subprocess
import sys
import time
import tracemalloc
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import inference
from evaluation import classify, policies
from evaluation.predictions import HEADER, Answer, Predictions
from models import STUDENTS
from utils import checkpoint
from utils.data import CLASSES, MEAN, STD, fingerprint
from utils.files import UserError

ROOT = Path(__file__).resolve().parent.parent
NAMES = ["plain.png", "new\nline.png", 'quo"te\n.png', '"\n"', "comma,.png", "cr\r.png", "\udcff"]
ANSWERS = [Answer(Path(name), "cat", 0.5, "googlenet") for name in NAMES]
MADE_OF = {"policy": "selector", "threshold": 0.5}
ANSWERS.insert(3, Answer(Path("a,b"), error="a,b: not an image"))


class Student(nn.Module):
    """A fake student: the class is the mean red value, from 0 to 9."""

    def forward(self, images):
        red = images[:, 0].mean(dim=(1, 2))
        return 9.0 * torch.nn.functional.one_hot((2 * red + 4).long().clamp(0, 9), 10).float()


class Selector(nn.Module):
    """A fake selector that sends the signal `number` after two batches."""

    def __init__(self, number=0):
        super().__init__()
        self.number, self.batches = number, 0

    def forward(self, images):
        self.batches += 1
        if self.number and self.batches == 2:
            signal.raise_signal(self.number)
        return images[:, 0].mean(dim=(1, 2))


@pytest.fixture
def run(monkeypatch):
    """Run inference.py with fake networks. Returns the exit status."""

    def run(*argv, selector=None, trained_anew=None):
        nets = {
            "densenet121": Student(),
            "googlenet": Student(),
            "selector": selector or Selector(),
        }
        if trained_anew in nets:
            nets[trained_anew].register_buffer("weight", torch.ones(1))
        facts = {
            "classes": CLASSES[::-1] if trained_anew == "classes" else CLASSES,
            "mean": MEAN,
            "std": STD,
            "hyperparameters": {
                "students": [fingerprint(nets[arch].state_dict().values()) for arch in STUDENTS]
            },
        }
        monkeypatch.setattr(checkpoint, "load_network", lambda path, arch: (nets[arch], facts))
        # The copy made by for_inference would lose the side effects of the fake networks.
        monkeypatch.setattr(inference, "for_inference", lambda net, device: net.eval())
        monkeypatch.setattr(sys, "argv", ["inference.py", "--device", "cpu", *map(str, argv)])
        try:
            return inference.main()
        except SystemExit as leaving:
            return leaving.code

    return run


@pytest.fixture
def folder(tmp_path, sample):
    """Forty image files in two folders, two of them invalid."""
    for k in range(40):
        path = tmp_path / "images" / str(k // 20) / f"{k:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample.images[k].numpy()).save(path)
    for name in ("0/07.png", "1/notes.txt"):
        (tmp_path / "images" / name).write_text("no image")
    return tmp_path / "images"


def rows(path):
    with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
        return list(csv.DictReader(file))


def test_every_file_has_its_row_in_the_order_of_the_folders(folder, tmp_path, run, capsys):
    table = tmp_path / "new" / "table.csv"
    assert run(folder, "--csv", table, "--batch-size", 6) == 2
    out, err = capsys.readouterr()
    assert out.startswith("39 images answered, 2 files failed: ") and "table.csv" in out
    assert "img/s" in err and len(out.splitlines()) == 1
    found = rows(table)
    assert list(found[0]) == ["file", "class", "probability", "student", "error"]
    assert [row["file"] for row in found] == sorted(map(str, folder.rglob("*.*")))
    for row in found:
        if row["file"].endswith(("07.png", "notes.txt")):
            assert row["error"].startswith("not an image: none of")
            assert row["class"] == row["probability"] == row["student"] == ""
        else:
            assert row["error"] == "" and row["student"] in ("densenet121", "googlenet")
            assert 0.99 < float(row["probability"]) <= 1


@pytest.mark.parametrize("number, status", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_resumes_to_the_same_file(folder, tmp_path, run, capsys, number, status):
    whole, stopped = tmp_path / "whole.csv", tmp_path / "stopped.csv"
    run(folder, "--csv", whole, "--batch-size", 6)
    flags = [folder, "--csv", stopped, "--batch-size", 6]
    assert run(*flags, selector=Selector(number)) == status
    assert len(rows(stopped)) == 12 and whole.read_bytes().startswith(stopped.read_bytes())
    assert re.search(r"continue with: python inference.py .* --resume\n", capsys.readouterr().err)
    assert run(*flags, "--resume") == 2  # for the failure before the stop, too
    assert stopped.read_bytes() == whole.read_bytes()
    assert "39 images answered, 2 files failed" in capsys.readouterr().out
    assert run(*flags, "--resume") == 2
    assert stopped.read_bytes() == whole.read_bytes()


def test_a_killed_run_resumes_to_the_same_file(folder, tmp_path):
    """With the real networks, killed during the run."""

    def command(table):
        flags = ["--csv", str(table), "--batch-size", "3", "--device", "cpu", "--resume"]
        return [sys.executable, "inference.py", str(folder), *flags]

    whole, killed = tmp_path / "whole.csv", tmp_path / "killed.csv"
    done = subprocess.run(command(whole), cwd=ROOT, capture_output=True, timeout=280)
    assert done.returncode == 2
    run = subprocess.Popen(command(killed), cwd=ROOT, stderr=subprocess.DEVNULL)
    while not killed.exists() or killed.read_bytes().count(b"\n") < 7:
        assert run.poll() is None
        time.sleep(0.001)
    run.kill()
    run.wait()
    assert len(rows(killed)) < len(rows(whole)) == 41
    with open(killed, "ab") as file:
        file.write(b'"half a ro\n')  # as a kill in the midst of writing leaves it
    done = subprocess.run(command(killed), cwd=ROOT, capture_output=True, timeout=280)
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    for one, other in zip(rows(killed), rows(whole), strict=True):
        probability, expected = (float(row.pop("probability") or 0) for row in (one, other))
        assert one == other and probability == pytest.approx(expected, abs=2e-4)


def test_a_file_cut_off_anywhere_resumes_to_the_same_file(tmp_path):
    path = tmp_path / "table.csv"
    with closing(Predictions(path, False, MADE_OF)) as table:
        table.write(ANSWERS)
    content = path.read_bytes()
    assert [row["file"] for row in rows(path)] == [str(each.file) for each in ANSWERS]
    for end in range(len(content) + 1):
        path.write_bytes(content[:end])
        with closing(Predictions(path, True, MADE_OF)) as table:
            table.write(each for each in ANSWERS if not table.skips(each.file))
            assert (table.answered, table.failed) == (len(NAMES), 1)
        assert path.read_bytes() == content


def test_a_file_named_twice_has_two_rows_after_a_stop_too(tmp_path, folder, run):
    picture, table = folder / "0/01.png", tmp_path / "table.csv"
    run(picture, picture, "--csv", table)
    content = table.read_bytes()
    table.write_bytes(b"".join(content.splitlines(keepends=True)[:2]))
    assert run(picture, picture, "--csv", table, "--resume") == 0
    assert table.read_bytes() == content


def test_the_file_is_no_row_of_its_own(folder, run, monkeypatch):
    monkeypatch.chdir(folder)
    assert run(".", "--csv", "table.csv") == 2
    assert "table.csv" not in [row["file"] for row in rows("table.csv")]


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--csv", "table.csv"], "--csv needs images"),
        (["--resume"], "--resume needs --csv"),
        (["photo.jpg", "--resume"], "--resume needs --csv"),
        (["photo.jpg", "--csv", "."], "--csv . must name a file"),
        (["photo.jpg", "--csv", ""], "--csv . must name a file"),
    ],
)
def test_flags_that_go_together_are_asked_for(run, capsys, flags, told):
    assert run(*flags) == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize("resume", [False, True])
def test_a_file_that_stands_there_is_not_lost(tmp_path, resume):
    table = tmp_path / "table.csv"
    table.write_text("epoch,loss\n1,2\n")
    told = "was not written by this program" if resume else "exists: add --resume"
    with pytest.raises(UserError, match=f"table.csv {told}"):
        Predictions(table, resume, MADE_OF)
    assert table.read_text() == "epoch,loss\n1,2\n"
    with pytest.raises(UserError, match=re.escape(str(tmp_path))):
        Predictions(tmp_path, resume, MADE_OF)


@pytest.mark.parametrize(
    "flags, changed",
    [
        (["--policy", "cascade"], "policy was 'selector', is 'cascade'"),
        (["--threshold", "0.6"], "threshold was 0.5, is 0.6"),
        (["--batch-size", "7"], "batch_size was 6, is 7"),
    ],
)
def test_rows_of_other_settings_are_not_mixed_in(folder, tmp_path, run, flags, changed):
    table = tmp_path / "table.csv"
    run(folder / "0", "--csv", table, "--batch-size", 6)
    before = table.read_bytes()
    with pytest.raises(UserError, match=f"table.csv only with the same settings: .*{changed}"):
        run(folder, "--csv", table, "--batch-size", 6, "--resume", *flags)
    assert table.read_bytes() == before
    assert run(folder, "--csv", table, "--batch-size", 6, "--resume") == 2
    assert table.read_bytes().startswith(before) and len(rows(table)) == 41


@pytest.mark.parametrize("what", ["selector", "googlenet", "classes", "device"])
def test_rows_of_other_networks_are_not_mixed_in(folder, tmp_path, run, monkeypatch, what):
    table = tmp_path / "table.csv"
    run(folder / "0", "--csv", table)
    before = table.read_bytes()
    if what == "device":
        monkeypatch.setattr(policies, "precision", lambda device: "float16")
    with pytest.raises(
        UserError, match=f"table.csv only with the same settings: {what} was .*, is "
    ):
        run(folder, "--csv", table, "--resume", trained_anew=what)
    assert table.read_bytes() == before


@pytest.mark.parametrize("content", [None, "", "{", "[1, 2]", "[" * 100_000])
def test_rows_of_settings_that_are_not_known_are_not_mixed_in(tmp_path, content):
    path, facts = tmp_path / "table.csv", tmp_path / ".table.csv.json"
    with closing(Predictions(path, False, MADE_OF)) as table:
        table.write(ANSWERS)
    before = path.read_bytes()
    facts.unlink() if content is None else facts.write_text(content)
    with pytest.raises(
        UserError, match="[.]table.csv.json with the settings of .* missing or damaged"
    ):
        Predictions(path, True, MADE_OF)
    assert path.read_bytes() == before


def table_of(count):
    rows = (f"photos/{k:05}.png,cat,0.{k % 10000:04},googlenet,\n" for k in range(count - 1))
    return [HEADER.decode(), *rows, 'last.png,,,,"not an image: none of JPEG, PNG"\n']


@pytest.fixture
def resumed(tmp_path):
    """The Predictions of a run resumed from a file with these lines."""

    def resumed(lines):
        path = tmp_path / "table.csv"
        Predictions(path, False, MADE_OF).close()
        path.write_text("".join(lines), newline="")
        return Predictions(path, True, MADE_OF)

    return resumed


@pytest.mark.parametrize("line", [5, 999])
@pytest.mark.parametrize("place", [0, 3, 18, 20, 22, 28, 38, -1])
def test_a_stray_quote_cuts_nothing_off(tmp_path, resumed, line, place):
    lines = table_of(999)
    lines[line] = f'{lines[line][:place]}"{lines[line][place:]}'
    with pytest.raises(UserError, match=rf"table.csv: line {line + 1} is not a valid row"):
        resumed(lines)
    assert (tmp_path / "table.csv").read_text() == "".join(lines)


@pytest.mark.parametrize(
    "odd",
    [
        "\n",
        "cat\n",
        "a.png,cat\n",
        "a.png,cat,0.5,googlenet,\n",
        "a.png,cat,0.5000,googlenet\n",
        "a.png,cat,0.5000,googlenet,,\n",
        "a\r.png,cat,0.5000,googlenet,\n",
        "\r\n",
        "\r",
        "a.png,cat,0.5000,googlenet,\r\n",
        "a.png,,,,\n",
        "a.png,cat,0.5000,googlenet,bad\n",
        "1,2,3,4,5\n",
        "a" * 200_000 + ",cat,0.5000,googlenet,\n",
        "a" * 200_000,
        '"' + "\n" * 200_000,
    ],
)
def test_a_row_that_is_not_ours_is_told(tmp_path, resumed, odd):
    lines = table_of(9)
    lines.insert(5, odd)
    with pytest.raises(UserError, match="table.csv: line 6 is not a valid row"):
        resumed(lines)
    assert (tmp_path / "table.csv").read_bytes() == "".join(lines).encode()


def test_only_what_follows_the_last_line_feed_is_cut_off(tmp_path, resumed):
    lines = table_of(10)
    resumed([*lines, "half,ca"]).close()
    assert (tmp_path / "table.csv").read_text() == "".join(lines)


@pytest.mark.parametrize("stray", ["", '"'])
def test_a_table_of_100_000_rows_is_looked_through_at_once(resumed, stray):
    lines = table_of(100_000)
    lines[5] = stray + lines[5]
    started = time.thread_time()
    if stray:
        with pytest.raises(UserError, match="line 6 is not a valid row"):
            resumed(lines)
    else:
        assert resumed(lines).answered == 99_999
    assert time.thread_time() - started < 10  # 0.3 s as a rule


def test_two_runs_do_not_write_one_file(tmp_path):
    path = tmp_path / "table.csv"
    first = Predictions(path, False, MADE_OF)
    with pytest.raises(UserError, match="another run is writing .*table.csv"):
        Predictions(path, True, MADE_OF)
    first.close()
    Predictions(path, True, MADE_OF).close()


def test_a_full_disk_leaves_whole_rows(tmp_path):
    path = tmp_path / "table.csv"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with closing(Predictions(path, False, MADE_OF)) as table:
        table.write(ANSWERS)
        content = path.read_bytes()
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + 20, limits[1]))
        try:
            with pytest.raises(UserError, match="cannot write .*table.csv: File too large"):
                table.write(ANSWERS)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == content


def test_memory_does_not_grow_with_the_number_of_images(tmp_path, run, monkeypatch):
    monkeypatch.setattr(classify, "read_image", lambda _: np.zeros((32, 32, 3), np.uint8))
    peaks = []
    for count in (200, 20_000):  # the first brings what is loaded once, whatever the number
        files = (f"{k:0700}.png" for k in range(count))
        monkeypatch.setattr(classify, "image_files", lambda _, files=files: map(Path, files))
        table = tmp_path / f"{count}.csv"
        gc.collect()
        tracemalloc.start()
        try:
            assert run("folder", "--csv", table, "--batch-size", 100) == 0
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
        assert len(rows(table)) == count
    peak = peaks[1]
    assert peak < 13e6  # their names alone are more
