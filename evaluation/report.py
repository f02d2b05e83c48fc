"""report.html: the results on the test images as a single page that works offline."""

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.utils import make_grid

from evaluation.policies import BOTH, saved_for
from evaluation.significance import auroc_apart, paired_interval
from evaluation.testset import LABELS, Results
from models import NETWORKS, SELECTED, STUDENTS
from utils.files import replacing

FOLDER = Path(__file__).parent  # contains report.html and report.js
PICTURES = 1000  # maximum number of pictures, to keep the page below 4 MB
ACROSS = 40  # pictures per row of the sprite sheet
TOP = 3  # classes shown per network

# What the verdict needs, in [0, 1].
TRAINED = 0.4  # accuracy of the better student, where 0 is guessing
MATTERS = 0.01  # difference in accuracy that the images must be able to show
COIN = 0.6  # AUROC that the images must be able to tell from a coin's
FOLLOWS = 0.5  # difference between two contexts in the share sent to a student

NAMED = {
    "teacher": "the teacher",
    **{arch: f"{NETWORKS[arch].title} alone" for arch in STUDENTS},
    "routed": "the selector",
    "cascade": "the cascade",
    "cascade_teacher": "the cascade at the teacher's accuracy",
}


def write_report(path: Path, results: Results, device: str) -> None:
    """Write the page. Raises UserError if it cannot be written.

    Args:
        path: of the page; it is replaced atomically.
        results: the results to show. The MACs of the teacher are needed, its logits are not. The
            metrics include those that inference.py adds.
        device: description of the device that computed them.
    """
    headline, text = verdict(results)
    places = shown_places(results)
    data = _data(results, places)
    parts = {
        "title": html.escape(f"Routing report: {results.metrics['dataset']}"),
        "headline": _unbroken(headline),
        "verdict": _unbroken(text),
        "rows": _rows(results),
        "details": "".join(
            f"<dt>{html.escape(name)}</dt><dd>{_unbroken(fact)}</dd>"
            for name, fact in _details(results, device).items()
        ),
        "sheet": _side_by_side(results.test.images.cpu()[places], data["across"]),
        "across": str(data["across"]),
        # Escaped, because a class name may contain </script>.
        "data": json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"),
        "script": (FOLDER / "report.js").read_text(encoding="utf-8"),
    }
    template = (FOLDER / "report.html").read_text(encoding="utf-8")
    with replacing(path, binary=False) as file:
        page = re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)
        file.write(page.encode(errors="backslashreplace").decode())  # names may not be UTF-8


def _unbroken(text: str) -> str:
    return html.escape(text).replace(" %", "&nbsp;%")


# ------------------------------------------------------------------ the text


def verdict(results: Results) -> tuple[str, str]:
    """Write the conclusion from the numbers: a headline and a paragraph.

    The best choice is the cheapest student or policy that is as accurate as the most accurate one.
    """
    nets, accuracy = results.nets, results.metrics["accuracy"]
    better, guess = nets.better_student(), 1 / len(results.test.classes)
    if accuracy[better] < guess + TRAINED * (1 - guess):
        return (
            "These networks are barely trained for these images.",
            f"{_reached(results, [better])} of the teacher's MACs, and guessing "
            f"{_percent(guess, 1)}. Train longer before you compare policies.",
        )
    equal, differ = as_accurate(results)
    best = equal[0]
    if differ > MATTERS:
        return (
            f"{len(results.test):,} images are too few to tell what is best.",
            f"{_reached(results, equal)} of the teacher's MACs. On other images their accuracies "
            f"may differ by up to {100 * differ:.1f} points. {_choices(results)}",
        )
    others = [name for name in (better, "routed", "cascade", "teacher") if name in accuracy]
    return (
        f"{_capital(NAMED[best])} is "
        f"{'as good as any policy' if best in STUDENTS else 'the best choice'}: "
        f"{_percent(accuracy[best])} correct at {_cost(results, best)} of the teacher's MACs.",
        f"{_reached(results, [name for name in others if name != best])}. {_choices(results)}",
    )


def as_accurate(results: Results) -> tuple[list[str], float]:
    """The students and policies among which to choose, cheapest first: the most accurate one, and

    - cheaper ones that are not significantly less accurate,
    - dearer ones that may be more accurate by more than MATTERS.

    The second value is the largest difference in accuracy that the 95 % intervals leave open.
    """
    accuracy, work = (results.metrics[key] for key in ("accuracy", "macs_per_image"))
    right = {arch: results.nets.right(arch) for arch in STUDENTS}
    right |= {name: each.right for name, each in results.outcomes.items() if name in NAMED}
    names = sorted(right, key=work.get)
    best = max(names, key=accuracy.get)
    differ = {best: 0.0}
    for name in names:
        low, high = paired_interval(right[best], right[name])
        if work[name] < work[best] and low <= 0:
            differ[name] = high
        elif work[name] > work[best] and -low > MATTERS:
            differ[name] = -low
    return sorted(differ, key=work.get), max(differ.values())


def _choices(results: Results) -> str:
    """What the selector's choices follow."""
    contexts, one = results.metrics["per_context"], SELECTED[0]
    if len(contexts) > 1:
        shares = {kind: facts["sent"][one] / facts["images"] for kind, facts in contexts.items()}
        least, most = min(shares, key=shares.get), max(shares, key=shares.get)
        follows = shares[most] - shares[least] > FOLLOWS
        return (
            f"The selector {'follows' if follows else 'hardly follows'} the context: "
            f"{_percent(shares[most], 0)} of the “{most}” and {_percent(shares[least], 0)} of the "
            f"“{least}” images go to {NETWORKS[one].title}."
        )
    _, interval = _told_apart(results)
    if interval is None:
        return "There is nothing to choose: one student is right wherever the other is."
    low, high = interval
    if low <= 0.5 <= COIN < high:
        return "The images do not tell whether the selector chooses better than a coin."
    better = "better than" if low > 0.5 else "worse than" if high < 0.5 else "no better than"
    return f"The selector chooses {better} a coin."


def _told_apart(results: Results) -> tuple[float, tuple[float, float] | None]:
    return auroc_apart(results.nets.logits["selector"], results.nets.students_right(SELECTED))


def _reached(results: Results, names: Sequence[str]) -> str:
    """The accuracy and the cost of these networks and policies."""
    accuracy = results.metrics["accuracy"]
    parts = [
        f"{NAMED[name]} {'reaches ' if name == names[0] else ''}{_percent(accuracy[name])}"
        + (f" at {_cost(results, name)}" if name != "teacher" else "")
        for name in names
    ]
    return _capital(", ".join(parts))


def _percent(share: float, digits: int = 2) -> str:
    return f"{100 * share:.{digits}f} %"


def _cost(results: Results, name: str) -> str:
    """MACs, in percent of the teacher's."""
    teacher = results.nets.work["teacher"]
    part = results.metrics["macs_per_image"].get(name, teacher) / teacher
    return _percent(part, 0 if part >= 0.1 else 1)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _rows(results: Results) -> str:
    """The rows of the table that is shown without JavaScript."""
    metrics = results.metrics
    rows = []
    for name, accuracy in metrics["accuracy"].items():
        interval = metrics["accuracy_interval"].get(name, ())
        cost = _cost(results, name) if name in metrics["macs_per_image"] else ""
        cells = (_percent(accuracy), " to ".join(f"{100 * end:.1f}" for end in interval), cost)
        rows.append(
            f"<tr><th>{html.escape(LABELS[name])}</th><td>{'</td><td>'.join(cells)}</td></tr>"
        )
    return "".join(rows)


def _details(results: Results, device: str) -> dict[str, str]:
    metrics, temperatures = results.metrics, results.temperatures
    area, interval = _told_apart(results)
    facts = {
        "command": metrics["command"],
        "images": f"{metrics['images']:,}, {metrics['dataset']}",
        "device": device,
        "versions": ", ".join(" ".join(each) for each in metrics["versions"].items()),
    }
    for name, fingerprint in metrics["weights"].items():
        scaled = f", temperature {temperatures[name]:.2f}" if name in temperatures else ""
        facts[f"weights of {LABELS.get(name, f'the {name}')}"] = f"SHA-256 {fingerprint}...{scaled}"
    facts["thresholds"] = ", ".join(
        " ".join([name, *map(str, thresholds)]) for name, thresholds in results.thresholds.items()
    )
    if interval:
        low, high = interval
        facts["selector"] = (
            f"AUROC {area:.2f} (95 % interval {low:.2f} to {high:.2f}) on images that exactly one "
            "student classifies correctly; a coin has 0.50"
        )
    facts["perfect selector"] = f"{_percent(metrics['accuracy']['oracle'])} correct"
    return facts


# ------------------------------------------------------------------ the data for report.js


def _data(results: Results, places: torch.Tensor) -> dict[str, Any]:
    """The data for report.js: the results for all images, and the probabilities for `places`."""
    nets, kinds = results.nets, list(results.metrics["per_context"])
    names = [name for name in (*STUDENTS, "teacher") if name in results.predictions]
    logits = {name: nets.logits[name] for name in names}
    logits[BOTH] = results.outcomes["ensemble"].logits
    thresholds = results.thresholds["cascade"]
    last = nets.system("cascade", thresholds).names[-1]  # may be another mean
    logits.setdefault(last, nets.run("cascade", [torch.inf] * len(thresholds)).logits)
    best, *_ = as_accurate(results)[0]
    return {
        "classes": results.test.classes,
        "kinds": kinds,
        "students": STUDENTS,
        "teacher": nets.work["teacher"],
        "labels": _column(nets.labels),
        "kind": _column(torch.tensor([kinds.index(each) for each in results.seen])),
        "networks": {name: _network(results, name, logits[name], places) for name in logits},
        "policies": {name: _policy(results, name) for name in ("selector", "cascade")},
        "first": "cascade" if best.startswith("cascade") else "selector",
        "places": places.tolist(),
        "across": min(ACROSS, len(places)),
    }


def _network(
    results: Results, name: str, logits: torch.Tensor, places: torch.Tensor
) -> dict[str, Any]:
    """A network, or a mean of students."""
    archs = SELECTED if name == BOTH else name.split("+")
    title = look = name  # of the teacher
    if name in STUDENTS:
        title, look = NETWORKS[name].title, f"student-{STUDENTS.index(name) % 4 + 1}"
    elif name != "teacher":
        title, look = f"mean of {name if name == BOTH else len(archs)}", "mean"
    scale = fmean(results.temperatures[arch] for arch in archs)
    best = (logits[places] / scale).softmax(dim=1).topk(min(TOP, logits.shape[1]))
    return {
        "title": title,
        "look": look,
        "macs": sum(results.nets.work[arch] for arch in archs),
        "predictions": _column(logits.argmax(dim=1)),
        "best": {"labels": _column(best.indices), "probabilities": _column(best.values)},
    }


def _policy(results: Results, policy: str) -> dict[str, Any]:
    """A policy, and its thresholds at each position of its slider, from `Networks.along`."""
    nets, saved = results.nets, saved_for(policy, results.thresholds)
    system, scores = nets.system(policy, saved[policy]), nets.scores(policy, saved[policy])
    positions = nets.along(policy, list(saved.values()))
    purpose = {policy: "reset to", "cascade_teacher": "the teacher's accuracy:"}
    if policy == "selector":
        first, *others = (NETWORKS[arch].title for arch in SELECTED)
        share, scored = f"{first} answers", "selector's probability for"
        meaning = (
            f"{first} answers where the selector's probability for it reaches the threshold, "
            f"{' or '.join(others)} elsewhere."
        )
    else:
        first, *others = (NETWORKS[arch].title for arch in system.ran[-1])
        share, scored = f"{others[0]} runs too on", "confidence of"
        meaning = (
            f"{_capital(first)} runs first, and {', then '.join(others)} where the largest "
            "probability is below the threshold. The last answer is the mean of the logits of "
            f"{' and '.join(NETWORKS[arch].title for arch in system.answered[-1])}."
        )
    return {
        "share": share,
        "scored": scored,
        "meaning": meaning,
        "answered": system.names,
        "macs": [sum(nets.work[name] for name in names) for names in system.ran],
        "scores": [_column(each) for each in scores],
        # Of the same type, because the policy compares them in that type.
        "thresholds": [_column(each) for each in torch.tensor(positions, dtype=scores[0].dtype).T],
        "saved": {purpose[name]: positions.index(each) for name, each in saved.items()},
    }


def shown_places(results: Results) -> torch.Tensor:
    """The indices of the images that the page shows: int64 (M,), sorted, at most PICTURES.

    The images are the first from three groups: some students are right, none is, all are. The
    groups get equal shares; what a small group does not use goes to the larger ones.
    """
    group = results.nets.students_right().sum(dim=0)
    turns = torch.nn.functional.one_hot(group).cumsum(dim=0)
    turn = turns.gather(1, group[:, None])[:, 0]  # of each image in its group
    return turn.argsort(stable=True)[:PICTURES].sort().values


def _column(values: torch.Tensor) -> dict[str, str]:
    """Encode numbers as base64, with the name of the JavaScript array type."""
    array = values.cpu().numpy()
    if array.dtype.kind != "f":
        array = array.astype(np.min_scalar_type(array.max(initial=0)))
    content = base64.b64encode(array.tobytes()).decode()
    return {"type": f"{array.dtype.name.capitalize()}Array", "bytes": content}


def _side_by_side(images: torch.Tensor, across: int) -> str:
    """A sprite sheet of images, uint8 (M, S, S, 3): a JPEG with `across` columns, as a data URI."""
    sheet = make_grid(images.permute(0, 3, 1, 2), nrow=across, padding=0).permute(1, 2, 0)
    buffer = io.BytesIO()
    # Pictures of 32 pixels cover exactly 4 x 4 JPEG blocks, so neighbors do not affect each other.
    Image.fromarray(sheet.numpy()).save(buffer, "JPEG", quality=90, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
