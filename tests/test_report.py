"""report.html: its text agrees with the numbers, and a browser shows what was measured."""

import base64
import html
import io
import re
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
ORIGIN = {
    "command": "python inference.py --out o\udcff",  # a name that is not UTF-8
    "versions": {"torch": "2"},
    "weights": {"teacher": "0123456789ab", "selector": "s"},
}
WORK = {"teacher": 300e6, "densenet121": 200e6, "googlenet": 100e6, "selector": 10e6, "cnn": 5e6}
SECOND = sorted(STUDENTS, key=WORK.get)[1]  # of the cascade


def logits_of(labels, right, generator):
    """Logits (N, 10): the largest is at the label if `right`, otherwise at another class."""
    shift = torch.randint(1, 10, (len(labels),), generator=generator)
    answer = torch.where(right, labels, (labels + shift) % 10)
    sure = 1 + 4 * torch.rand(len(labels), 1, generator=generator) + 2 * right[:, None]
    noise = torch.rand(len(labels), 10, generator=generator)
    return sure * torch.nn.functional.one_hot(answer, 10) + noise


def results_of(
    sample, scores="coin", contexts=("clean",), teacher=True, doubt=0.6, times=1, wrong=3
):
    """The results of simulated networks on the sample, repeated `times` times.

    Each student is wrong on `wrong` of 20 images. `scores` describes the selector: "coin" chooses
    at random, "knows" is better than chance, "worse" is worse, "context" follows the context: the
    first contexts are those where student 1 is wrong.
    """
    generator = torch.Generator().manual_seed(0)
    labels = sample.labels.repeat(times)
    turn = torch.arange(len(labels)) % 20
    first, second = turn >= wrong, (turn - 10) % 20 >= wrong
    logits = {
        "teacher": logits_of(labels, turn > 0, generator),
        "densenet121": logits_of(labels, first, generator),
        "googlenet": logits_of(labels, second, generator),
        **{arch: logits_of(labels, first & second, generator) for arch in STUDENTS[2:]},
    }
    better = first.float() - second.float()
    preferred = {"knows": 2 * better, "worse": -2 * better, "context": 9 * (turn - 9.5)}
    margin = preferred.get(scores, 0) + torch.randn(len(labels), generator=generator) / 2
    logits["selector"] = torch.stack([margin, torch.zeros(len(labels))], dim=1)
    if not teacher:
        del logits["teacher"]
    data = replace(CIFAR10, name="mine", classes=tuple(NAMES))
    test = Split(sample.images.repeat(times, 1, 1, 1), labels, np.arange(len(labels)), data)
    results = evaluate(
        Networks(logits, WORK, labels),
        {"selector": [0.5], "cascade": [*[0.92] * (len(STUDENTS) - 2), doubt]},
        dict.fromkeys(["teacher", *STUDENTS], 1.5),
        dict.fromkeys([*logits, "routed", "cascade"], 1.0),
        test,
        [contexts[k * len(contexts) // 20] for k in turn.tolist()],
    )
    context = "clean" if len(contexts) == 1 else "mixed"
    results.metrics = {"dataset": "<i>mine</i>", "context": context, **results.metrics, **ORIGIN}
    return results


# ------------------------------------------------------------------ the text

MANY = {"times": 20}
ALONE = {"times": 20, "doubt": 0.0}
CONTEXTS = {"scores": "context", "contexts": ("clean", "noise"), **ALONE}


@pytest.mark.parametrize(
    "options, headline, told",
    [
        (
            MANY,
            "The cascade is the best choice: {cascade}",
            "DenseNet-121 alone reaches {densenet121} at 67 %, the selector {routed} at 53 %, "
            "the teacher {teacher}. The selector chooses no better than a coin.",
        ),
        (MANY | {"teacher": False}, "The cascade is the best", "{routed} at 53 %. The selector"),
        (ALONE, "GoogLeNet alone is as good as any policy: {googlenet}", "no better than a coin."),
        (ALONE | {"scores": "worse"}, "GoogLeNet alone is as good", "chooses worse than a coin."),
        (ALONE | {"scores": "knows"}, "The selector is the best choice: {routed}", "better than"),
        (
            CONTEXTS,
            "The selector is the best choice: {routed}",
            "follows the context: 100 % of the “noise” and 0 % of the “clean”",
        ),
        ({"contexts": ("clean", "noise")}, "The ", "The selector hardly follows the context: "),
        ({"doubt": 0.0}, "1,000 images are too few to tell what is best.", "may differ by up to"),
        ({"wrong": 18}, "These networks are barely trained for these images.", "Train longer"),
    ],
)
def test_the_verdict_follows_from_accuracy_work_and_choices(sample, options, headline, told):
    results = results_of(sample, **options)
    accuracy, work = (results.metrics[key] for key in ("accuracy", "macs_per_image"))
    numbers = {
        name: f"{100 * accuracy[name]:.2f} % correct at {work[name] / 3e6:.0f} % of the teacher's"
        for name in ("cascade", "routed", "googlenet")
    }
    shares = {name: f"{100 * each:.2f} %" for name, each in accuracy.items()}
    said = verdict(results)
    assert said[0].startswith(headline.format(**numbers)) and told.format(**shares) in said[1]


def test_one_student_that_is_right_wherever_the_other_is_leaves_nothing_to_choose(sample):
    results = results_of(sample)
    results.nets.logits["densenet121"] = results.nets.logits["googlenet"]
    assert "There is nothing to choose" in verdict(results)[1]


# ------------------------------------------------------------------ the file


def test_the_pictures_are_of_every_kind_as_far_as_there_are(sample, monkeypatch):
    results = results_of(sample)
    first, second = results.nets.students_right(STUDENTS[:2])
    assert shown_places(results).tolist() == list(range(1000))  # up to PICTURES: all
    monkeypatch.setattr("evaluation.report.PICTURES", 700)
    places = shown_places(results)
    assert len(places) == 700 and places.tolist() == sorted(set(places.tolist()))
    apart = first != second
    assert apart.sum() == 300 and (~first & ~second).sum() == 0
    assert apart[places].sum() == 300  # all of this group; the rest is from the other group


def test_the_page_is_one_file_with_its_images(sample, tmp_path):
    results = results_of(sample)
    write_report(tmp_path / "report.html", results, "cpu, float32")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(page) < 4e6 and "{{" not in page.replace("${{", "")
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!x&gt;)\w+:""", page)
    assert page.count("</script>") == 2  # none from a class name
    assert "&lt;i&gt;mine" in page and "<i>mine" not in page
    thresholds = " ".join(["selector 0.5, cascade", *map(str, results.thresholds["cascade"])])
    origin = r"--out o\udcff", "cpu, float32", "0123456789ab", "temperature 1.50", thresholds
    assert all(html.escape(fact) in page for fact in origin)
    table = re.search("<noscript>.*</noscript>", page, re.DOTALL)[0]
    assert "<th>teacher, ResNet-50</th><td>95.00 %</td>" in table  # for readers without JavaScript
    jpeg = base64.b64decode(re.search(r"data:image/jpeg;base64,([\w+/=]+)", page)[1])
    sheet = np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)
    assert PICTURES == 1000 and sheet.shape == (25 * 32, 40 * 32, 3)
    tile = sheet[32 * 2 : 32 * 3, 32 * 7 : 32 * 8]
    assert np.abs(tile - sample.images[2 * 40 + 7].numpy()).mean() < 6


# ------------------------------------------------------------------ in a browser


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium and chromedriver here: apt-get install chromium chromium-driver")
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture
def opened(chromium, tmp_path):
    """A function that opens the page of given results. At the end, the console must be empty."""

    def opened(results, width=1280, height=800):
        write_report(tmp_path / "report.html", results, "cpu")
        size = {"height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        chromium.cdp("Emulation.setDeviceMetricsOverride", width=width, **size)
        chromium.cdp("Emulation.setEmulatedMedia", media="", features=[])
        chromium.post("/url", url=(tmp_path / "report.html").as_uri())
        return chromium

    yield opened
    assert chromium.post("/se/log", type="browser") == []


def texts(page, selector):
    script = "return [...document.querySelectorAll(arguments[0])].map((each) => each.textContent)"
    return [each.replace("\N{NO-BREAK SPACE}", " ") for each in page.run(script, selector)]


def text(page, identifier):
    return texts(page, f"#{identifier}")[0]


def found(page):
    """Number of images that match the filters."""
    return int(text(page, "found").split()[0].replace(",", ""))


def check(page, outcome, where=slice(None)):
    """The cards show this outcome, on these images only."""
    right = outcome.right[where]
    assert sum(int(each or 0) for each in texts(page, "#matrix .right")) == right.sum()
    assert text(page, "accuracy") == f"{100 * right.double().mean():.2f} %"
    macs = sum(outcome.ran[arch][where].double().mean() * WORK[arch] for arch in STUDENTS)
    macs += WORK["selector"] if "selector" in text(page, "meaning") else 0
    assert text(page, "macs") == f"{macs / 1e6:.1f} million MACs"
    counted = "densenet121" if "selector" in text(page, "meaning") else SECOND
    share = outcome.ran[counted][where].double().mean()
    assert text(page, "value") == f"{100 * share:.1f} % of images"


def choose(page, name, value):
    page.run(
        f"const choice = document.querySelector('select[name={name}]'); choice.value = '{value}';"
        "choice.dispatchEvent(new Event('change', { bubbles: true }))"
    )


@pytest.mark.parametrize("options", [{"teacher": False}, CONTEXTS])
def test_the_slider_moves_over_the_share_of_images(sample, opened, options):
    results = results_of(sample, **options)
    page = opened(results)
    assert texts(page, "h1") == [verdict(results)[0]]
    for policy, name in (("selector", "routed"), ("cascade", "cascade")):
        page.click(f"[name=policy][value={policy}]")
        check(page, results.outcomes[name])
        thresholds = results.thresholds[policy]
        told = ", ".join(f"{each:g}" for each in thresholds)
        assert text(page, "threshold") == f"threshold {told}"
        positions = results.nets.along(policy, [thresholds])
        page.run("document.getElementById('slider').focus()")
        for key, place in (("home", 0), ("right", 1), ("right", 2), ("end", -1), ("left", -2)):
            page.press(key)
            check(page, results.nets.run(policy, positions[place]))
        page.click("#saved button")
        check(page, results.outcomes[name])


def test_the_address_keeps_the_state(sample, opened):
    results = results_of(sample)
    page = opened(results)
    page.click("[name=policy][value=cascade]")
    page.run("change({ cascade: 70 })")
    choose(page, "label", "3")
    told = text(page, "accuracy"), found(page)
    page.wait("return location.hash.includes('label=3')")
    page.post("/refresh")
    assert page.run("return [state.policy, state.cascade]") == ["cascade", 70]
    assert (text(page, "accuracy"), found(page)) == told
    page.run("location.hash = '#policy=none&cascade=x&kind=7&label=nothing'")
    page.wait("return !location.hash.includes('none')")
    assert found(page) == len(sample)  # what is not possible is ignored


def test_everything_follows_the_context(sample, opened):
    results = results_of(sample, "context", ("clean", "noise"))
    page = opened(results)
    kinds = list(results.metrics["per_context"])
    page.click("[name=policy][value=selector]")
    for kind in ("noise", "clean"):
        where = torch.tensor([each == kind for each in results.seen])
        page.click(f"#shares button:nth-child({kinds.index(kind) + 2})")
        check(page, results.outcomes["routed"], where)
        assert found(page) == where.sum()
        accuracy = 100 * results.nets.right("teacher")[where].double().mean()
        assert f"teacher: accuracy {accuracy:.2f}\N{NO-BREAK SPACE}%" in page.run(
            "return document.getElementById('drawing').ariaLabel"
        )
        pictured = page.run("return shown.map((at) => data.places[at])")
        assert where[pictured].all()
    choose(page, "by", "densenet121")
    page.click("#shares button:first-child")
    assert found(page) == results.outcomes["routed"].ran["densenet121"].sum()


def test_filters_let_through_what_they_say(sample, opened):
    results = results_of(sample)
    page, labels = opened(results), sample.labels
    page.click("[name=policy][value=selector]")
    first, second = results.nets.students_right(STUDENTS[:2])
    outcome = results.outcomes["routed"]
    to_first = outcome.ran["densenet121"]
    for name, value, where in (
        ("label", "3", labels == 3),
        ("prediction", "4", results.predictions["routed"].labels == 4),
        ("right", "densenet121", first & ~second),
        ("right", "wrong", ~outcome.right),
        ("by", "densenet121", to_first),
    ):
        choose(page, name, value)
        assert found(page) == where.sum(), name
        page.click("#clear")
        assert found(page) == len(labels)
    choose(page, "label", "3")
    choose(page, "by", "googlenet")
    some = (labels == 3) & ~to_first
    assert found(page) == some.sum()
    assert f"selector {100 * outcome.right[some].double().mean():.1f} %" in text(page, "found")
    page.click("#clear")
    assert len(texts(page, "#grid button")) == 60
    page.click("#more")
    assert len(texts(page, "#grid button")) == 180


def test_a_cell_of_the_matrix_shows_its_images(sample, opened):
    results = results_of(sample)
    page, predictions = opened(results), results.predictions["routed"].labels
    page.click("[name=policy][value=selector]")
    assert tuple(texts(page, "#matrix thead th")) == NAMES
    assert texts(page, "#matrix b, #filters b, h1 i, img") == []
    page.click("[data-at='2 2']")
    assert found(page) == ((sample.labels == 2) & (predictions == 2)).sum() > 0
    assert page.run("return document.querySelector('[name=label]').value") == "2"
    page.press("right")
    page.press("enter")
    assert found(page) == ((sample.labels == 2) & (predictions == 3)).sum()
    page.press("enter")  # the second press removes the filter
    assert found(page) == len(sample)
    assert len(texts(page, "#matrix [tabindex='0']")) == 1


@pytest.mark.parametrize("policy", ["selector", "cascade"])
def test_an_image_opens_with_all_probabilities_and_the_route(sample, opened, policy):
    results = results_of(sample)
    page, name = opened(results), "routed" if policy == "selector" else "cascade"
    page.click(f"[name=policy][value={policy}]")
    page.run("document.querySelector('#grid [data-picture=\"5\"]').focus()")
    page.press("enter")
    for at in (5, 6):
        told = text(page, "image")
        for network in ("teacher", *STUDENTS):
            assert f"{100 * results.predictions[network].probabilities[at]:.1f} %" in told, network
        outcome, thresholds = results.outcomes[name], results.thresholds[policy]
        prediction, last = results.predictions[name].labels[at], int(outcome.choice[at])
        step = min(last, len(thresholds) - 1)
        side = "at least" if step == last else "below"
        answered = results.nets.system(policy, thresholds).names[last]
        who = page.run("return name(arguments[0])", answered)
        assert " ".join(text(page, "route").split()).endswith(
            f", {side} the threshold of {thresholds[step]}: {who} answers {NAMES[prediction]}, "
            f"which is {'right' if outcome.right[at] else 'wrong'}."
        )
        assert text(page, "image-title") == NAMES[sample.labels[at]]
        page.press("right")
    page.press("escape")
    page.wait("return document.activeElement.dataset.picture === '7'")


def test_a_point_says_what_it_is_and_a_click_moves_the_slider_there(sample, opened):
    results = results_of(sample)
    page = opened(results)
    place = """
        const place = places.find(({ result }) => result.system === arguments[0]
          && result.position === (arguments[1] ?? undefined));
        const box = document.getElementById("plot").getBoundingClientRect();
        return [place.x + box.left, place.y + box.top];
    """
    x, y = page.run(place, "teacher")
    page.cdp("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    assert f"{100 * results.metrics['accuracy']['teacher']:.2f} % correct" in text(page, "tip")
    assert "100 % of the teacher's MACs (300.0 million)" in text(page, "tip")
    x, y = page.run(place, "cascade", 90)
    for kind in ("mousePressed", "mouseReleased"):
        page.cdp("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    assert page.run("return [state.policy, state.cascade]") == ["cascade", 90]


def test_the_first_screen_shows_the_chart_pictures_and_the_slider(sample, opened):
    bottom = "return document.querySelector(arguments[0]).getBoundingClientRect().bottom"
    results = results_of(sample, "context", ("clean", "noise", "blur", "dark"))
    page = opened(results)
    assert page.run(bottom, "#plot") < page.run(bottom, "#grid button") < 800
    page = opened(results, 390, 844)
    assert page.run(bottom, "#slider") < 844
    assert page.run("return document.documentElement.scrollWidth") <= 390


def test_the_page_is_printed_dark_on_white(sample, opened):
    page = opened(results_of(sample))
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    page.cdp("Emulation.setEmulatedMedia", media="print", features=dark)
    style = "const style = getComputedStyle(document.querySelector(arguments[0])); return "
    assert page.run(f"{style} style.color", "body") == "rgb(26, 26, 26)"
    picture = page.run(f"{style} [style.printColorAdjust, style.backgroundImage]", ".picture")
    assert picture[0] == "exact" and picture[1].startswith('url("data:image/jpeg;base64')


@pytest.mark.parametrize("width", [1280, 390])
def test_no_label_of_the_chart_covers_a_marker_or_another_label(sample, opened, width):
    page = opened(results_of(sample), width)
    covers = """
        change({ cascade: arguments[0] });
        const boxes = (kind) => [...document.querySelectorAll(`#plot ${kind}`)];
        const [labels, markers] = [boxes(".label"), boxes(".marker")].map((each) =>
          each.map((element) => element.getBoundingClientRect()));
        const overlap = (p, t) =>
          p.left < t.right && t.left < p.right && p.top < t.bottom && t.top < p.bottom;
        return labels.some((p) => [...labels, ...markers].some((t) => t !== p && overlap(p, t)));
    """
    assert not any(page.run(covers, position) for position in range(0, 101, 10))
