"""Estimate how long `make reproduce` takes on this machine, from a few steps of each training.

    python -m benchmarks.reproduce

Each network is trained for a few steps on images of the data set, as the scripts do.
"""

import time

import torch

import StudentTrain
import teacherTrain
import trainSelector
from benchmarks.subjects import OurLoop
from models import SELECTED, STUDENTS, network
from utils import cli
from utils.checkpoint import EXPECTED
from utils.data import Split, load_splits, normalize
from utils.device import pick_device, precision

STEPS = 4  # timed steps per network, after the same number of warm-up steps
ANSWER = 0.25  # time of inference, relative to training on the same number of images
SELECTOR = 0.02  # time of a selector's training step, relative to that of the faster of SELECTED


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
    step: dict[str, float], epochs: dict[str, int], train: int, val: int, test: int
) -> dict[str, float]:
    """The seconds of each stage of `make reproduce`: of each network, then tables and figures.

    Args:
        step: seconds per image of a training step, for each network except the selector.
        epochs: number of epochs, for each network and the selector.
        train, val, test: number of images.
    """
    found = {name: epochs[name] * step[name] * (train + ANSWER * val) for name in step}
    # The first student has to compute the teacher's logits.
    views = min(StudentTrain.TEACHER_VIEWS, epochs[STUDENTS[0]])
    found[STUDENTS[0]] += ANSWER * step["teacher"] * train * views
    labels = ANSWER * (train + val) * sum(step[arch] for arch in SELECTED)
    epoch = SELECTOR * min(step[arch] for arch in SELECTED) * train
    found["selector"] = labels + epochs["selector"] * epoch
    return {**found, "tables and figures": ANSWER * test * 3 * sum(step.values())}


def in_words(seconds: float) -> str:
    """A time in hours and minutes."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes else "less than a minute"


def main() -> None:
    parser = cli.training_parser(__doc__, vars(teacherTrain))
    parser.set_defaults(epochs=None)
    args = parser.parse_args()
    device = pick_device(args.device)
    splits = load_splits(args.data, args.subset, device)
    batch = splits[0].take(slice(args.batch_size))
    scripts = {"teacher": teacherTrain, **dict.fromkeys(STUDENTS, StudentTrain)}
    step = {name: seconds_per_image(EXPECTED[name], args.stem, batch) for name in scripts}
    epochs = {
        name: args.epochs or StudentTrain.SMALL.get(name, {}).get("EPOCHS", script.EPOCHS)
        for name, script in {**scripts, "selector": trainSelector}.items()
    }
    found = stages(step, epochs, *map(len, splits))
    print(f"Estimated time on {device}, {precision(device)}:")
    for name, seconds in {**found, "in total": sum(found.values())}.items():
        print(f"  {name:<20}{in_words(seconds)}")
    print(flush=True)


if __name__ == "__main__":
    cli.run(main)
