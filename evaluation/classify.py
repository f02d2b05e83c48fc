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
) -> Iterator[list[Prediction]]:
    """Yield the predictions for the files in order, one batch at a time.

    Args:
        data: what the networks were trained on.
    """
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
            good = [each for each in batch if not each.error]
            for each, probability, label, student in zip(
                good, best.values.tolist(), best.indices.tolist(), choice.tolist(), strict=True
            ):
                each.label, each.student = data.classes[label], system.names[student]
                each.probability = probability
        yield batch


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
    for batch in predictions(system, image_files(paths), data, batch_size, device):
        for each in batch:
            if each.error:
                failed += 1
                print(f"inference.py: error: {each.error}", file=sys.stderr)
            else:
                print(
                    f"{each.label:<{width}}{each.probability:>11.1%}  {each.student:<{wide}}"
                    f"{one_line(each.file)}"
                )
        sys.stdout.flush()
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
    """Write one row per image to the CSV file `table`, one batch at a time.

    After Ctrl-C, the batches that were classified are in the file. File names that are not UTF-8
    are written byte for byte.

    Args:
        made_by: policy, threshold and weights, the last three columns of each row.

    Returns:
        The exit status: 2 if a file is not an image, else 0.

    Raises:
        UserError: the file exists or cannot be written.
    """
    answered = failed = 0
    files = (file for file in image_files(paths) if file.absolute() != table.absolute())
    try:
        table.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(table, "x", newline="", encoding="utf-8", errors="surrogateescape") as file,
            tqdm(unit="img") as bar,
        ):
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(COLUMNS)
            for batch in predictions(system, files, data, batch_size, device):
                for each in batch:
                    failed += bool(each.error)
                    answered += not each.error
                    sure = "" if each.error else f"{each.probability:.4f}"
                    error = each.error.removeprefix(f"{one_line(each.file)}: ")
                    found = (each.file, each.label, sure, each.student, error)
                    rows.writerow([*found, *made_by])
                file.flush()
                bar.update(len(batch))
    except FileExistsError as error:
        raise UserError(f"{error.filename} exists: use another name for --csv") from error
    except OSError as error:
        raise UserError(f"cannot write {table}: {error.strerror or error}") from error
    print(f"{answered:,} images answered, {failed:,} files failed: {shown(table)}")
    return 2 if failed else 0
