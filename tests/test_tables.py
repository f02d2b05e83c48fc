"""The README files agree with the results and the weights."""

import csv
import hashlib
import json
import re
from pathlib import Path

import pytest

from benchmarks.subjects import SUBJECTS
from models import Selector
from studies import tables
from utils.checkpoint import save_checkpoint
from utils.files import UserError

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def metrics():
    return json.loads((ROOT / "results" / "metrics.json").read_text())


def numbers(tree):
    """All numbers of nested dictionaries and lists."""
    if isinstance(tree, (dict, list)):
        children = tree.values() if isinstance(tree, dict) else tree
        return [number for child in children for number in numbers(child)]
    return [tree] if isinstance(tree, (int, float)) else []


def not_measured(prose, metrics):
    """Percentages with decimals in `prose` that do not match a number in `metrics`."""
    return [
        text
        for text, decimals in re.findall(r"(\d+\.(\d+)) ?%", prose)
        if text not in {f"{100 * number:.{len(decimals)}f}" for number in numbers(metrics)}
    ]


def test_the_tables_are_those_of_the_files():
    for path, text in tables.texts().items():
        assert path.read_text() == text, f"{path} is out of date: run python -m studies.tables"


@pytest.mark.parametrize(
    "content", [None, "{", "{}", "[1]", '{"accuracy": {"teacher": "high"}, "macs_per_image": {}}']
)
def test_a_file_of_results_that_cannot_be_read_is_named(content, tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    for name in ("checkpoints", ".gitignore"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = tmp_path / "results" / "metrics.json"
    path.parent.mkdir()
    (path.parent / "cifar").symlink_to(ROOT / "results" / "cifar")
    if content:
        path.write_text(content)
    with pytest.raises(UserError, match=f"restore it with: git checkout {path}"):
        tables.texts()


@pytest.mark.parametrize(
    "title, table, file",
    [
        ("Results", "results", "metrics.json"),
        ("Who should answer", "routing", "routing.json"),
    ],
)
def test_a_percentage_in_the_prose_beside_a_table_is_a_measured_one(title, table, file):
    measured = json.loads((ROOT / "results" / file).read_text())
    text = (ROOT / "docs" / "results.md").read_text()
    section = text.split(f"# {title}\n")[1].split("\n## ")[0]
    before, after = re.split(rf"<!-- {table}.*<!-- end of {table} -->", section, flags=re.DOTALL)
    assert not_measured(before + after, measured) == []
    assert not_measured(f"{before}, once 12.3456 %", measured) == ["12.3456"]


def test_what_was_not_measured_is_left_blank(metrics):
    for table in metrics.values():
        if isinstance(table, dict):
            table.pop("teacher", None)
    row = tables.results(metrics).splitlines()[2]
    assert [cell.strip() for cell in row.split("|")][1:6] == [
        "teacher, ResNet-50",
        "81",
        "",
        "",
        "",
    ]


def test_a_checkpoint_is_described_as_it_is(tmp_path):
    path = tmp_path / "selector.pth"
    shape = {"depth": 1, "batch_norm": False, "augmentation": {"crop": 4, "flip": True}}
    save_checkpoint(path, Selector(1, False, 1), shape | {"arch": "selector"}, 7, 0.5)
    text = tables.checkpoints([path])
    rows = dict(re.findall(r"^\| (.+?) \| (.*) \|$", text, re.MULTILINE))
    assert rows["parameters"] == "929"  # 32 x (3 x 9 + 1) in the block, 32 + 1 in the head
    assert rows["bytes"] == f"{path.stat().st_size:,}"
    assert rows["validation top-1, %"] == "50.00" and rows["test top-1, %"] == ""
    assert rows["`augmentation`"] == "crop 4, flip True" and rows["epoch of the weights"] == "7"
    assert f"{hashlib.sha256(path.read_bytes()).hexdigest()}  selector.pth" in text.splitlines()


def test_a_table_goes_between_its_markers_and_nowhere_else(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- one: by x -->\nold\n\n<!-- end of one -->\nb\n")
    assert tables.fill(path, {"one": r"new \1"}) == (
        "a\n<!-- one: by x -->\nnew \\1\n<!-- end of one -->\nb\n"
    )
    with pytest.raises(UserError, match="README.md lacks <!-- two -->"):
        tables.fill(path, {"two": "new"})


def test_the_gain_of_the_teacher_is_told_with_its_interval():
    run = {"student": "googlenet", "epochs": 10, "batch_size": 128, "teacher": "t", "data": "d"}
    runs = [
        run | {"distill_loss": loss, "seed": seed, "val_accuracy": val, "test_accuracy": test}
        for loss, seed, val, test in (
            ("none", 0, 0.89, 0.88),
            ("none", 1, 0.91, 0.90),
            ("mse", 0, 0.90, 0.89),
            ("mse", 1, 0.92, 0.92),
        )
    ]
    # The gains are 1 and 2 points: 1.5 +- 12.706 * 0.5.
    assert tables.distillation(runs).splitlines()[2:] == [
        "| GoogLeNet, alone | 2 | 90.00 ± 1.41 | 89.00 ± 1.41 |  |",
        "| GoogLeNet, MSE between logits | 2 | 91.00 ± 1.41 | 90.50 ± 2.12 "
        "| +1.50 (-4.85 to +7.85) |",
    ]


def test_the_speed_is_shown_as_measured():
    run = {
        "ours": 1234.5,
        "plain": 100.4,
        "ratio": 12.34,
        "ratio_min": 9.876,
        "ratio_max": 14.0,
        "ours_peak_mb": 1250,
        "plain_peak_mb": 900,
    }
    runs = [{"subject": subject, **run} for subject in tables.SUBJECTS]
    first = tables.speed({"runs": runs}).splitlines()[2]
    assert [cell.strip() for cell in first.split("|")][2:7] == [
        "1,234",
        "100",
        "**12.3**",
        "9.88 to 14.00",
        "1,250 / 900",
    ]


def test_a_sweep_has_a_row_for_each_setting():
    run = {
        "subject": "data",
        "batch_size": 1024,
        "threads": 2,
        "images": None,
        "ours": 1234.5,
        "plain": 100.4,
        "ratio": 12.34,
        "ours_peak_mb": 1250,
        "plain_peak_mb": 900,
    }
    other = run | {"threads": None, "images": 45_000}
    rows = [
        [cell.strip() for cell in line.split("|")][2:9]
        for line in tables.sweep({"runs": [run, other]}).splitlines()[2:]
    ]
    assert rows == [
        ["1,024", "2", "", "1,234", "100", "12.3", "1,250 / 900"],
        ["1,024", "", "45,000", "1,234", "100", "12.3", "1,250 / 900"],
    ]


def test_a_trained_selector_is_told_with_its_intervals():
    row = {
        "labels": "train",
        "weighted": True,
        "depth": 3,
        "batch_norm": False,
        "accuracy": {"mean": 0.9061, "std": 0.001, "interval": [0.9002, 0.9116]},
        "auroc": {"mean": 0.5123, "std": 0.0104, "interval": [0.461, 0.563]},
        "share_densenet121": {"mean": 0.254, "std": 0.1},
        "runs": [{"mcnemar_p": 0.91}, {"mcnemar_p": 0.034}],
    }
    line = tables.selectors({"variants": [row]}).splitlines()[2]
    assert [cell.strip() for cell in line.split("|")][1:8] == [
        "train, weighted",
        "3, no batch norm",
        "90.61 (90.0 to 91.2)",
        "0.512 (0.46 to 0.56)",
        "0.010",
        "25 %",
        "0.034 to 0.91",
    ]


def test_every_subject_of_the_benchmarks_has_a_row():
    assert set(tables.SUBJECTS) == set(SUBJECTS)


def test_the_command_of_a_checkpoint_tells_what_it_started_from():
    recipe = {"init": None, "epochs": 12, "lr": 0.002, "seed": 1}
    info = {"arch": "googlenet", "hyperparameters": recipe}
    assert tables.command("googlenet", info) == "python StudentTrain.py --model 2"
    recipe["init"] = "0123456789ab"
    assert tables.command("googlenet", info) == (
        "python StudentTrain.py --model 2 --init FIRST.pth --epochs 12 --lr 0.002 --seed 1"
    )


def test_the_flat_table_has_each_network_and_policy_once_with_its_sizes():
    with open(ROOT / "results" / "all.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    keys = [
        tuple(row[key] for key in ("name", "context", "stem", "seed", "source")) for row in rows
    ]
    assert len(set(keys)) == len(keys) > 90
    by_key = dict(zip(keys, rows, strict=True))
    teacher = by_key["teacher", "clean", "cifar-pool", "0", "metrics.json"]
    assert teacher["parameters"] == "23520842"  # of torchvision's, with ten classes and this stem
    assert 2 * 23520842 < int(teacher["bytes"]) < 2.01 * 23520842  # half precision, and statistics
    routed, student, other = (
        by_key[name, "degraded", "cifar-pool", "", "contexts.json"]
        for name in ("selector", "densenet121", "googlenet")
    )
    assert int(other["macs"]) < int(routed["macs"]) < 1.1 * int(student["macs"])
    assert int(routed["parameters"]) > int(student["parameters"]) + int(other["parameters"])
