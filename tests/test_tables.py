"""The README files agree with the results and the weights."""

import hashlib
import re
from pathlib import Path

import pytest
from programs import rows

from models import Selector
from studies import tables
from utils.checkpoint import save_checkpoint

ROOT = Path(__file__).resolve().parent.parent


def cells(table, row=2):
    return [cell.strip() for cell in table.splitlines()[row].split("|")][1:-1]


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


@pytest.mark.parametrize("title, table", [("Results", "results"), ("Who should answer", "routing")])
def test_a_percentage_in_the_prose_beside_a_table_is_a_measured_one(title, table):
    measured = tables.stored({"results": "metrics"}.get(table, table))
    text = (ROOT / "docs" / "results.md").read_text()
    section = text.split(f"# {title}\n")[1].split("\n## ")[0]
    before, after = re.split(rf"<!-- {table}.*<!-- end of {table} -->", section, flags=re.DOTALL)
    assert not_measured(before + after, measured) == []
    assert not_measured(f"{before}, once 12.3456 %", measured) == ["12.3456"]


def test_what_was_not_measured_is_left_blank():
    metrics, wide = tables.stored("metrics"), tables.stored("cifar/metrics")
    for table in metrics.values():
        if isinstance(table, dict):
            table.pop("teacher", None)
    row = cells(tables.results(metrics, wide))
    assert row[:4] == ["teacher, ResNet-50", "81", "", ""]


def test_reductions_by_hand():
    metrics = {"macs_per_image": {"routed": 325.8e6 / 4, "cascade": 325.8e6 / 5}}
    sizes = {"densenet121": 7e6, "googlenet": 5e6, "cnn": 1e6, "selector": 13e6}
    rows = [{"system": name, "bytes": size} for name, size in sizes.items()]
    deployed = [row | {"runtime": "ONNX int8"} for row in rows]
    table = tables.compression(metrics, "cifar-pool", [*deployed, rows[0] | {"runtime": "PyTorch"}])
    rows = {row[0]: row for row in (cells(table, k) for k in range(2, len(table.splitlines())))}
    # 6.96 of 23.52 M parameters, 7.0 of 47.24 MB, 223.4 of 325.8 M MACs; published in brackets
    assert rows["DenseNet-121"][1] == "70.4 (87.3)"
    assert rows["DenseNet-121"][3:] == ["85.2", "31.4 (21.0)"]
    assert rows["DenseNet-121 + selector"][3] == "83.1"  # 8 MB: the selector has one
    assert rows["both + selector"][4] == "75.0"  # one student runs
    assert rows["cascade of all students"][3:] == ["72.5", "80.0"]  # 13 MB


def test_a_checkpoint_is_described_as_it_is(tmp_path):
    path = tmp_path / "selector.pth"
    made = {"depth": 1, "batch_norm": False, "augmentation": {"crop": 4, "flip": True}}
    made |= {"arch": "selector", "init": "0123456789ab"}
    save_checkpoint(path, Selector(1, False), made, 7, 0.5)
    text = tables.checkpoints([path])
    rows = dict(re.findall(r"^\| (.+?) \| (.*) \|$", text, re.MULTILINE))
    assert rows["parameters"] == "962"  # 32 x (3 x 9 + 1) in the block, 2 x (32 + 1) in the head
    assert rows["bytes"] == f"{path.stat().st_size:,}"
    assert rows["validation top-1, %"] == "50.00" and rows["test top-1, %"] == ""
    assert rows["`crop`"] == "4" and rows["`flip`"] == "True" and rows["`init`"] == made["init"]
    assert rows["epoch of the weights"] == "7" and "trainSelector.py" in rows["made by"]
    assert f"{hashlib.sha256(path.read_bytes()).hexdigest()}  selector.pth" in text.splitlines()


def test_the_flat_table_has_each_network_and_policy_once_with_its_sizes():
    all_rows = rows(ROOT / "results" / "all.csv")
    keys = [
        tuple(row[key] for key in ("name", "context", "stem", "seed", "source")) for row in all_rows
    ]
    assert len(set(keys)) == len(keys) > 90
    by_key = dict(zip(keys, all_rows, strict=True))
    teacher = by_key["teacher", "clean", "cifar-pool", "0", "metrics.json"]
    assert teacher["parameters"] == "23520842"  # of torchvision's, with ten classes and this stem
    assert 2 * 23520842 < int(teacher["bytes"]) < 2.01 * 23520842  # half precision, and statistics
    routed, student, other = (
        by_key[name, "degraded", "cifar-pool", "", "contexts.json"]
        for name in ("selector", "densenet121", "googlenet")
    )
    assert int(other["macs"]) < int(routed["macs"]) < 1.1 * int(student["macs"])
    assert int(routed["parameters"]) > int(student["parameters"]) + int(other["parameters"])
