"""report.html: the results on the test images as a single page that works offline."""

import base64
import html
import io
import json
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image

from evaluation.policies import BETTER, BOTH, along
from evaluation.significance import auroc_apart, mcnemar_p
from evaluation.testset import LABELS, Results
from models import NETWORKS, SELECTED, STUDENTS, TEACHER, confidence
from utils.files import replacing

FOLDER = Path(__file__).parent  # contains report.html and report.js
PICTURES = 1000  # maximum number of pictures, to keep the page below 4 MB
ACROSS = 40  # pictures per row of the sprite sheet
TOP = 3  # classes shown per network
SURE = 0.05  # significance level


def write_report(path: Path, results: Results, device: str, weights: dict[str, str]) -> None:
    """Write the page. Raises UserError if it cannot be written.

    Args:
        path: of the page; it is replaced atomically.
        results: the results to show.
        device: description of the device that computed them.
        weights: fingerprint of each network.
    """
    headline, paragraphs = verdict(results)
    parts = {
        "title": html.escape(f"Routing report: {results.metrics['dataset']}"),
        "headline": html.escape(headline),
        "paragraphs": "".join(
            f"<p><strong>{html.escape(lead)}</strong> {_with_code(text)}</p>"
            for lead, text in paragraphs.items()
        ),
        "ran": "".join(
            f"<dt>{html.escape(name)}</dt><dd>{html.escape(fact)}</dd>"
            for name, fact in _what_ran(results, device, weights).items()
        ),
        # Escaped, because a class name may contain </script>.
        "data": json.dumps(_data(results), separators=(",", ":")).replace("<", "\\u003c"),
        "script": (FOLDER / "report.js").read_text(encoding="utf-8"),
    }
    template = (FOLDER / "report.html").read_text(encoding="utf-8")
    with replacing(path, binary=False) as file:
        page = re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)
        file.write(page.encode(errors="backslashreplace").decode())  # names may not be UTF-8


def _with_code(text: str) -> str:
    unbroken = html.escape(text).replace(" %", "&nbsp;%")
    return re.sub("`(.+?)`", r"<code>\1</code>", unbroken)


# ------------------------------------------------------------------ the text


def verdict(results: Results) -> tuple[str, dict[str, str]]:
    """Write the summary of the results. Returns the headline, and the paragraphs by their titles.

    The numbers alone determine which sentences appear.
    """
    nets, accuracy = results.nets, results.metrics["accuracy"]
    routed, cascade = (results.outcomes[name].right for name in ("routed", "cascade"))
    better = nets.better_student()
    gain = 100 * (accuracy["routed"] - accuracy[better])
    works = gain > 0 and mcnemar_p(routed, nets.right(better)) < SURE
    text, tells = _told_apart(results)
    if works:
        head = (
            "On these images the selector works: it is "
            f"{gain:.1f} points more accurate than the {BETTER} student."
        )
    elif tells:
        head = f"On these images the selector beats chance, but not the {BETTER} student."
    else:
        head = "On these images the selector is no better than a coin."
    work = results.metrics["macs_per_image"]
    saved = 1 - work["cascade"] / work["routed"]
    if mcnemar_p(cascade, routed) >= SURE:
        same = "accuracy does not differ significantly"
        if saved > 0.1:
            head += f" Use the cascade: it costs {100 * saved:.0f} % less, and its {same}."
        else:
            head += f" The cascade's {same}."
    elif accuracy["cascade"] < accuracy["routed"]:
        head += " The cascade is less accurate."
    elif works:
        head += " The cascade is even more accurate."
    else:
        head += " Use the cascade: it is more accurate."
    return head, {
        "What the system does.": _what_it_does(results),
        "How well the selector chooses.": text,
        "Accuracy and cost.": _what_it_gives(results, better),
        "When a selector helps.": _worth_it(results, works),
    }


def _titles(archs: Sequence[str]) -> str:
    *others, last = (NETWORKS[arch].title for arch in archs)
    return f"{', '.join(others)} and {last}" if others else last


def _what_it_does(results: Results) -> str:
    teacher = f" ({NETWORKS[TEACHER].title})" if "teacher" in results.predictions else ""
    some = f" of {_titles(SELECTED)}" if len(SELECTED) < len(STUDENTS) else ""
    return (
        f"The students ({_titles(STUDENTS)}) are small networks that were trained to imitate a "
        f"larger one, the teacher{teacher}. The selector is an even smaller network. It reads an "
        f"image and chooses one student{some}; the others do not run. The cascade needs no "
        f"selector. {_steps(results)}"
    )


def _steps(results: Results) -> str:
    """What the cascade does."""
    system = results.nets.system("cascade", results.thresholds["cascade"])
    first, *others = (NETWORKS[arch].title for arch in system.ran[-1])
    return (
        f"It runs {first} first. Where the answer is not confident, the next student runs as well: "
        f"{', then '.join(others)}. The last answer is the mean of the logits of "
        f"{_titles(system.answered[-1])}."
    )


def _told_apart(results: Results) -> tuple[str, bool]:
    """Text on how well the selector chooses, and whether it is significantly above chance."""
    right = results.nets.students_right(SELECTED)
    area, interval = auroc_apart(results.nets.logits["selector"], right)
    if interval is None:
        return (
            "There is nothing to choose: every image that one of the students classifies "
            "correctly, the other classifies correctly too."
        ), False
    low, high = interval
    one, two = (NETWORKS[arch].title for arch in SELECTED[:2])
    pairs = "Guessing" if len(SELECTED) == 2 else "This is the mean over all pairs. Guessing"
    return (
        f"Take one image that only {one} classifies correctly and one that only {two} classifies "
        f"correctly. The selector tells which is which in {100 * area:.0f} of 100 such pairs (95 % "
        f"interval: {100 * low:.0f} to {100 * high:.0f}). {pairs} is right in 50 of 100."
    ), low > 0.5


def _what_it_gives(results: Results, better: str) -> str:
    accuracy, work = (results.metrics[key] for key in ("accuracy", "macs_per_image"))
    teacher = "teacher" in accuracy
    whole = work["teacher" if teacher else "ensemble"]
    right, cost = (
        {name: f"{100 * each[name] / of:.{digits}f} %" for name in ("routed", "cascade", better)}
        for each, of, digits in ((accuracy, 1, 2), (work, whole, 0))
    )
    of = "the teacher" if teacher else f"{BOTH} students together"
    return (
        f"With the selector, {right['routed']} of the answers are correct, at {cost['routed']} of "
        f"the cost of {of}, counted in multiply-accumulate operations (MACs). "
        f"With the cascade, {right['cascade']} are correct, at {cost['cascade']} of the cost. "
        f"The {BETTER} student, {NETWORKS[better].title}, reaches {right[better]} at "
        f"{cost[better]} of the cost. "
        + (f"The teacher reaches {100 * accuracy['teacher']:.2f} %. " if teacher else "")
        + f"A perfect selector would reach {100 * accuracy['oracle']:.2f} %."
    )


def _worth_it(results: Results, works: bool) -> str:
    contexts, one = results.metrics["per_context"], SELECTED[0]
    if len(contexts) == 1:
        where = "" if works else " Such images hardly show which student will be wrong."
        return (
            f"These images are all of one kind.{where} A selector can help if the images come from "
            "several contexts, such as noise, blur and poor light, and each student was trained on "
            "some of them: the selector can then recognize the context. `python inference.py "
            "--context mixed --checkpoint-dir checkpoints/contexts` evaluates a system that was "
            "trained this way."
        )
    shares = {kind: facts["sent"][one] / facts["images"] for kind, facts in contexts.items()}
    least, most = min(shares, key=shares.get), max(shares, key=shares.get)
    return (
        f"These images come from {len(contexts)} contexts. The selector sends "
        f"{100 * shares[most]:.0f} % of the “{most}” images to {NETWORKS[one].title}, and "
        f"{100 * shares[least]:.0f} % of the “{least}” images. "
    ) + (
        "The selector can recognize the context of an image, and this makes the system more "
        "accurate."
        if works
        else "This does not make the system more accurate: the students are too similar, or the "
        "selector has not learned where they differ."
    )


def _what_ran(results: Results, device: str, weights: dict[str, str]) -> dict[str, str]:
    metrics = results.metrics
    temperatures = {name: results.temperatures.get(name) for name in weights}
    return {
        "command": shlex.join(["python", *sys.argv]),
        "images": f"{metrics['images']:,}, {metrics['dataset']}",
        "device": device,
        "versions": f"Python {platform.python_version()}, PyTorch {torch.__version__}, torchvision "
        f"{torchvision.__version__}",
        **{
            f"weights of {LABELS.get(name, f'the {name}')}": f"SHA-256 {fingerprint}..."
            + (f", temperature {temperatures[name]:.2f}" if temperatures[name] else "")
            for name, fingerprint in weights.items()
        },
        "thresholds": ", ".join(
            " ".join([name, *(f"{each:.2f}" for each in thresholds)])
            for name, thresholds in results.thresholds.items()
        ),
    }


# ------------------------------------------------------------------ the data for report.js


def _data(results: Results) -> dict[str, Any]:
    """The data for report.js: the answers for all images, and pictures of some."""
    nets, predictions = results.nets, results.predictions
    kinds = list(results.metrics["per_context"])
    logits = {name: nets.logits[name] for name in ("teacher", *STUDENTS) if name in predictions}
    logits[BOTH] = results.outcomes["ensemble"].logits
    scales = {name: results.temperatures[name] for name in logits if name != BOTH}
    scales[BOTH] = fmean(scales[arch] for arch in STUDENTS)
    places = shown_places(results)
    top = {
        name: (each[places] / scales[name]).softmax(dim=1).topk(min(TOP, len(results.test.classes)))
        for name, each in logits.items()
    }
    policies = {name: _policy(results, name, logits) for name in ("selector", "cascade")}
    titles = {arch: NETWORKS[arch].title for arch in STUDENTS}
    means = {name: f"mean of {_titles(name.split('+'))}" for name in logits if "+" in name}
    return {
        "classes": results.test.classes,
        "kinds": kinds,
        "names": {
            "teacher": NETWORKS[TEACHER].title,
            **titles,
            BOTH: LABELS["ensemble"],
            **means,
        },
        "students": STUDENTS,
        "mean": BOTH,
        "macs": nets.work | {BOTH: sum(nets.work[arch] for arch in STUDENTS)},
        "labels": _column(nets.labels),
        "predictions": {name: _column(each.argmax(dim=1)) for name, each in logits.items()},
        "policies": policies,
        "kind": _column(torch.tensor([kinds.index(each) for each in results.seen])),
        "pictures": {
            "places": places.tolist(),
            "across": ACROSS,
            "source": _side_by_side(results.test.images.cpu()[places]),
            "top": {
                name: {"labels": _column(best.indices), "probabilities": _column(best.values)}
                for name, best in top.items()
            },
            "each": min(TOP, len(results.test.classes)),
        },
    }


def _policy(results: Results, policy: str, logits: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What a policy does at each position of the slider, which moves its thresholds.

    The answers that are not those of a network in `logits` are added there. `start` is the choice
    of each image at the first position, an index into `answered`; `changes` are the images whose
    choice differs from that at the position before, and their new choice.
    """
    nets, saved = results.nets, list(results.thresholds[policy])
    positions = along(saved)
    system = nets.system(policy, saved)
    choices = torch.stack([nets.run(policy, each).choice for each in positions])
    changed = [(choices[k] != choices[k - 1]).nonzero()[:, 0] for k in range(1, len(choices))]
    for k, name in enumerate(system.names):
        if name not in logits:  # the answer of a cascade that always goes on to this student
            steps = [torch.inf] * k + [0] * (len(saved) - k)
            logits[name] = nets.run(policy, steps).logits
    if policy == "selector":
        scores = nets.logits["selector"].softmax(dim=1)
        first = NETWORKS[SELECTED[0]].title
        text = {
            "meaning": f"The selector computes the probability that {first} should answer. If it "
            f"is at least the threshold, {first} answers, otherwise {_titles(SELECTED[1:])}."
            if len(SELECTED) == 2
            else "The selector computes the probability that each student should answer. The "
            "student with the highest one answers. A student is preferred if its threshold is "
            "below 0.5, and avoided if it is above. The slider moves all thresholds together.",
            "share": f"images answered by {first}",
            "counted": [0],
        }
    else:
        scores = torch.stack([confidence(logits[name]) for name in system.names[:-1]], dim=1)
        text = {
            "meaning": f"{_steps(results)} Confidence is the largest probability before "
            "temperature scaling. The next student runs if it is below the threshold"
            + (" of this step. The slider moves all thresholds together." if saved[1:] else "."),
            "share": f"images on which {NETWORKS[system.ran[1][1]].title} runs too",
            "counted": list(range(1, len(system.ran))),
        }
    text["meaning"] += " MACs: multiply-accumulate operations."
    return {
        **text,
        "answered": system.names,
        "macs": [sum(nets.work[name] for name in names) for names in system.ran],
        "positions": positions,
        "saved": positions.index(saved),
        "start": _column(choices[0]),
        "changes": [
            {"images": _column(images), "choice": _column(choices[k, images])}
            for k, images in enumerate(changed, 1)
        ],
        "scores": [_column(each) for each in scores.T],
    }


def shown_places(results: Results) -> torch.Tensor:
    """The indices of the images that the page shows: int64 (M,), sorted, at most PICTURES.

    The images are the first from three groups: some students are right, none is, all are. The
    groups get equal shares; what a small group does not use goes to the larger ones.
    """
    right = results.nets.students_right()
    groups = [right.any(dim=0) & ~right.all(dim=0), ~right.any(dim=0), right.all(dim=0)]
    places = [
        group.nonzero()[:, 0] for group in sorted(groups, key=lambda group: group.sum().item())
    ]
    kept, left = [], PICTURES
    for k, group in enumerate(places):  # the smallest group first
        kept.append(group[: left // (len(places) - k)])
        left -= len(kept[-1])
    return torch.cat(kept).sort().values


def _column(values: torch.Tensor) -> dict[str, str]:
    """Encode numbers as base64, with the name of the JavaScript array type."""
    array = values.cpu().numpy()
    kind = "f4"
    if array.dtype.kind != "f":
        kind = next(
            kind for kind in ("u1", "u2", "u4") if array.max(initial=0) < 256 ** int(kind[1])
        )
    names = {"f4": "Float32Array", "u1": "Uint8Array", "u2": "Uint16Array", "u4": "Uint32Array"}
    return {
        "type": names[kind],
        "bytes": base64.b64encode(array.astype(f"<{kind}").tobytes()).decode(),
    }


def _side_by_side(images: torch.Tensor) -> str:
    """A sprite sheet of images, uint8 (M, S, S, 3): a JPEG with ACROSS columns, as a data URI."""
    rows, size = -(-len(images) // ACROSS), images.shape[1]
    sheet = np.zeros((rows * ACROSS, size, size, 3), np.uint8)
    sheet[: len(images)] = images.cpu().numpy()
    sheet = sheet.reshape(rows, ACROSS, size, size, 3).transpose(0, 2, 1, 3, 4)
    buffer = io.BytesIO()
    # Pictures of 32 pixels cover exactly 4 x 4 JPEG blocks, so neighbors do not affect each other.
    Image.fromarray(sheet.reshape(rows * size, ACROSS * size, 3)).save(
        buffer, "JPEG", quality=90, subsampling=0
    )
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
