"""report.html: its text agrees with the numbers, and a browser shows what was measured."""

import base64
import html
import io
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from browser import CHROMIUM, DRIVER, browser
from PIL import Image

from evaluation.policies import Networks
from evaluation.report import PICTURES, shown_places, verdict, write_report
from evaluation.testset import evaluate
from models import STUDENTS
from utils.data import CIFAR10, Split

NAMES = ("</script><b>", "a & b", "'quote\"", "dog", "<img src=x>", "six", "7", "a", "b", "none")
WEIGHTS = {"teacher": "0123456789ab", "densenet121": "d", "googlenet": "g", "selector": "s"}
WORK = {"teacher": 300e6, "densenet121": 200e6, "googlenet": 100e6, "selector": 10e6}


def logits_of(labels, right, generator):
    """Logits (N, 10): the largest is at the label if `right`, otherwise at another class."""
    shift = torch.randint(1, 10, (len(labels),), generator=generator)
    answer = torch.where(right, labels, (labels + shift) % 10)
    sure = 1 + 4 * torch.rand(len(labels), 1, generator=generator) + 2 * right[:, None]
    noise = torch.rand(len(labels), 10, generator=generator)
    return sure * torch.nn.functional.one_hot(answer, 10) + noise


def results_of(sample, scores="coin", contexts=("clean",), teacher=True, threshold=0.5, doubt=0.6):
    """The results of simulated networks on the sample.

    Each student is right on 85 % of the images. `scores` describes the selector: "coin" chooses at
    random, "knows" is better than chance, "worse" is worse than chance.
    """
    generator = torch.Generator().manual_seed(0)
    count, labels = len(sample), sample.labels
    turn = torch.arange(count) % 20
    first, second = turn >= 3, (turn < 14) | (turn > 16)
    logits = {
        "teacher": logits_of(labels, turn > 0, generator),
        "densenet121": logits_of(labels, first, generator),
        "googlenet": logits_of(labels, second, generator),
    }
    better = first.float() - second.float()
    size = {"coin": 0.0, "knows": 2.0, "worse": -2.0}[scores]
    scores = size * better + torch.randn(count, generator=generator)
    logits["selector"] = torch.stack([scores, torch.zeros(count)], dim=1)
    if not teacher:
        del logits["teacher"]
    seen = [contexts[k % len(contexts)] for k in range(count)]
    test = Split(
        sample.images, labels, np.arange(count), replace(CIFAR10, name="mine", classes=tuple(NAMES))
    )
    results = evaluate(
        Networks(logits, {name: WORK[name] for name in logits}, labels),
        {"selector": [threshold], "cascade": [doubt]},
        dict.fromkeys(["teacher", *STUDENTS], 1.5),
        dict.fromkeys([*logits, "routed", "cascade"], 1.0),
        test,
        seen,
    )
    context = "clean" if len(contexts) == 1 else "mixed"
    results.metrics = {"dataset": "<i>mine</i>", "context": context, **results.metrics}
    return results


# ------------------------------------------------------------------ the text


def test_a_command_with_a_name_that_is_not_utf_8_is_shown(sample, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["inference.py", "--out", "o\udcff"])
    write_report(tmp_path / "report.html", results_of(sample), "cpu", WEIGHTS)
    assert r"o\udcff" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "scores, doubt, expected",
    [
        ("coin", 1.01, "is no better than a coin. Use the cascade: it is more accurate."),
        ("coin", 0.0, "is no better than a coin. Use the cascade: it costs {saved:.0f} % less"),
        ("worse", 1.01, "is no better than a coin. Use the cascade: it is more accurate."),
        (
            "knows",
            0.0,
            "works: it is {gain:.1f} points more accurate than the better student. "
            "The cascade is less",
        ),
    ],
)
def test_the_headline_follows_from_the_numbers(sample, scores, doubt, expected):
    results = results_of(sample, scores, doubt=doubt)
    accuracy = results.metrics["accuracy"]
    gain = 100 * (accuracy["routed"] - accuracy["better_student"])
    work = results.metrics["macs_per_image"]
    saved = 100 * (1 - work["cascade"] / work["routed"])
    assert f"the selector {expected.format(gain=gain, saved=saved)}" in verdict(results)[0]


def test_a_cascade_as_good_and_hardly_cheaper_is_not_proposed(sample):
    results = results_of(sample, threshold=1.01, doubt=0.0)  # GoogLeNet answers for both
    assert verdict(results)[0].endswith(" The cascade's accuracy does not differ significantly.")


def test_a_selector_that_tells_and_does_not_gain_is_called_so(sample):
    results = results_of(sample, "knows", threshold=1.01)  # sends all images to student 2
    assert "the selector beats chance, but not the better student" in verdict(results)[0]


def test_the_numbers_of_the_text_are_those_of_the_metrics(sample):
    for teacher in (True, False):
        results = results_of(sample, teacher=teacher)
        said = " ".join(verdict(results)[1].values())
        for name in ("routed", "cascade", "better_student", "oracle", *["teacher"] * teacher):
            assert f"{100 * results.metrics['accuracy'][name]:.2f} %" in said, name
        assert ("The teacher" in said) == teacher


def test_the_text_names_the_contexts_that_are_told_apart_most(sample):
    results = results_of(sample, "knows", ("clean", "noise", "blur"))
    contexts = results.metrics["per_context"]
    shares = {kind: each["sent"]["densenet121"] / each["images"] for kind, each in contexts.items()}
    said = verdict(results)[1]["When a selector helps."]
    low, high = (100 * each(shares.values()) for each in (min, max))
    assert "3 contexts" in said and f"{low:.0f} %" in said and f"{high:.0f} %" in said
    assert "--context mixed" in verdict(results_of(sample))[1]["When a selector helps."]


def test_one_student_that_is_right_wherever_the_other_is_leaves_nothing_to_choose(sample):
    results = results_of(sample)
    results.nets.logits["densenet121"] = results.nets.logits["googlenet"]
    assert "There is nothing to choose" in verdict(results)[1]["How well the selector chooses."]


# ------------------------------------------------------------------ the file


def test_the_pictures_are_of_every_kind_as_far_as_there_are(sample, monkeypatch):
    results = results_of(sample)
    first, second = results.nets.students_right()
    assert shown_places(results).tolist() == list(range(1000))  # up to PICTURES: all
    monkeypatch.setattr("evaluation.report.PICTURES", 700)
    places = shown_places(results)
    assert len(places) == 700 and places.tolist() == sorted(set(places.tolist()))
    apart = first != second
    assert apart.sum() == 300 and (~first & ~second).sum() == 0
    assert apart[places].sum() == 300  # all of this group; the rest is from the other group


def test_the_page_is_one_file_with_its_images(sample, tmp_path):
    write_report(tmp_path / "report.html", results_of(sample), "cpu, float32", WEIGHTS)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(page) < 4e6 and "{{" not in page.replace("${{", "")
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!x&gt;)\w+:""", page)
    assert page.count("</script>") == 2  # none from a class name
    assert "&lt;i&gt;mine" in page and "<i>mine" not in page
    for fact in ("cpu, float32", "0123456789ab", "temperature 1.50", "selector 0.50, cascade 0.60"):
        assert html.escape(fact) in page
    jpeg = base64.b64decode(re.search(r"data:image/jpeg;base64,([\w+/=]+)", page)[1])
    sheet = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)
    assert PICTURES == 1000 and sheet.shape == (25 * 32, 40 * 32, 3)
    tile = sheet[32 * 2 : 32 * 3, 32 * 7 : 32 * 8]
    assert np.abs(tile - sample.images[2 * 40 + 7].numpy()).mean() < 6


# ------------------------------------------------------------------ in a browser

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER),
    reason="no Chromium and chromedriver here: apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def opened(chromium, tmp_path):
    """A function that opens the page of given results. At the end, the console must be empty."""

    def opened(results, width=1100):
        write_report(tmp_path / "report.html", results, "cpu", WEIGHTS)
        size = {"height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        chromium.cdp("Emulation.setDeviceMetricsOverride", width=width, **size)
        chromium.post("/url", url=(tmp_path / "report.html").as_uri())
        return chromium

    yield opened
    assert chromium.log() == []


def text(page, identifier):
    return page.run(f"return document.getElementById('{identifier}').textContent")


def found(page):
    """Number of images that match the filters."""
    told = text(page, "found")
    return 0 if told.startswith("No image") else int(told.split()[0].replace(",", ""))


def choose(page, identifier, value):
    page.run(
        "const choice = document.getElementById(arguments[0]); choice.value = arguments[1];"
        "choice.dispatchEvent(new Event('change'))",
        identifier,
        value,
    )


@needs_browser
@pytest.mark.parametrize("teacher", [True, False])
def test_the_page_says_what_metrics_json_says_at_the_saved_thresholds(sample, opened, teacher):
    results = results_of(sample, threshold=0.37, doubt=0.58, teacher=teacher)
    page, metrics = opened(results), results.metrics
    for policy, name, threshold in (("selector", "routed", "0.37"), ("cascade", "cascade", "0.58")):
        page.click(f"[name=policy][value={policy}]")
        assert text(page, "value") == threshold
        assert text(page, "accuracy") == f"{100 * metrics['accuracy'][name]:.2f} %"
        assert text(page, "macs") == f"{metrics['macs_per_image'][name] / 1e6:.1f}"
        assert bool(text(page, "of-teacher")) == teacher
        share = 100 * results.outcomes[name].ran["densenet121"].double().mean().item()
        assert text(page, "share") == f"{share:.1f} %"
    assert metrics["route_share"]["densenet121"] == pytest.approx(
        results.outcomes["routed"].ran["densenet121"].double().mean().item()
    )


@needs_browser
def test_the_slider_moves_the_threshold_with_the_keyboard(sample, opened):
    results = results_of(sample, "knows")
    page = opened(results)
    page.run("document.getElementById('threshold').focus()")
    for _ in range(3):
        page.press("right")
    expected = results.nets.run("selector", [0.53])
    assert text(page, "value") == "0.53"
    assert text(page, "accuracy") == f"{100 * expected.right.double().mean().item():.2f} %"
    assert text(page, "macs") == f"{expected.macs / 1e6:.1f}"
    diagonal = page.run(
        "return [...document.querySelectorAll('#matrix .right')].map((each) => each.textContent)"
    )
    right = sum(int(each or 0) for each in diagonal)
    assert right == expected.right.sum()
    page.click("#saved")
    assert text(page, "accuracy") == f"{100 * results.metrics['accuracy']['routed']:.2f} %"


@needs_browser
def test_filters_let_through_what_they_say(sample, opened):
    results = results_of(sample, "coin", ("clean", "noise", "blur"))
    page, labels = opened(results), sample.labels
    first, second = results.nets.students_right()
    to_first = results.outcomes["routed"].ran["densenet121"]
    noisy = torch.tensor([each == "noise" for each in results.seen])
    kinds = list(results.metrics["per_context"])
    answer = results.predictions["routed"].labels
    for identifier, value, where in (
        ("filter-label", "3", labels == 3),
        ("filter-answer", "4", answer == 4),
        ("filter-kind", str(kinds.index("noise")), noisy),
        ("filter-right", "densenet121", first & ~second),
        ("filter-right", "not answer", ~results.outcomes["routed"].right),
        ("filter-by", "0", to_first),
    ):
        choose(page, identifier, value)
        assert found(page) == where.sum(), identifier
        page.click("#clear")
        assert found(page) == len(labels)
    choose(page, "filter-kind", str(kinds.index("noise")))
    choose(page, "filter-by", "1")
    some = noisy & ~to_first
    assert found(page) == some.sum()
    right = results.outcomes["routed"].right[some].double().mean().item()
    assert f"selector {100 * right:.1f} %" in text(page, "found")
    assert page.run("return document.querySelectorAll('#grid button').length") == 60
    page.click("#more")
    assert page.run("return document.querySelectorAll('#grid button').length") == min(
        180, some.sum()
    )


@needs_browser
def test_a_cell_of_the_matrix_shows_its_images(sample, opened):
    results = results_of(sample)
    page, answer = opened(results), results.predictions["routed"].labels
    heads = page.run(
        "return [...document.querySelectorAll('#matrix thead th')].map((each) => each.textContent)"
    )
    assert tuple(heads) == NAMES
    assert page.run("return document.querySelectorAll('#matrix b, #filters b, h1 i').length") == 0
    page.click("[data-row='2'][data-answer='2']")
    assert found(page) == ((sample.labels == 2) & (answer == 2)).sum() > 0
    assert page.run("return document.getElementById('filter-label').value") == "2"
    page.press("right")
    page.press("enter")
    assert found(page) == ((sample.labels == 2) & (answer == 3)).sum()
    page.press("enter")  # the second press removes the filter
    assert found(page) == len(sample)
    assert page.run("return document.querySelectorAll('#matrix [tabindex=\"0\"]').length") == 1


@needs_browser
@pytest.mark.parametrize("policy", ["selector", "cascade"])
def test_an_image_opens_with_all_probabilities_and_the_route(sample, opened, policy):
    results = results_of(sample)
    page = opened(results)
    page.click(f"[name=policy][value={policy}]")
    page.run("document.querySelector('#grid [data-at=\"5\"]').focus()")
    page.press("enter")
    assert page.run("return document.getElementById('image').open")
    told = text(page, "image")
    for name in ("teacher", *STUDENTS):
        assert f"{100 * results.predictions[name].probabilities[5]:.1f} %" in told, name
    given = results.predictions["routed" if policy == "selector" else "cascade"].labels[5]
    assert f"The answer is {NAMES[given]}." in told
    first = results.outcomes["routed" if policy == "selector" else "cascade"].ran["densenet121"][5]
    route = {
        ("selector", True): "the threshold is 0.50: DenseNet-121 answers.",
        ("selector", False): "the threshold is 0.50: GoogLeNet answers.",
        ("cascade", True): "below the threshold of 0.60: mean of both students' logits answers.",
        ("cascade", False): "at least the threshold of 0.60: GoogLeNet answers.",
    }[policy, bool(first)]
    assert route in text(page, "route")
    page.press("escape")
    assert not page.run("return document.getElementById('image').open")
    assert page.run("return document.activeElement.dataset.at") == "5"


@needs_browser
def test_a_phone_needs_no_scrolling_to_the_side(sample, opened):
    page = opened(results_of(sample), width=375)
    assert page.run("return document.documentElement.scrollWidth") <= 375


@needs_browser
@pytest.mark.parametrize("width", [1100, 375])
def test_no_label_of_the_chart_covers_a_marker_or_another_label(sample, opened, width):
    page = opened(results_of(sample), width)
    for policy in ("selector", "cascade"):
        page.click(f"[name=policy][value={policy}]")
        for threshold in (0, 0.2, 0.4, 0.6, 0.8, 1.01):
            covered = page.run(
                """
                const slider = document.getElementById("threshold");
                slider.value = arguments[0];
                slider.dispatchEvent(new Event("input"));
                const boxes = (kind) =>
                  [...document.querySelectorAll(`#plot ${kind}`)].map((each) => {
                    const box = each.getBoundingClientRect();
                    return { name: each.textContent, ...box.toJSON() };
                  });
                const labels = boxes("text[style]");
                const other = [...labels, ...boxes("path[transform]")];
                const overlap = (p, t) =>
                  p.left < t.right && t.left < p.right && p.top < t.bottom && t.top < p.bottom;
                return labels.flatMap((p) =>
                  other.filter((t) => t !== p && overlap(p, t)).map((t) => [p.name, t.name]));
                """,
                threshold,
            )
            assert not covered, (policy, threshold)
