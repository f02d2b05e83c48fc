"""Classify your own images, and print the predictions or write them to a CSV file."""

import os
import sys
from collections.abc import Iterator
from contextlib import closing
from itertools import islice, takewhile
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from evaluation.photos import image_files, one_line, read_image
from evaluation.policies import System
from evaluation.predictions import Answer, Predictions
from utils.files import UserError, shown
from utils.logits import predict
from utils.stop import StopRequest


def check_paths(paths: list[Path]) -> None:
    """Raise UserError if all `paths` are folders without an image."""
    firsts = (next(image_files([path])) if os.path.isdir(path) else path for path in paths)
    if all(map(os.path.isdir, firsts)):
        read_image(next(image_files(paths)))  # raises the error for the folder


def answers(
    system: System, files: Iterator[Path], batch_size: int, device: torch.device
) -> Iterator[list[Answer]]:
    """Yield the predictions for the files in order, one batch at a time."""
    classes = system.made_of["classes"]
    while batch := [Answer(file) for file in islice(files, batch_size)]:
        images = []
        for each in batch:
            try:
                images.append(read_image(each.file))
            except UserError as error:
                each.error = str(error)
        if images:
            pixels = torch.from_numpy(np.stack(images)).to(device)
            logits, choice = predict(system.net, pixels, batch_size=batch_size)
            best = system.probabilities(logits, choice).max(dim=1)
            good = [each for each in batch if not each.error]
            for each, probability, label, student in zip(
                good, best.values.tolist(), best.indices.tolist(), choice.tolist(), strict=True
            ):
                each.label, each.student = classes[label], system.names[student]
                each.probability = probability
        yield batch


def print_answers(system: System, paths: list[Path], batch_size: int, device: torch.device) -> int:
    """Print one line per image: class, probability and student.

    Returns the exit status: 2 if a file is not an image, else 0.
    """
    failed = 0
    width = max(12, *(len(name) + 1 for name in system.made_of["classes"]))
    wide = max(13, *(len(name) + 2 for name in system.names))
    print(f"{'class':<{width}}{'probability':>11}  {'student':<{wide}}file")
    for batch in answers(system, image_files(paths), batch_size, device):
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


def write_answers(
    system: System,
    paths: list[Path],
    csv: Path,
    resume: bool,
    batch_size: int,
    device: torch.device,
) -> int:
    """Write one row per image to `csv`, one batch at a time.

    Returns the exit status: 2 if a file is not an image, else 0. After Ctrl-C and SIGTERM, the
    current batch is written, and the exit status is 130 and 143.
    """
    made_of = system.made_of | {"batch_size": batch_size}  # rounding depends on the batch size
    with closing(Predictions(csv, resume, made_of)) as table, StopRequest() as stop:
        files = takewhile(lambda _: not stop.signal, image_files(paths))
        files = (file for file in files if not table.skips(file))
        with tqdm(unit="img", initial=table.answered + table.failed) as bar:
            for batch in answers(system, files, batch_size, device):
                table.write(batch)
                bar.update(len(batch))
        done = f"{table.answered:,} images answered, {table.failed:,} files failed"
        if stop.signal:
            stop.leave(done)
    print(f"{done}: {shown(csv)}")
    return 2 if table.failed else 0
