"""The policies on eight images by hand, and on the real networks those of inference.py."""

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from models import Cascade, MultiStudent
from utils import cli, figures, routing_study, selector_study
from utils.answers import predict
from utils.checkpoint import FILES, load_network
from utils.data import fingerprint, load_sample, load_splits
from utils.routing_study import Networks, cascade, curve, oracle, report, selector
from utils.selector_study import Variant

ROOT = Path(__file__).resolve().parent.parent
CAT, DOG, BOTH = [4.0, 0.0], [0.0, 4.0], [0.5, 0.0]  # sure of 0, sure of 1, 0 by a little: 0.62
WORK = {"resnet50": 1000, "densenet121": 500, "googlenet": 200, "selector": 10}


@pytest.fixture
def nets():
    """Eight images of class 0. Student 1 is right on 1 to 5, student 2 on 1, 2, 6 and 7."""
    return Networks(
        {
            "resnet50": torch.tensor([CAT] * 7 + [DOG]),
            "densenet121": torch.tensor([CAT] * 5 + [DOG] * 3),
            "googlenet": torch.tensor([CAT, BOTH, DOG, [0.0, 0.5], DOG, CAT, BOTH, DOG]),
            "selector": torch.tensor([-9.0, -9, 1, 2, -1, -2, 3, -9]),
        },
        WORK,
        torch.zeros(8, dtype=torch.long),
    )


def test_the_selector_sends_each_image_to_one_student(nets):
    outcome = selector(nets, 0.5)  # images 3, 4 and 7 to student 1
    assert outcome.first_ran.tolist() == [False, False, True, True, False, False, True, False]
    assert outcome.right.tolist() == [True, True, True, True, False, True, False, False]
    assert outcome.macs == pytest.approx(10 + (3 * 500 + 5 * 200) / 8)
    everything, nothing = selector(nets, 0.0), selector(nets, 1.01)
    assert everything.right.sum() == 5 and everything.macs == 510
    assert nothing.right.sum() == 4 and nothing.macs == 210


def test_the_cascade_asks_both_where_the_second_is_not_sure(nets):
    outcome = cascade(nets, 0.9)  # images 2, 4 and 7: together right, right and wrong
    assert outcome.first_ran.tolist() == [False, True, False, True, False, False, True, False]
    assert outcome.right.tolist() == [True, True, False, True, False, True, False, False]
    assert outcome.macs == pytest.approx(200 + 3 * 500 / 8)
    assert cascade(nets, 0.0).macs == 200 and cascade(nets, 1.01).macs == 700


def test_the_oracle_runs_the_first_only_where_it_alone_is_right(nets):
    outcome = oracle(nets)
    assert outcome.first_ran.tolist() == [False, False, True, True, True, False, False, False]
    assert outcome.right.sum() == 7 and outcome.macs == pytest.approx((3 * 500 + 5 * 200) / 8)


def test_the_report_by_hand(nets):
    routing = report(nets, 0.5, 0.9)
    assert routing["images"] == 8
    assert routing["teacher"]["accuracy"] == 7 / 8
    assert routing["better_student"]["name"] == "densenet121"
    assert routing["better_student"]["accuracy"] == 5 / 8
    policies = routing["policies"]
    assert policies["random"]["accuracy"] == 4.5 / 8 and policies["random"]["macs"] == 350
    assert policies["selector"]["share_densenet121"] == 3 / 8
    # The selector is right alone on image 6, student 1 on image 5: as good, surely.
    assert policies["selector"]["mcnemar_p"] == 1.0
    # The oracle is right on two images more: two heads in two throws, or two tails.
    assert policies["oracle"]["mcnemar_p"] == 0.5
    # Where one is right, 3, 4, 5 against 6, 7, the scores are 1, 2, -1 and -2, 3: 3 of 6 pairs.
    assert policies["selector"]["auroc"] == pytest.approx(3 / 6)
    # By student 2's doubt, 3 and 5 tie with 6 and lose to 7, 4 beats 6 and ties with 7.
    assert policies["cascade"]["auroc"] == pytest.approx(2.5 / 6)
    right = routing["study"]["right"]
    assert right == {
        "both": 2 / 8, "densenet121 alone": 3 / 8, "googlenet alone": 2 / 8, "neither": 1 / 8,
    }  # fmt: skip
    assert math.isclose(sum(right.values()), 1)


def test_a_curve_goes_from_one_student_to_the_other(nets):
    line = curve([selector(nets, threshold) for threshold in routing_study.THRESHOLDS])
    assert (line["accuracy"][0], line["macs"][0]) == (5 / 8, 510)
    assert (line["accuracy"][-1], line["macs"][-1]) == (4 / 8, 210)
    assert line["macs"] == sorted(line["macs"], reverse=True)


def test_the_figure_shows_the_chosen_thresholds(nets, tmp_path):
    figure = figures.accuracy_against_work(report(nets, 0.5, 0.9))
    texts = {text.get_text() for text in figure.axes[0].texts}
    assert {"teacher, ResNet-50", "DenseNet-121", "GoogLeNet", "oracle", "mean of both"} <= texts
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert sorted(round(dot.get_ydata().item(), 3) for dot in dots) == [50.0, 62.5]
    figures.save(figure, tmp_path / "a.png")


def test_policies_on_logits_are_those_of_the_systems_that_run():
    sample = load_sample(60)
    nets = {arch: load_network(ROOT / "checkpoints" / FILES[arch])[0] for arch in list(FILES)[1:]}
    logits = {arch: predict(net, sample.images) for arch, net in nets.items()}
    told = Networks(logits, WORK, sample.labels)
    students = [nets["densenet121"], nets["googlenet"]]
    for system, outcome in (
        (MultiStudent(students, nets["selector"], 0.5), selector(told, 0.5)),
        (Cascade(students[::-1], 0.8), cascade(told, 0.8)),
    ):
        answers, choice = predict(system.eval(), sample.images)
        right = answers.argmax(dim=1) == sample.labels
        assert (right != outcome.right).sum() <= 1  # rounded otherwise in another batch
        ran = choice == (0 if isinstance(system, MultiStudent) else 1)
        assert (ran != outcome.first_ran).sum() <= 1


@pytest.fixture
def command(small_npz, tmp_path, monkeypatch, capsys):
    """The study with three small variants on so many images: its exit status and what it told."""

    def command(subset):
        variants = Variant("train"), Variant("out of fold"), Variant("held out", weighted=True)
        monkeypatch.setattr(selector_study, "VARIANTS", variants)
        monkeypatch.setattr(selector_study, "STEPS", 2)
        words = ["--data-dir", small_npz, "--out", tmp_path, "--device", "cpu", "--seeds", "2"]
        monkeypatch.setattr(sys, "argv", ["study.py", *map(str, words), "--subset", subset])
        with pytest.raises(SystemExit) as stop:
            cli.run(routing_study.main)
        return stop.value.code or 0, capsys.readouterr()

    return command


def test_too_few_images_to_tell_the_students_apart_are_refused(command, tmp_path):
    status, told = command("4")
    assert status == 2 and "is one student alone right: take more" in told.err
    assert not list(tmp_path.iterdir())


def test_answers_out_of_fold_that_lie_there_are_learned_from(command, small_npz, tmp_path):
    train = load_splits(small_npz, 400)[0]
    logits = torch.randn(2, 200, 10, generator=torch.Generator().manual_seed(0)).half().numpy()
    of = fingerprint([train.images, train.labels])
    np.savez(tmp_path / "out_of_fold.npz", of=of, logits=logits)
    status, told = command("400")
    assert status == 0 and "no answers out of fold" not in told.out
    trained = json.loads((tmp_path / "routing.json").read_text())["study"]["selectors"]
    assert [row["labels"] for row in trained["variants"]] == ["train", "out of fold", "held out"]
    assert trained["told"]["out of fold"]["images"] == 200


def test_the_command_writes_numbers_and_figures(command, tmp_path):
    status, told = command("400")
    assert status == 0 and "no answers out of fold" in told.out
    routing = json.loads((tmp_path / "routing.json").read_text())
    assert routing["images"] == 400
    trained = routing["study"]["selectors"]
    assert [row["labels"] for row in trained["variants"]] == ["train", "held out"]
    assert [len(row["runs"]) for row in trained["variants"]] == [2, 2]
    assert trained["told"]["held out"]["images"] == 30
    for name in ("routing.png", "selectors.png"):
        assert (tmp_path / name).stat().st_size > 10_000
