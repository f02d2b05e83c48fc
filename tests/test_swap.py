"""Another teacher and other students: one line of models/networks.py is edited, nothing else."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
RUN = """
import sys
from importlib import import_module
from utils import cli

for words in COMMANDS:
    script, *flags = words.split()
    sys.argv = [script, *flags, "--data", "mine.npz", "--subset", "80", "--device", "cpu"]
    try:
        cli.run(import_module(script.removesuffix(".py")).main)
    except SystemExit as stop:
        assert not stop.code, stop.code

import hubconf, torch
from studies.tables import PUBLISHED, PUBLISHED_TOP1
assert not PUBLISHED and not PUBLISHED_TOP1
logits, choice = hubconf.multistudent(checkpoint_dir="runs/quick")(torch.zeros(2, 3, 64, 64))
assert logits.shape == (2, 10) and choice.shape == (2,)
"""
COMMANDS = (
    "teacherTrain.py --epochs 1 --batch-size 40",
    "StudentTrain.py --epochs 1 --batch-size 40 --model 1",
    "StudentTrain.py --epochs 1 --batch-size 40 --model 2",
    "trainSelector.py --epochs 1 --batch-size 40",
    "inference.py --out out --checkpoint-dir runs/quick",
    "studies.policies --collect --out out --checkpoint-dir runs/quick",
)


def test_the_scripts_run_to_the_report_with_other_networks_and_larger_images(tmp_path, small_npz):
    teacher, students = "mobilenet_v3_small", ("again", "shufflenet_v2_x1_0")
    with np.load(small_npz) as file:
        arrays = dict(file)
    for part in ("train_images", "test_images"):
        arrays[part] = arrays[part].repeat(2, axis=1).repeat(2, axis=2)
    np.savez(tmp_path / "mine.npz", **arrays)
    for folder in ("models", "utils", "evaluation", "studies", "benchmarks"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    path = tmp_path / "models" / "networks.py"
    line = f"TEACHER, STUDENTS = {teacher!r}, {students!r}"
    text, edited = re.subn("^TEACHER, STUDENTS = .*", line, path.read_text(), flags=re.MULTILINE)
    assert edited == 1
    text = text.replace("NETWORKS = {", 'NETWORKS = {"again": Arch("again", SmallCNN, "blocks.0"),')
    path.write_text(text)
    code = [sys.executable, "-c", RUN.replace("COMMANDS", repr(COMMANDS))]
    done = subprocess.run(code, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "out" / "report.html").read_text()
    routing = json.loads((tmp_path / "out" / "routing.json").read_text())
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for name in ("cascade", "ensemble", "oracle"):
        facts = routing["policies"][name]
        assert facts["accuracy"] == pytest.approx(metrics["accuracy"][name], abs=0.05)
        assert [key for key in facts if key.startswith("share_")] == [
            f"share_{arch}" for arch in students[:-1]
        ]
    files = {path.name for path in (tmp_path / "runs" / "quick").glob("*.pth")}
    for name in ("teacher", *students, "selector"):
        assert f"{name}.pth" in files and f'"{name}"' in page
