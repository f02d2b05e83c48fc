"""Estimate how long `make reproduce` takes on this machine, from a few steps of each training.

    python -m benchmarks.reproduce             all stages
    python -m benchmarks.reproduce --resume    what is left of a run that was stopped

Each network is trained for a few steps on images of the data set, as the scripts do.
"""

import csv
import time
from dataclasses import dataclass
from pathlib import Path

import torch

import StudentTrain
import teacherTrain
import trainSelector
from benchmarks.subjects import OurLoop
from evaluation.testset import LABELS
from models import STUDENTS, network
from utils import cli
from utils.checkpoint import EXPECTED, FILES
from utils.data import Split, load_splits, normalize
from utils.device import pick_device, precision

STEPS = 4  # timed steps per network, after the same number of warm-up steps
ANSWER = 0.25  # time of inference, relative to training on the same number of images
SELECTOR = 0.02  # time of a selector's training step, relative to the faster student's


@dataclass(frozen=True)
class Stage:
    """A stage of `make reproduce`, and its time."""

    name: str
    epochs: int | None
    seconds: float


def seconds_per_image(arch: str, stem: str, batch: Split) -> float:
    """Seconds per image of a training step."""
    images, device = normalize(batch.images, batch.data), batch.images.device
    loop = OurLoop(network(arch, stem, len(batch.classes)), device)
    for _ in range(2):  # the first round is the warm-up
        started = time.perf_counter()
        for _ in range(STEPS):
            loop.step(images, batch.labels)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return seconds / (STEPS * len(batch))


def stages(
    step: dict[str, float],
    epochs: dict[str, int],
    done: dict[str, int],
    images: tuple[int, int, int] = (45_000, 5_000, 10_000),
) -> list[Stage]:
    """The stages of `make reproduce`: one for each network, then the tables and figures.

    Args:
        step: seconds per image of a training step, for each network except the selector.
        epochs: number of epochs, for each network and the selector.
        done: epochs already done.
        images: for training, validation and testing.
    """
    train, val, test = images
    found = []
    for name in ("teacher", *STUDENTS):
        left = max(0, epochs[name] - done.get(name, 0))
        seconds = left * step[name] * (train + ANSWER * val)
        if name == STUDENTS[0]:  # the first student has to compute the teacher's logits
            views = min(StudentTrain.TEACHER_VIEWS, left)
            seconds += ANSWER * step["teacher"] * train * views
        found.append(Stage(LABELS[name], left, seconds))
    labels = ANSWER * (train + val) * sum(step[arch] for arch in STUDENTS)
    epoch = SELECTOR * min(step[arch] for arch in STUDENTS) * train
    found.append(Stage("selector", epochs["selector"], labels + epochs["selector"] * epoch))
    return [*found, Stage("tables and figures", None, ANSWER * test * 3 * sum(step.values()))]


def in_words(seconds: float) -> str:
    """Format a time in hours and minutes."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


def epochs_done(folder: Path) -> dict[str, int]:
    """The number of epochs done in the runs that --resume will continue."""
    found = {}
    for name, file in FILES.items():
        path = (folder / file).with_suffix(".csv")
        if path.exists() and (folder / file).with_suffix(".state.pth").exists():
            with open(path, newline="", encoding="utf-8", errors="replace") as rows:
                found[name] = sum(1 for _ in csv.DictReader(rows))
    return found


def main() -> None:
    parser = cli.training_parser(__doc__, vars(teacherTrain))
    parser.set_defaults(epochs=None)
    args = parser.parse_args()
    device = pick_device(args.device)
    splits = load_splits(args.data, args.subset, device)
    batch = splits[0].take(slice(args.batch_size))
    of = {"teacher": teacherTrain, **dict.fromkeys(STUDENTS, StudentTrain)}
    step = {name: seconds_per_image(EXPECTED[name], args.stem, batch) for name in of}
    epochs = {
        name: args.epochs or script.EPOCHS
        for name, script in {**of, "selector": trainSelector}.items()
    }
    done = epochs_done(args.checkpoint_dir) if args.resume else {}
    left = stages(step, epochs, done, tuple(map(len, splits)))
    print(f"time, estimated from a few training steps on {device}, {precision(device)}:")
    wide = 2 + max(len(stage.name) for stage in left)
    for number, stage in enumerate(left, 1):
        count = "" if stage.epochs is None else f"{stage.epochs} epochs"
        print(f"  {number}  {stage.name:<{wide}}{count:<12}{in_words(stage.seconds)}")
    print(f"  in total {in_words(sum(stage.seconds for stage in left))}\n", flush=True)


if __name__ == "__main__":
    cli.run(main)
