"""The policies on eight images, checked by hand, and the same results as inference.py."""

import json
import math
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluation import figures
from evaluation.policies import TARGETS, assemble
from models import STUDENTS, Selector, network
from studies import policies
from studies.figures import accuracy_against_work
from studies.policies import Networks, best_cut, curve, report
from utils import cli
from utils.checkpoint import FILES, load_network
from utils.contexts import in_context
from utils.data import fingerprint, load_splits
from utils.files import UserError
from utils.logits import predict

ROOT = Path(__file__).resolve().parent.parent
CAT, DOG, BOTH = [4.0, 0.0], [0.0, 4.0], [0.5, 0.0]  # sure of 0, sure of 1, 0 by a little: 0.62
THRESHOLDS = {"selector": [0.5], "cascade": [0.9]}
WORK = {"teacher": 1000, "densenet121": 500, "googlenet": 200, "selector": 10}


@pytest.fixture
def nets():
    """Eight images of class 0. Student 1 is correct on 1 to 5, student 2 on 1, 2, 6 and 7."""
    return Networks(
        {
            "teacher": torch.tensor([CAT] * 7 + [DOG]),
            "densenet121": torch.tensor([CAT] * 5 + [DOG] * 3),
            "googlenet": torch.tensor([CAT, BOTH, DOG, [0.0, 0.5], DOG, CAT, BOTH, DOG]),
            "selector": torch.tensor([[-9.0, -9, 1, 2, -1, -2, 3, -9], [0.0] * 8]).T,
        },
        WORK,
        torch.zeros(8, dtype=torch.long),
    )


def test_the_selector_sends_each_image_to_one_student(nets):
    outcome = nets.run("selector", [0.5])  # images 3, 4 and 7 to student 1
    assert outcome.ran["densenet121"].nonzero()[:, 0].tolist() == [2, 3, 6]
    assert outcome.right.tolist() == [True, True, True, True, False, True, False, False]
    assert outcome.macs == pytest.approx(10 + (3 * 500 + 5 * 200) / 8)
    everything, nothing = nets.run("selector", [0.0]), nets.run("selector", [1.01])
    assert everything.right.sum() == 5 and everything.macs == 510
    assert nothing.right.sum() == 4 and nothing.macs == 210


def test_the_cascade_asks_both_where_the_second_is_not_sure(nets):
    outcome = nets.run("cascade", [0.9])  # images 2, 4 and 7: together right, right and wrong
    assert outcome.ran["densenet121"].nonzero()[:, 0].tolist() == [1, 3, 6]
    assert outcome.right.tolist() == [True, True, False, True, False, True, False, False]
    assert outcome.macs == pytest.approx(200 + 3 * 500 / 8)
    assert outcome.ran["googlenet"].all()
    assert [nets.run("cascade", [each]).macs for each in (0.0, 1.01)] == [200, 700]


def test_the_oracle_runs_the_first_only_where_it_alone_is_right(nets):
    outcome = nets.oracle()
    assert outcome.ran["densenet121"].nonzero()[:, 0].tolist() == [2, 3, 4]
    assert outcome.right.sum() == 7 and outcome.macs == pytest.approx((3 * 500 + 5 * 200) / 8)


def test_thresholds_move_over_the_share_of_images(nets):
    selector, cascade = (nets.along(name, [each]) for name, each in THRESHOLDS.items())
    assert selector[0] == [1.01] and selector[-1] == [0.0] and [0.5] in selector
    assert cascade[0] == [0.0] and cascade[-1] == [1.01] and [0.9] in cascade
    for policy, positions in (("selector", selector), ("cascade", cascade)):
        ran = [nets.run(policy, each).ran["densenet121"].sum().item() for each in positions]
        assert ran == sorted(ran)
    # A fourth: image 7, then 3 or 4 of the selector; ties of the cascade go together.
    assert nets.run("selector", selector[25]).ran["densenet121"].nonzero()[:, 0].tolist() == [3, 6]


def test_thresholds_of_a_cascade_of_three_move_through_those_that_are_saved(monkeypatch):
    monkeypatch.setattr("evaluation.policies.STUDENTS", ("a", "b", "c"))
    logits = torch.randn(3, 400, 5, generator=torch.Generator().manual_seed(0))
    nets = Networks(
        dict(zip("abc", logits, strict=True)), {"a": 1, "b": 2, "c": 4}, torch.zeros(400).long()
    )
    saved = [[0.5, 0.6], [0.4, 0.3]]
    positions = nets.along("cascade", saved)
    assert positions[0] == [0, 0] and positions[-1] == [1.01, 1.01] and len(positions) == 103
    for k in (0, 1):
        assert [each[k] for each in positions] == sorted(each[k] for each in positions)
    assert all(each in positions for each in saved)
    outcomes = [nets.run("cascade", each) for each in positions]
    assert [outcome.macs for outcome in outcomes] == sorted(outcome.macs for outcome in outcomes)
    assert outcomes[0].macs == 1 and outcomes[-1].macs == 7


def test_students_that_are_right_together_give_a_report_without_an_area(nets):
    nets.logits["densenet121"] = nets.logits["googlenet"]
    routing = report(nets, THRESHOLDS)
    assert routing["study"]["auroc"] == {} and "auroc" not in routing["policies"]["selector"]
    json.dumps(routing, allow_nan=False)


def test_the_report_by_hand(nets):
    routing = report(nets, THRESHOLDS)
    assert routing["images"] == 8
    assert routing["teacher"]["accuracy"] == 7 / 8
    assert routing["better_student"]["name"] == "densenet121"
    assert routing["better_student"]["accuracy"] == 5 / 8
    told = routing["policies"]
    assert told["random"]["accuracy"] == 4.5 / 8 and told["random"]["macs"] == 350
    assert told["selector"]["share_densenet121"] == 3 / 8
    # The selector is right alone on image 6, student 1 on image 5: as good, surely.
    assert told["selector"]["mcnemar_p"] == 1.0
    # The oracle is right on two images more: two heads in two throws, or two tails.
    assert told["oracle"]["mcnemar_p"] == 0.5
    # Where one is right, 3, 4, 5 against 6, 7, the scores are 1, 2, -1 and -2, 3: 3 of 6 pairs.
    assert told["selector"]["auroc"] == pytest.approx(3 / 6)
    # By student 2's doubt, 3 and 5 tie with 6 and lose to 7, 4 beats 6 and ties with 7.
    assert told["cascade"]["auroc"] == pytest.approx(2.5 / 6)
    right = routing["study"]["right"]
    assert right == {
        "both": 2 / 8,
        "densenet121 alone": 3 / 8,
        "googlenet alone": 2 / 8,
        "neither": 1 / 8,
    }
    assert math.isclose(sum(right.values()), 1)


def test_a_curve_goes_from_one_student_to_the_other(nets):
    line = curve(nets, "selector", THRESHOLDS)
    assert line["threshold"][0] == 1.01 and line["threshold"][-1] == 0
    assert (line["accuracy"][0], line["macs"][0]) == (4 / 8, 210)
    assert (line["accuracy"][-1], line["macs"][-1]) == (5 / 8, 510)
    assert line["macs"] == sorted(line["macs"])


def test_the_figure_shows_the_chosen_thresholds(nets, tmp_path):
    routing = report(nets, THRESHOLDS)
    figure = accuracy_against_work(routing)
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {"teacher, ResNet-50", "DenseNet-121", "GoogLeNet", "mean of both"} <= texts
    assert "oracle: 87.50 %, 25.0 points above the better student" in texts
    dots = {
        line.get_marker(): round(line.get_ydata().item(), 3)
        for line in figure.axes[0].lines
        if line.get_marker() in "oD"
    }
    assert dots == {
        "o": round(100 * routing["policies"]["selector"]["accuracy"], 3),
        "D": round(100 * routing["policies"]["cascade"]["accuracy"], 3),
    }
    figures.save(figure, tmp_path / "a.png")


@pytest.mark.parametrize(
    "policy, expected",
    [
        ("selector", [2.0, 1.0]),
        ("cascade", [1.0, 1.5]),  # student 2, and the mean of both
        ("more_confident", [2.0, 1.0]),
        ("ensemble", [2.0, 1.5]),  # student 1 never answers alone
        ("densenet121", [2.0]),
    ],
)
def test_a_system_has_the_temperatures_of_its_networks(policy, expected):
    facts = {"densenet121": {"temperature": 2.0}, "googlenet": {}, "selector": {}}
    parts = {arch: (network(arch), facts[arch]) for arch in ("densenet121", "googlenet")}
    parts["selector"] = Selector(), {"thresholds": [0.5], "cascade_thresholds": [1.0]}
    system = assemble(policy, parts, {arch: net for arch, (net, _) in parts.items()})
    assert system.temperatures == expected


def test_the_target_names_the_thresholds_of_the_cascade():
    nets = {name: network("cnn").eval() for name in (*STUDENTS, "selector")}
    facts = {"cascade_thresholds": [0.8], "cascade_teacher_thresholds": [0.3]}
    for target, threshold in (("best", 0.8), ("teacher", 0.3)):
        parts = {name: (net, facts) for name, net in nets.items()}
        assert assemble(TARGETS[target], parts, nets).net.thresholds == [threshold]
    del facts["cascade_teacher_thresholds"]
    with pytest.raises(UserError, match="--target teacher: run trainSelector.py"):
        assemble(TARGETS["teacher"], parts, nets)


# ------------------------------------------------------------------ the command


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the program with these arguments: exit status and output."""

    def command(*words):
        monkeypatch.setattr(sys, "argv", ["policies.py", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.run(policies.main)
        return stop.value.code or 0, capsys.readouterr()

    return command


def test_the_shipped_logits_give_the_shipped_results(command, tmp_path):
    """Up to rounding: metrics.json may have been written on another processor."""
    (tmp_path / "logits.npz").symlink_to(ROOT / "results" / "logits.npz")
    status, told = command("--out", tmp_path, "--checkpoint-dir", "none", "--data-dir", "none")
    assert status == 0 and told.err == ""
    assert (tmp_path / "routing.png").stat().st_size > 10_000
    made, shipped = (
        json.loads((folder / "routing.json").read_text()) for folder in (tmp_path, ROOT / "results")
    )
    metrics = json.loads((ROOT / "results" / "metrics.json").read_text())
    made, shipped = (
        {"teacher": each["teacher"], **each["students"], **each["policies"]}
        for each in (made, shipped)
    )
    assert made.keys() == shipped.keys()
    for name, facts in made.items():
        there = {"selector": "routed"}.get(name, name)
        assert facts["accuracy"] == pytest.approx(shipped[name]["accuracy"], abs=1e-4)
        assert facts["macs"] == pytest.approx(shipped[name]["macs"], rel=1e-3)
        assert facts["accuracy"] == pytest.approx(metrics["accuracy"][there], abs=1e-3)
        if name != "oracle":
            assert facts["macs"] == pytest.approx(metrics["macs_per_image"][there], rel=0.01)


def test_the_shipped_logits_are_of_the_shipped_weights():
    with np.load(ROOT / "results" / "logits.npz") as file:
        about = json.loads(str(file["about"]))
    for file in FILES.values():
        net = load_network(ROOT / "checkpoints" / file)[0]
        assert about["weights"][file[:-4]] == fingerprint(net.state_dict().values()), (
            f"{file} is not what answered: run python -m studies.policies --collect"
        )


@pytest.fixture(scope="module")
def collected(tmp_path_factory, small_npz):
    """A folder like a clone after --collect: results/ and data/, with 40 images per split."""
    folder = tmp_path_factory.mktemp("clone")
    (folder / "data").mkdir()
    (folder / "data" / "cifar10.npz").symlink_to(small_npz)
    words = ["--collect", "--data-dir", small_npz, "--subset", "40", "--out", folder / "results"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["policies.py", *map(str, words)])
        policies.main()
    return folder


def test_what_the_networks_say_is_collected(collected, small_npz):
    _, val, test = load_splits(small_npz, 40)
    with np.load(collected / "results" / "logits.npz") as file:
        saved = dict(file)
    assert saved["validation"] == 40
    for name in ("labels", "indices"):
        expected = np.concatenate([np.asarray(getattr(each, name)) for each in (val, test)])
        assert saved[name].tolist() == expected.tolist()
    for name in ("selector", "googlenet"):
        net = load_network(ROOT / "checkpoints" / f"{name}.pth")[0]
        expected = predict(net, torch.cat([val.images, test.images])).numpy()
        assert saved[name].dtype == np.float16 and saved[name].shape == expected.shape
        assert abs(saved[name] - expected).max() < 0.03 * abs(expected).max()
    routing = json.loads((collected / "results" / "routing.json").read_text())
    right = saved["googlenet"][40:].argmax(axis=1) == saved["labels"][40:]
    assert routing["students"]["googlenet"]["accuracy"] == right.mean()


def test_a_system_for_several_contexts_is_collected_without_a_teacher_and_routed_by_scores(
    command, small_npz, tmp_path
):
    folder = ROOT / "checkpoints" / "contexts"
    assert not (folder / "teacher.pth").exists()
    words = ["--collect", "--data-dir", small_npz, "--subset", 40, "--context", "mixed"]
    status, _ = command(*words, "--checkpoint-dir", folder, "--out", tmp_path)
    assert status == 0 and (tmp_path / "routing.png").exists()
    val, test, _ = policies.collected(tmp_path / "logits.npz")
    assert sorted(test.logits) == ["densenet121", "googlenet", "selector"]
    images = in_context(load_splits(small_npz, 40)[2], "mixed").images
    expected = predict(load_network(folder / "googlenet.pth")[0], images)
    gap = (test.logits["googlenet"] - expected).abs().max()
    assert gap < 0.03 * expected.abs().max()  # of bf16
    np.save(tmp_path / "mine.npy", torch.cat([val.logits["selector"], test.logits["selector"]]))
    status, told = command("--scores", tmp_path / "mine.npy", "--out", tmp_path)
    assert status == 0 and "your router" in told.out and "teacher" not in told.out


# ------------------------------------------------------------------ a router of one's own


@pytest.mark.parametrize(
    "scores, first, second, cut",
    [
        ([1.0, 2.0, 3.0, 4.0], "0011", "1100", 3.0),
        ([4.0, 3.0, 2.0, 1.0], "0111", "1000", 1.0),  # all to student 1: three of four right
        ([1.0, 2.0, 3.0, 4.0], "0000", "1111", math.inf),
        ([1.0, 2.0, 2.0, 3.0], "0110", "1001", 2.0),  # equal scores are not parted
        ([1.0, 2.0, 3.0, 4.0], "0101", "0010", 4.0),  # as good as from 2 on, for less work
    ],
)
def test_the_best_cut_by_hand(scores, first, second, cut):
    right = ([each == "1" for each in text] for text in (first, second))
    assert best_cut(torch.tensor(scores), *map(torch.tensor, right)) == cut


def test_a_router_that_knows_is_the_oracle(command, tmp_path):
    val, test, _ = policies.collected(ROOT / "results" / "logits.npz")
    knows = torch.cat([each.students_right() for each in (val, test)], dim=1).T.long()
    np.save(tmp_path / "mine.npy", knows.numpy())  # one column per student
    words = ["--scores", tmp_path / "mine.npy", "--out", ROOT / "results"]
    rows = {}
    for more in ((), ("--macs", "50")):
        status, told = command(*words, *more)
        assert status == 0
        assert ("without the router: add its MACs with --macs" in told.out) == (not more)
        rows[more] = dict(re.findall(r"^(oracle|your router) +(.*)$", told.out, re.MULTILINE))
    accuracy, macs, share, area, p = rows[()]["your router"].split()
    assert [accuracy, macs, share, p] == rows[()]["oracle"].split() and area == "1.000"
    assert float(rows["--macs", "50"]["your router"].split()[1]) == float(macs) + 50


@pytest.mark.parametrize("macs", ["1e303", "inf", "nan", "-1"])
def test_a_cost_that_cannot_be_is_refused(command, macs):
    status, told = command("--scores", "mine.npy", "--macs", macs)
    assert status == 2 and "--macs" in told.err


def test_the_selector_as_a_router_is_the_selector(command, tmp_path):
    with np.load(ROOT / "results" / "logits.npz") as file:
        np.save(tmp_path / "mine.npy", file["selector"])
    status, told = command("--scores", tmp_path / "mine.npy", "--out", ROOT / "results")
    facts = json.loads((ROOT / "results" / "routing.json").read_text())["policies"]["selector"]
    low, high = facts["auroc_interval"]
    area = f"AUROC {facts['auroc']:.3f} (95 % interval {low:.3f} to {high:.3f}) on the"
    assert status == 0 and area in told.out


def test_the_page_on_routers_runs_as_printed(collected, command, monkeypatch):
    page = (ROOT / "docs" / "router.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(script.splitlines()) <= 10
    monkeypatch.chdir(collected)
    exec(script, {})
    words, _ = re.findall(r"^python -m studies.policies (--scores .*)$", page, re.MULTILINE)
    status, told = command(*words.split())
    assert status == 0 and "\nyour router" in told.out and "mine.npy: top-1" in told.out


@pytest.mark.parametrize(
    "content, told",
    [
        (None, "is missing"),
        (b"PK", "is damaged or not a .npy file"),
        (
            np.zeros((80, 1)),
            r"has shape \(80, 1\): 80 scores are needed, one for each of the 40",
        ),
        (np.array(["a"] * 80), "must contain numbers"),
        (np.full(80, np.nan), "80 of its scores are NaN or infinite"),
        (np.full(80, -np.inf), "80 of its scores are NaN or infinite"),
    ],
)
def test_scores_that_cannot_be_used_are_refused(collected, command, tmp_path, content, told):
    path = tmp_path / "mine.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    status, said = command("--scores", path, "--out", collected / "results")
    assert status == 2 and said.out == "" and len(said.err.splitlines()) == 1
    assert re.search(f"error: --scores {re.escape(str(path))}:? {told}", said.err)


@pytest.mark.parametrize(
    "name, change",
    [
        ("googlenet", lambda logits: logits[1:]),
        ("googlenet", lambda logits: logits[:, :1]),
        ("teacher", lambda logits: np.full_like(logits, np.nan)),
        ("teacher", lambda logits: logits.astype(int)),
        ("labels", lambda labels: labels - 1),
        ("labels", lambda labels: labels + 1),
        ("labels", lambda labels: labels + 0.5),
        ("labels", None),
        ("validation", lambda count: count + 40),
        ("about", lambda about: "{}"),
    ],
)
def test_logits_that_cannot_be_used_are_refused(collected, command, tmp_path, name, change):
    with np.load(collected / "results" / "logits.npz") as file:
        arrays = dict(file)
    array = arrays.pop(name)
    np.savez(tmp_path / "logits.npz", **arrays, **{name: change(array)} if change else {})
    status, said = command("--out", tmp_path)
    assert status == 2 and said.out == "" and len(said.err.splitlines()) == 1
    assert "logits.npz" in said.err and "studies.policies --collect --out" in said.err


@pytest.mark.parametrize("size", [None, 1000])
def test_a_missing_or_damaged_file_of_logits_is_named(collected, command, tmp_path, size):
    if size:
        content = (collected / "results" / "logits.npz").read_bytes()[:size]
        (tmp_path / "logits.npz").write_bytes(content)
    status, said = command("--out", tmp_path)
    assert status == 2 and "logits.npz is " in said.err and "--collect --out" in said.err


def test_labels_may_have_any_type_of_whole_numbers(collected, command, tmp_path):
    with np.load(collected / "results" / "logits.npz") as file:
        arrays = dict(file)
    np.savez(tmp_path / "logits.npz", **arrays | {"labels": arrays["labels"].astype(np.uint16)})
    assert command("--out", tmp_path)[0] == 0
