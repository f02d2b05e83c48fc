"""The policies on eight images, checked by hand, and the same results as inference.py."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import call

from evaluation.policies import TARGETS, assemble
from evaluation.significance import paired_interval
from models import STUDENTS, network
from studies import policies
from studies.figures import accuracy_against_work
from studies.policies import Networks, best_cut, curve, own_router, report
from utils.checkpoint import FILES, load_network
from utils.contexts import in_context
from utils.data import fingerprint, load_splits
from utils.files import UserError, read_json
from utils.logits import predict

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
CAT, DOG, BOTH = [4.0, 0.0], [0.0, 4.0], [0.5, 0.0]  # sure of 0, sure of 1, 0 by a little: 0.62
THRESHOLDS = {"selector": [0.5], "cascade": [0.9]}
WORK = {"teacher": 1000, "densenet121": 500, "googlenet": 200, "selector": 10}


@pytest.fixture
def nets(pair):
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


def bits(mask):
    return "".join(str(int(each)) for each in mask)


@pytest.mark.parametrize(
    "policy, threshold, first, second, right, work",
    [  # for each image: whether student 1 runs, whether student 2 does, and whether they are right
        ("selector", 0.5, "00110010", "11001101", "11110100", 10 + (3 * 500 + 5 * 200) / 8),
        ("selector", 0.0, "11111111", "00000000", "11111000", 510),
        ("selector", 1.01, "00000000", "11111111", "11000110", 210),
        ("cascade", 0.9, "01010010", "11111111", "11010100", 200 + 3 * 500 / 8),
        ("cascade", 0.0, "00000000", "11111111", "11000110", 200),
        ("cascade", 1.01, "11111111", "11111111", "11111100", 700),  # of equal logits, class 0
        ("more_confident", None, "11111111", "11111111", "11111000", 700),
        ("ensemble", None, "11111111", "11111111", "11111100", 700),
    ],
)
def test_who_runs_and_is_right_by_hand(nets, policy, threshold, first, second, right, work):
    outcome = nets.run(policy, [threshold])
    found = outcome.ran["densenet121"], outcome.ran["googlenet"], outcome.right
    assert [bits(each) for each in found] == [first, second, right]
    assert outcome.macs == pytest.approx(work)


def test_thresholds_of_the_selector_move_over_the_share_of_images(nets):
    positions = nets.along("selector", [[0.5]])
    assert positions[0] == [1.01] and positions[-1] == [0.0] and [0.5] in positions
    ran = [nets.run("selector", each).ran["densenet121"] for each in positions]
    assert [each.sum() for each in ran] == sorted(each.sum() for each in ran)
    assert [0.1] in nets.along("cascade", [[0.0], [0.1]])  # both send on no image
    assert bits(ran[25]) == "00010010"  # a fourth: image 7, then 3 or 4


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


def test_scores_tell_who_answers(monkeypatch):
    for constant in ("SELECTED", "STUDENTS"):
        monkeypatch.setattr(f"evaluation.policies.{constant}", ("a", "b", "c"))
    outputs = torch.randn(4, 400, 3, generator=torch.Generator().manual_seed(0))
    logits = dict(zip(("a", "b", "c", "selector"), outputs, strict=True))
    logits["selector"] *= torch.linspace(0, 99, 400)[:, None]  # up to probabilities of 1
    nets = Networks(logits, dict.fromkeys(logits, 1), torch.zeros(400).long())
    for policy in ("selector", "cascade"):
        for thresholds in ([0.4, 0.7], [0.9, 0.6], [0.0, 0.5], [1.0, 1.01]):
            scores = zip(nets.scores(policy, thresholds), thresholds, strict=True)
            reached = torch.stack([score >= t for score, t in scores] + [torch.ones(400) > 0])
            assert torch.equal(nets.run(policy, thresholds).choice, reached.int().argmax(dim=0))


def test_students_that_are_right_together_give_a_report_without_an_area(nets):
    nets.logits["densenet121"] = nets.logits["googlenet"]
    routing = report(nets, THRESHOLDS)
    assert "auroc" not in routing["policies"]["selector"]
    json.dumps(routing, allow_nan=False)


def test_the_report_by_hand(nets):
    routing = report(nets, THRESHOLDS)
    assert routing["images"] == 8 and routing["teacher"]["accuracy"] == 7 / 8
    better = {"name": "densenet121", "accuracy": 5 / 8}
    assert better.items() <= routing["better_student"].items()
    told = routing["policies"]
    assert told["random"]["accuracy"] == 4.5 / 8 and told["random"]["macs"] == 350
    assert told["selector"]["share_densenet121"] == 3 / 8
    # The selector is right alone on image 6, student 1 on image 5: as good, surely.
    assert told["selector"]["mcnemar_p"] == 1.0
    # The oracle is right on two images more: two heads in two throws, or two tails.
    assert told["oracle"]["mcnemar_p"] == 0.5
    # Where one is right, 3, 4, 5 against 6, 7, the scores are 1, 2, -1 and -2, 3: 3 of 6 pairs.
    assert told["selector"]["auroc"] == pytest.approx(3 / 6)
    alone = {"densenet121 alone": 3 / 8, "googlenet alone": 2 / 8}
    assert routing["study"]["right"] == {policies.BOTH: 2 / 8, **alone, "neither": 1 / 8}


def test_a_curve_includes_all_thresholds_that_are_saved_for_its_policy(nets):
    saved = THRESHOLDS | {"cascade_teacher": [0.61]}
    line = curve(nets, "cascade", saved)
    assert {0.0, 0.61, 0.9, 1.01} <= set(line["threshold"])
    assert (line["macs"][0], line["macs"][-1]) == (200, 700)


def test_the_figure_shows_the_chosen_thresholds_and_paired_intervals(nets):
    routing, cascade = report(nets, THRESHOLDS), nets.run("cascade", [0.9]).right
    right = {"teacher": nets.right("teacher"), "cascade": cascade}
    axes = accuracy_against_work(routing, right).axes[0]
    assert any("87.50 %, 25.0 points above DenseNet-121" in it.get_text() for it in axes.texts)
    dots = {line.get_marker(): line.get_xydata()[0].tolist() for line in axes.lines}
    assert dots["o"] == pytest.approx([322e-6, 62.5])  # the selector: five of eight
    assert dots["D"] == pytest.approx([388e-6, 50])  # the cascade
    ((bar,),) = (lines.get_segments() for lines in axes.collections)
    low, high = paired_interval(cascade, right["teacher"])
    assert bar[:, 1].tolist() == pytest.approx([87.5 + 100 * low, 87.5 + 100 * high])


def test_a_system_has_the_temperatures_of_its_networks(pair):
    facts = {"densenet121": {"temperature": 2.0}, "googlenet": {}, "selector": {}}
    nets = {arch: network("cnn") for arch in facts} | {"densenet121": network("resnet18")}
    for policy, expected in {
        "selector": [2.0, 1.0],
        "cascade": [1.0, 1.5],  # student 2, which has fewer MACs, and the mean of both
        "more_confident": [2.0, 1.0],
        "ensemble": [2.0, 1.5],  # student 1 never answers alone
        "densenet121": [2.0],
    }.items():
        parts = {arch: (nets[arch], facts[arch]) for arch in facts}
        assert assemble(policy, parts, nets, [0.5]).temperatures == expected


def test_the_target_names_the_thresholds_of_the_cascade():
    nets = {name: network("cnn").eval() for name in (*STUDENTS, "selector")}
    best, teacher = ([each] * (len(STUDENTS) - 1) for each in (0.8, 0.3))
    facts = {"cascade_thresholds": best, "cascade_teacher_thresholds": teacher}
    for target, thresholds in (("best", best), ("teacher", teacher)):
        parts = {name: (net, facts) for name, net in nets.items()}
        assert assemble(TARGETS[target], parts, nets).net.thresholds == thresholds
    del facts["cascade_teacher_thresholds"]
    with pytest.raises(UserError, match="--target teacher: run trainSelector.py"):
        assemble(TARGETS["teacher"], parts, nets)


# ------------------------------------------------------------------ the command


def test_the_shipped_logits_give_the_shipped_results(tmp_path):
    """Up to rounding: metrics.json may have been written on another processor."""
    (tmp_path / "logits.npz").symlink_to(RESULTS / "logits.npz")
    _, err = call("studies.policies", "--out", tmp_path, "--data-dir", "none")
    assert err == "" and (tmp_path / "routing.png").stat().st_size > 10_000
    made, shipped = (read_json(folder / "routing.json", dict) for folder in (tmp_path, RESULTS))
    metrics = read_json(RESULTS / "metrics.json", dict)
    assert made["policies"].keys() == shipped["policies"].keys()
    for name, facts in made["policies"].items():
        there = {"selector": "routed"}.get(name, name)
        assert facts["accuracy"] == pytest.approx(shipped["policies"][name]["accuracy"], abs=1e-4)
        assert facts["macs"] == pytest.approx(shipped["policies"][name]["macs"], rel=1e-3)
        assert facts["accuracy"] == pytest.approx(metrics["accuracy"][there], abs=1e-3)


def test_the_shipped_logits_are_of_the_shipped_weights():
    about = json.loads(str(np.load(RESULTS / "logits.npz")["about"]))
    shipped = {name: load_network(ROOT / "checkpoints" / file)[0] for name, file in FILES.items()}
    weights = {name: fingerprint(net.state_dict().values()) for name, net in shipped.items()}
    assert about["weights"] == weights, "run python -m studies.policies --collect"


@pytest.fixture(scope="module")
def collected(tmp_path_factory, small_npz):
    """A folder like a clone after --collect of the contexts system: results/ and data/.

    40 mixed images per split. The system has no teacher of its own.
    """
    folder = tmp_path_factory.mktemp("clone")
    (folder / "data").mkdir()
    (folder / "data" / "cifar10.npz").symlink_to(small_npz)
    system = ROOT / "checkpoints" / "contexts"
    assert not (system / "teacher.pth").exists()
    words = ["--collect", "--data-dir", small_npz, "--subset", "40", "--out", folder / "results"]
    call("studies.policies", *words, "--context", "mixed", "--checkpoint-dir", system)
    return folder


def test_the_logits_of_a_system_without_a_teacher_are_collected(collected, small_npz):
    _, *splits = load_splits(small_npz, 40)
    saved = np.load(collected / "results" / "logits.npz")
    assert saved["validation"] == 40 and "teacher" not in saved
    for name in ("labels", "indices"):
        expected = np.concatenate([np.asarray(getattr(each, name)) for each in splits])
        assert saved[name].tolist() == expected.tolist()
    images = torch.cat([in_context(split, "mixed").images for split in splits])
    for name in ("selector", "googlenet"):
        net = load_network(ROOT / "checkpoints" / "contexts" / f"{name}.pth")[0]
        expected = predict(net, images).numpy()
        assert saved[name].dtype == np.float16 and saved[name].shape == expected.shape
        assert abs(saved[name] - expected).max() < 0.03 * abs(expected).max()
    routing = read_json(collected / "results" / "routing.json", dict)
    right = saved["googlenet"][40:].argmax(axis=1) == saved["labels"][40:]
    assert routing["students"]["googlenet"]["accuracy"] == right.mean()
    assert (collected / "results" / "routing.png").exists()


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


def test_a_router_that_knows_is_the_oracle_and_the_selector_as_a_router_is_the_selector(
    pair, tmp_path
):
    val, test, _ = policies.collected(RESULTS / "logits.npz")
    path = tmp_path / "mine.npy"
    knows = torch.cat([each.students_right() for each in (val, test)], dim=1).T.long()
    np.save(path, knows.numpy())  # one column per student
    router = own_router(path, 50e6, val, test)
    oracle = report(test, THRESHOLDS)["policies"]["oracle"]
    assert router.items() >= (oracle | {"macs": oracle["macs"] + 50_000_000, "auroc": 1}).items()
    np.save(path, torch.cat([each.logits["selector"] for each in (val, test)]).numpy())
    selector = read_json(RESULTS / "routing.json", dict)["policies"]["selector"]
    router = own_router(path, 0, val, test)
    for name in ("auroc", "auroc_interval"):
        assert router[name] == pytest.approx(selector[name])


def test_the_page_on_routers_runs_as_printed(collected, monkeypatch):
    page = (ROOT / "docs" / "router.md").read_text()
    (script,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    monkeypatch.chdir(collected)
    exec(script, {})
    words = re.search(r"^python -m studies.policies (--scores .* --macs .*)$", page, re.MULTILINE)
    out, _ = call("studies.policies", *words[1].split())
    assert "\nyour router" in out


@pytest.mark.parametrize("scores", [np.zeros(79), np.array(["a"] * 80), np.full(80, np.nan)])
def test_scores_that_cannot_be_used_are_refused(collected, tmp_path, scores):
    path = tmp_path / "mine.npy"
    np.save(path, scores)
    words = "studies.policies", "--scores", path, "--out", collected / "results"
    out, err = call(*words, status=2)
    assert out == "" and len(err.splitlines()) == 1 and f"--scores {path}" in err
    path.write_bytes(b"PK")
    assert str(path) in call(*words, status=2)[1]
    assert "--macs" in call(*words, "--macs", "1e303", status=2)[1]


@pytest.mark.parametrize(
    "name, change",
    [
        ("googlenet", lambda logits: logits[1:]),
        ("googlenet", lambda logits: np.full_like(logits, np.nan)),
        ("labels", None),
        ("validation", lambda count: count + 40),
        ("about", lambda about: "{}"),
    ],
)
def test_logits_that_cannot_be_used_are_refused(collected, tmp_path, name, change):
    arrays = dict(np.load(collected / "results" / "logits.npz"))
    array = arrays.pop(name)
    np.savez(tmp_path / "logits.npz", **arrays, **{name: change(array)} if change else {})
    out, err = call("studies.policies", "--out", tmp_path, status=2)
    assert out == "" and len(err.splitlines()) == 1
    assert "logits.npz" in err and "studies.policies --collect --out" in err
