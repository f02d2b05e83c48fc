"""Flags and constants of the scripts: nonsense is refused by name, before any work."""

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from programs import call

import inference
import StudentTrain
import teacherTrain
import trainSelector
from models import STUDENTS
from utils import cli

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = {
    module.__name__: module for module in (teacherTrain, StudentTrain, trainSelector, inference)
}


def refusal(script, folder, *flags):
    """The last line that a script prints, which must end with status 2 and write no file."""
    out, err = call(f"{script}.py", "--checkpoint-dir", folder / "new", *flags, status=2)
    assert out == "" and not (folder / "new").exists()
    last = err.splitlines()[-1]
    assert last.startswith(f"{script}.py: error: ")
    return last


FLAGS = {
    **dict.fromkeys(("--epochs", "--batch-size", "--subset"), ("0", "1.5", "many", "")),
    "--lr": ("0", "-0.1", "nan", "inf", "fast", ""),
    "--seed": ("-1", "1.5", "2147483648"),
    "--device": ("tpu9", "meta", "cuda:99", "", "hpu"),
    "--checkpoint-dir": ("",),
}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("flag", FLAGS)
def test_a_nonsense_value_of_a_flag_is_refused(script, flag, tmp_path):
    model = ["--model", "1"] if script == "StudentTrain" else []
    for value in FLAGS[flag]:
        assert flag in refusal(script, tmp_path, *model, f"{flag}={value}")


@pytest.mark.parametrize(
    "words, epochs, cutout",
    [
        ("--model 1", 3, 0),
        ("--model 1 --epochs 5 --set CUTOUT=4", 5, 4),
        ("--model 1 --set EPOCHS=2", 2, 0),
        ("--model 2", 48, 8),
    ],
)
def test_a_small_student_has_other_hyperparameters_unless_the_user_gives_some(
    words, epochs, cutout, monkeypatch
):
    monkeypatch.setattr(StudentTrain, "SMALL", {STUDENTS[0]: {"EPOCHS": 3, "CUTOUT": 0}})
    monkeypatch.setattr(sys, "argv", ["StudentTrain.py", *words.split()])
    args = StudentTrain.read_flags()
    assert (args.epochs, args.cutout) == (epochs, cutout)
    assert (StudentTrain.EPOCHS, StudentTrain.CUTOUT) == (48, 8)  # for the next student


@pytest.mark.parametrize(
    "words, flag",
    [
        ("StudentTrain", "--model"),
        ("StudentTrain --model=9", "--model"),
        ("StudentTrain --modle=1", "--model"),
        ("teacherTrain --set CROP", "--set CROP"),
        ("teacherTrain --set CROP=32", "CROP"),
        ("teacherTrain --set CROPS=3", "CROPS"),
        ("teacherTrain --set DEPTH=2", "DEPTH"),  # of the selector
        ("teacherTrain --set OPTIMIZER=adam", "OPTIMIZER"),
        *((f"teacherTrain --run={name}", "--run") for name in ("a/b", "..", "")),
        ("inference --policy=coin", "--policy"),
        ("inference --policy=googlenet --threshold=0.5", "--threshold"),
        ("inference --policy=cascade --threshold=0.5,0.9,0.8", "--threshold"),
        ("inference --policy=ensemble --target=teacher", "--target"),
        ("inference --policy=cascade --target=best --threshold=0.5", "--threshold or --target"),
        *((f"inference --threshold={value}", "--threshold") for value in ("1.5", "nan", "x")),
        ("inference --csv table.csv", "--csv"),
        ("inference photo.jpg --csv=", "--csv"),
        ("inference photo.jpg --out results", "--out"),
        ("inference photo.jpg --data-dir mine.npz", "--data"),
        ("inference photo.jpg --subset 9", "--subset"),
        ("inference photo.jpg --context noise", "--context"),
    ],
)
def test_flags_that_make_no_sense_together_are_refused(words, flag, tmp_path):
    script, *flags = words.split()
    assert flag in refusal(script, tmp_path, *flags)


@pytest.mark.parametrize("flag", ["--data=README.md/data", "--checkpoint-dir=README.md"])
def test_a_path_that_cannot_be_is_refused(flag, small_npz, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    places = [f"--data={small_npz}", f"--checkpoint-dir={tmp_path}"]
    _, err = call("teacherTrain.py", "--epochs=1", *places, flag, status=2)
    assert flag.split("=")[1] in err and len(err.splitlines()) == 1


def test_a_tilde_that_the_shell_leaves_is_the_home_folder():
    parser = cli.common_parser("", {"BATCH_SIZE": 1})
    cli.add_out(parser, Path("runs"), "files")
    args = parser.parse_args(["--out=~/res", "--data=~/mine.npz"])
    assert (args.out, args.data) == (Path.home() / "res", str(Path.home() / "mine.npz"))


# ------------------------------------------------------------------ constants

CONSTANTS = {  # of each kind; the ranges are in utils/cli.py
    "EPOCHS": (0, 2.5, "6", None, True),
    "BATCH_SIZE": (0, 64.0),
    "LEARNING_RATE": (0, -0.1, math.nan, math.inf, "0.1"),
    "OPTIMIZER": ("adam", None),
    "CROP": (-1, 32),
    "FLIP": ("yes", None),
    "SEED": (-1, 2**31),
    "THRESHOLD": (math.nan, -0.1, 1.5, "0.5"),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_nonsense_constant_is_refused(script, monkeypatch, tmp_path):
    block = {name: value for name, value in vars(SCRIPTS[script]).items() if name in CONSTANTS}
    assert block
    for name in block:
        for value in CONSTANTS[name]:
            with monkeypatch.context() as patch:
                patch.setattr(SCRIPTS[script], name, value)
                assert f"{name} = {value!r}" in refusal(script, tmp_path, "--model=1")


MISSPELT = {"CROPS": "CROP", "EPOCHSS": "EPOCHS", "STEMS": "STEM", "SEEDS": "SEED", "OTHER": "CROP"}


@pytest.mark.parametrize("instead", MISSPELT)  # SEEDS is one of studies
def test_a_misspelt_or_missing_constant_is_refused(instead, monkeypatch, tmp_path):
    name = MISSPELT[instead]
    monkeypatch.delattr(teacherTrain, name)
    monkeypatch.setattr(teacherTrain, instead, 4, raising=False)
    assert name in refusal("teacherTrain", tmp_path)


def test_the_settings_of_a_run_are_the_constants_of_its_script_with_the_flags_applied():
    words = ["--epochs=7", "--lr=0.5", "--set", "CUTOUT=2"]
    args = cli.training_parser("", vars(teacherTrain)).parse_args(words)
    expected = {"epochs": 7, "learning_rate": 0.5, "cutout": 2, "crop": 4}
    assert expected.items() <= cli.settings(vars(teacherTrain), args).items()
    for script in (teacherTrain, StudentTrain):
        names = {name.upper() for name in cli.constants(vars(script))}
        assert names - {"DATA", "LAYERS", "TEACHERS"} <= {*cli.NUMBERS, *cli.CHOICES}


# ------------------------------------------------------------------ Ctrl-C


@pytest.mark.parametrize(
    "script, package",  # a late and an early import
    [("inference", "filelock"), ("studies.policies", "torch")],
)
def test_ctrl_c_during_the_imports_ends_in_one_line(script, package, tmp_path):
    (tmp_path / f"{package}.py").write_text("raise KeyboardInterrupt")
    where = {**os.environ, "PYTHONPATH": str(tmp_path)}
    words = [sys.executable, "-m", script, "--help"]
    done = subprocess.run(words, cwd=ROOT, env=where, capture_output=True, text=True)
    assert (done.stderr, done.stdout) == ("interrupted\n", "")
    assert done.returncode in (130, -2)  # ended by SIGINT: 130 in a shell


def test_a_flag_that_repeats_its_default_is_handed_on_too(capsys):
    """The next script has another default."""
    args = cli.training_parser("", vars(teacherTrain)).parse_args(["--epochs=40", "--stem=cifar"])
    cli.next_step(args, "next.py", same=["stem", "epochs", "seed"])
    assert teacherTrain.EPOCHS == 40
    assert capsys.readouterr().out.endswith("next.py --stem cifar --epochs 40\n")
