"""report.html: what was measured on the test images as one page to open, without a network."""

import base64
import html
import io
import json
import platform
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from PIL import Image

from evaluation.significance import auroc, auroc_interval, mcnemar_p
from evaluation.testset import LABELS, Measured
from models import NAMES, STUDENTS
from utils.files import replacing

FOLDER = Path(__file__).parent  # of report.html and report.js
PICTURES = 1000  # more would not fit into 4 MB
ACROSS = 40  # pictures side by side in the one that holds them all
TOP = 3  # classes that are shown of each network
SURE = 0.05  # p below which a difference is no chance


def write_report(path: Path, measured: Measured, device: str, weights: dict[str, str]) -> None:
    """Write the page. UserError where it cannot be written.

    Args:
        path: of the page, which is replaced whole.
        measured: what it shows.
        device: that it was computed on, in words.
        weights: the fingerprint of each network.
    """
    headline, paragraphs = verdict(measured)
    parts = {
        "title": f"Who answers? {measured.metrics['dataset']}",
        "headline": headline,
        "paragraphs": "".join(
            f"<p><strong>{html.escape(lead)}</strong> {_with_code(text)}</p>"
            for lead, text in paragraphs.items()
        ),
        "ran": "".join(
            f"<dt>{html.escape(name)}</dt><dd>{html.escape(fact)}</dd>"
            for name, fact in _what_ran(measured, device, weights).items()
        ),
        # No name of a class can end the script.
        "data": json.dumps(_data(measured), separators=(",", ":")).replace("<", "\\u003c"),
        "script": (FOLDER / "report.js").read_text(encoding="utf-8"),
    }
    for name in ("title", "headline"):
        parts[name] = html.escape(parts[name])
    template = (FOLDER / "report.html").read_text(encoding="utf-8")
    with replacing(path, binary=False) as file:
        file.write(re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template))


def _with_code(text: str) -> str:
    unbroken = html.escape(text).replace(" %", "&nbsp;%")
    return re.sub("`(.+?)`", r"<code>\1</code>", unbroken)


# ------------------------------------------------------------------ what it says


def verdict(measured: Measured) -> tuple[str, dict[str, str]]:
    """A headline, and paragraphs by their first words: what the selector does and gives, and when.

    Which sentences there are follows from the numbers alone.
    """
    nets, accuracy = measured.nets, measured.metrics["accuracy"]
    routed, cascade = (measured.outcomes[name].right for name in ("routed", "cascade"))
    better = nets.better_student()
    gain = 100 * (accuracy["routed"] - accuracy[better])
    works = gain > 0 and mcnemar_p(routed, nets.right(better)) < SURE
    told, tells = _told_apart(measured)
    if works:
        head = f"On these images the selector works: {gain:.1f} points more than the better student"
    elif tells:
        head = "On these images the selector beats a coin, but not the better student"
    else:
        head = "On these images the selector is no better than a coin"
    if mcnemar_p(cascade, routed) >= SURE:
        head += ". The cascade is as accurate, but for chance."
    elif accuracy["cascade"] < accuracy["routed"]:
        head += ". The cascade is less accurate."
    else:
        head += ", and the cascade is more accurate still." if works else "; use the cascade."
    return head, {
        "What it does.": _what_it_does("teacher" in accuracy),
        "How well it chooses here.": told,
        "What that gives.": _what_it_gives(measured, better),
        "When a selector is worth it.": _worth_it(measured, works),
    }


def _what_it_does(teacher: bool) -> str:
    one, two = (NAMES[arch] for arch in STUDENTS)
    large = f"a large network, {NAMES['resnet50']}" if teacher else "a larger one"
    return (
        f"Two small networks, {one} and {two}, learned to imitate {large}. The selector, which is "
        "smaller still, looks at an image and says which of the two answers; the other does not "
        f"run. The cascade needs no selector: {two} answers, and {one} runs too where {two} is "
        "unsure."
    )


def _told_apart(measured: Measured) -> tuple[str, bool]:
    """How well the selector tells whose image it is, in words, and whether it is no chance."""
    first, second = measured.nets.students_right()
    apart = first != second
    alone = [each.sum().item() for each in (first & ~second, second & ~first)]
    if not all(alone):
        return "There is nothing to choose: one student is right wherever the other is.", False
    area = auroc(measured.nets.logits["selector"][apart], first[apart])
    low, high = auroc_interval(area, *alone)
    one, two = (NAMES[arch] for arch in STUDENTS)
    return (
        f"Of two images, one that {one} alone gets right and one that {two} alone does, the "
        f"selector knows which is which in {100 * area:.0f} of 100 cases (95 % interval "
        f"{100 * low:.0f} to {100 * high:.0f}); a coin does in 50."
    ), low > 0.5


def _what_it_gives(measured: Measured, better: str) -> str:
    accuracy, work = (measured.metrics[key] for key in ("accuracy", "macs_per_image"))
    teacher = "teacher" in accuracy
    whole = work["teacher" if teacher else "ensemble"]
    gets = {
        name: f"{100 * accuracy[name]:.2f} % right for {100 * work[name] / whole:.0f} %"
        for name in ("routed", "cascade", better)
    }
    of = "the teacher" if teacher else "both students"
    return (
        f"The selector gets {gets['routed']} of the work of {of}, "
        f"the cascade {gets['cascade']}, the better student, {NAMES[better]}, {gets[better]}. "
        + (f"The teacher gets {100 * accuracy['teacher']:.2f} %. " if teacher else "")
        + "One who always knew a student that is right would get "
        f"{100 * accuracy['oracle']:.2f} %."
    )


def _worth_it(measured: Measured, works: bool) -> str:
    contexts, one = measured.metrics["per_context"], STUDENTS[0]
    if len(contexts) == 1:
        where = "" if works else ", which hardly show what makes a student err"
        return (
            f"These images are all of one kind{where}. Where images come from several contexts, "
            "such as noise, blur and bad light, and each student learned some of them, a selector "
            "has something to see. `python inference.py --context mixed --checkpoint-dir "
            "checkpoints/contexts` measures a system that was trained for that."
        )
    shares = {kind: facts["sent"][one] / facts["images"] for kind, facts in contexts.items()}
    least, most = min(shares, key=shares.get), max(shares, key=shares.get)
    return (
        f"These images come from {len(contexts)} contexts. The selector sends "
        f"{100 * shares[most]:.0f} % of those in {most} to {NAMES[one]}, and "
        f"{100 * shares[least]:.0f} % of those in {least}. "
    ) + (
        "A context can be seen in an image, and that is where a selector pays."
        if works
        else "That does not pay here: the students are too alike, or it has not learned to."
    )


def _what_ran(measured: Measured, device: str, weights: dict[str, str]) -> dict[str, str]:
    metrics = measured.metrics
    temperatures = {name: measured.temperatures.get(name) for name in weights}
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
            f"{name} {threshold:.2f}" for name, threshold in measured.thresholds.items()
        ),
    }


# ------------------------------------------------------------------ what the script reads


def _data(measured: Measured) -> dict[str, Any]:
    """What report.js reads: a column of answers for all images, and pictures of some."""
    nets, answers = measured.nets, measured.answers
    kinds = list(measured.metrics["per_context"])
    names = [name for name in ("teacher", *STUDENTS, "ensemble") if name in answers]
    places = shown_places(measured)
    logits = nets.logits | {"ensemble": sum(nets.logits[arch] for arch in STUDENTS) / 2}
    top = {
        name: (logits[name][places] / measured.temperatures[name])
        .softmax(dim=1)
        .topk(min(TOP, len(measured.test.classes)))
        for name in names
    }
    return {
        "classes": measured.test.classes,
        "kinds": kinds,
        "names": {"teacher": NAMES["resnet50"], **NAMES, "ensemble": LABELS["ensemble"]},
        "students": STUDENTS,
        "macs": {name: 1e6 * work for name, work in nets.work.items()},
        "thresholds": measured.thresholds,
        "labels": _column(nets.labels),
        "answers": {name: _column(answers[name].labels) for name in names},
        # What the thresholds are compared with.
        "scores": {
            "selector": _column(nets.logits["selector"].sigmoid()),
            "cascade": _column(answers[STUDENTS[1]].confidences),
        },
        "kind": _column(torch.tensor([kinds.index(each) for each in measured.seen])),
        "pictures": {
            "places": places.tolist(),
            "across": ACROSS,
            "source": _side_by_side(measured.test.images.cpu()[places]),
            "top": {
                name: {"labels": _column(best.indices), "probabilities": _column(best.values)}
                for name, best in top.items()
            },
            "each": min(TOP, len(measured.test.classes)),
        },
    }


def shown_places(measured: Measured) -> torch.Tensor:
    """The images of which the page has a picture: int64 (M,), at most PICTURES, in their order.

    As many of those that one student alone gets right, that neither does, and that both do, as far
    as there are: the first of each.
    """
    first, second = measured.nets.students_right()
    groups = [first != second, ~first & ~second, first & second]
    places = [
        group.nonzero()[:, 0] for group in sorted(groups, key=lambda group: group.sum().item())
    ]
    kept, left = [], PICTURES
    for k, group in enumerate(places):  # what one has too few of, the larger ones get
        kept.append(group[: left // (len(places) - k)])
        left -= len(kept[-1])
    return torch.cat(kept).sort().values


def _column(values: torch.Tensor) -> dict[str, str]:
    """Numbers as base64, and the name of JavaScript's array for them."""
    array = values.cpu().numpy()
    kind = "f4" if array.dtype.kind == "f" else "u1" if array.max(initial=0) < 256 else "u2"
    names = {"f4": "Float32Array", "u1": "Uint8Array", "u2": "Uint16Array"}
    return {
        "type": names[kind],
        "bytes": base64.b64encode(array.astype(f"<{kind}").tobytes()).decode(),
    }


def _side_by_side(images: torch.Tensor) -> str:
    """Images, uint8 (M, 32, 32, 3), as one JPEG of ACROSS columns, in a data URI."""
    rows = -(-len(images) // ACROSS)
    sheet = np.zeros((rows * ACROSS, 32, 32, 3), np.uint8)
    sheet[: len(images)] = images.cpu().numpy()
    sheet = sheet.reshape(rows, ACROSS, 32, 32, 3).transpose(0, 2, 1, 3, 4)
    buffer = io.BytesIO()
    # A tile is 4 x 4 of JPEG's blocks, so that none shines through into the next.
    Image.fromarray(sheet.reshape(rows * 32, ACROSS * 32, 3)).save(
        buffer, "JPEG", quality=90, subsampling=0
    )
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
