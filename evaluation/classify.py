"""Classify your own images, and print the predictions or write them to a CSV file."""

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from evaluation.photos import image_files, one_line, read_image
from evaluation.policies import System
from utils.data import DataSet, Split
from utils.files import UserError, shown
from utils.logits import predict

COLUMNS = ("file", "class", "probability", "student", "error", "policy", "threshold", "weights")


@dataclass
class Prediction:
    """The result for a file: class, probability and student; or an error."""

    file: Path
    label: str = ""
    probability: float | None = None
    student: str = ""
    error: str = ""


def predictions(
    system: System, files: Iterator[Path], data: DataSet, batch_size: int, device: torch.device
) -> Iterator[Prediction]:
    """Yield the predictions for the files in order; `data` is what the networks were trained on."""
    while batch := [Prediction(file) for file in islice(files, batch_size)]:
        images = []
        for each in batch:
            try:
                images.append(read_image(each.file, data.size))
            except UserError as error:
                each.error = str(error)
        if images:
            pixels = torch.from_numpy(np.stack(images)).to(device)
            split = Split(pixels, torch.zeros(len(pixels)), np.arange(len(pixels)), data)
            logits, choice = predict(system.net, split, batch_size=batch_size)
            best = system.probabilities(logits, choice).max(dim=1)
            found = zip(best.values.tolist(), best.indices.tolist(), choice.tolist(), strict=True)
            for each in batch:
                if not each.error:
                    each.probability, label, student = next(found)
                    each.label, each.student = data.classes[label], system.names[student]
        yield from batch


def print_predictions(
    system: System, paths: list[Path], data: DataSet, batch_size: int, device: torch.device
) -> int:
    """Print one line per image: class, probability and student.

    Returns the exit status: 2 if a file is not an image, else 0.
    """
    failed = 0
    width = max(12, *(len(name) + 1 for name in data.classes))
    wide = max(13, *(len(name) + 2 for name in system.names))
    print(f"{'class':<{width}}{'probability':>11}  {'student':<{wide}}file")
    for each in predictions(system, image_files(paths), data, batch_size, device):
        if each.error:
            failed += 1
            print(f"inference.py: error: {each.error}", file=sys.stderr)
        else:
            answer = f"{each.label:<{width}}{each.probability:>11.1%}  {each.student:<{wide}}"
            print(answer + one_line(each.file), flush=True)
    if failed:
        print(f"inference.py: {failed:,} of the files could not be read", file=sys.stderr)
    return 2 if failed else 0


def write_predictions(
    system: System,
    paths: list[Path],
    table: Path,
    made_by: Sequence[object],
    data: DataSet,
    batch_size: int,
    device: torch.device,
) -> int:
    """Write one row per image to the CSV file `table`, at once: a stopped run keeps its rows.

    `made_by` are policy, threshold and weights, the last three columns. File names that are not
    UTF-8 are written byte for byte. Returns the exit status: 2 if a file is not an image, else 0.
    Raises UserError if `table` exists or cannot be written.
    """
    answered = failed = 0
    files = (file for file in image_files(paths) if file.absolute() != table.absolute())
    found = predictions(system, files, data, batch_size, device)
    kind = {"newline": "", "encoding": "utf-8", "errors": "surrogateescape"}
    try:
        table.parent.mkdir(parents=True, exist_ok=True)
        with open(table, "x", buffering=1, **kind) as file:  # a line is written when it ends
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(COLUMNS)
            for each in tqdm(found, unit="img"):
                failed += bool(each.error)
                answered += not each.error
                sure = "" if each.error else f"{each.probability:.4f}"
                error = each.error.removeprefix(f"{one_line(each.file)}: ")
                rows.writerow([each.file, each.label, sure, each.student, error, *made_by])
    except FileExistsError as error:
        raise UserError(f"{error.filename} exists: use another name for --csv") from error
    except OSError as error:
        raise UserError(f"cannot write {table}: {error.strerror or error}") from error
    print(f"{answered:,} images answered, {failed:,} files failed: {shown(table)}")
    return 2 if failed else 0
