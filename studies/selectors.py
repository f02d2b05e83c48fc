"""What a selector can tell from the image alone of which student is right, whatever its labels.

    python -m studies.selectors     writes selectors.json and selectors.png into results/
    python -m studies.selectors --out-of-fold runs/half    takes the students' answers anew

Trains many small selectors, each with several seeds: on labels made in different ways, and at each
depth, in a quarter of an hour on two cores. Needs the students' checkpoints and CIFAR-10. A
variant's threshold is chosen on images that are used for nothing else; all that is told is measured
on the test images.

Labels out of fold need students trained on one half of the training images to answer for the
other. Their answers lie in out_of_fold.npz among the results; `--out-of-fold` makes them anew, with
the students in the folder that it names, which are made by

    python -m studies.specialize halves
    python StudentTrain.py --model 1 --distill-loss none --epochs 6 \\
        --indices runs/special/halves-2.npy --checkpoint-dir runs/half
    and the same with --model 2
"""

import itertools
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from evaluation import figures_into
from evaluation.significance import auroc, auroc_interval, mcnemar_p, wilson_interval
from models import STUDENTS, Selector
from studies.specialize import halves
from utils import cli
from utils.answers import predict
from utils.augment import Augmentation, Batches, crop_and_flip
from utils.checkpoint import ALONE, FILES, check_classes, load_network
from utils.data import Split, data_facts, described, fingerprint, load_splits
from utils.device import autocast, for_inference, pick_device, seed_everything, to_device
from utils.files import UserError, replacing, shown
from utils.method import best_threshold, label_weights, selector_labels, share
from utils.optim import one_cycle, optimizers
from utils.safe_load import read_arrays

BATCH_SIZE = 500  # images a step, of the students' answers
SEEDS = 5  # of each selector
OUT = Path("results")  # for selectors.json and selectors.png
STEPS = 240  # of each selector, whatever the number of its images
STEP = 128  # images a step of a selector's training
IMAGES = 10_000  # of the training images, the first ones
LEARNING_RATE = 0.05  # as the rest of the recipe that of trainSelector.py
AUGMENTATION = Augmentation(crop=4, flip=True)

LABELS = {  # the images that a selector learns from
    "train": "training images, as published",
    "augmented": "the same cropped and flipped, as the students were trained",
    "held out": "images that neither student was trained on",
    "out of fold": "training images, by students that were trained on the other half of them",
}


@dataclass(frozen=True)
class Variant:
    """A way to train a selector.

    labels: a key of LABELS.
    weighted: each image counts as much as the students' absolute errors differ on it.
    depth, batch_norm: of the `Selector`.
    """

    labels: str
    weighted: bool = False
    depth: int = 3
    batch_norm: bool = True


VARIANTS = tuple(
    dict.fromkeys(
        [Variant(labels, weighted) for labels in LABELS for weighted in (False, True)]
        + [
            Variant("train", depth=depth, batch_norm=batch_norm)
            for depth, batch_norm in itertools.product((1, 2, 3, 4), (True, False))
        ]
    )
)


@dataclass
class Answers:
    """Images, uint8 (N, 32, 32, 3), their labels, (N,), and both students' logits, (N, classes)."""

    images: torch.Tensor
    labels: torch.Tensor
    logits: tuple[torch.Tensor, torch.Tensor]

    def right(self) -> list[torch.Tensor]:
        """Where each student is right: two bool (N,)."""
        return [logits.argmax(dim=1) == self.labels for logits in self.logits]

    def part(self, start: int, end: int | None = None) -> "Answers":
        places = slice(start, end)
        logits = tuple(each[places] for each in self.logits)
        return Answers(self.images[places], self.labels[places], logits)


def answers(
    students: list[nn.Module], images: torch.Tensor, labels: torch.Tensor, batch_size: int
) -> Answers:
    """What the students say of the images."""
    logits = (predict(student, images, batch_size=batch_size) for student in students)
    return Answers(images, labels, tuple(logits))


def out_of_fold(
    folder: Path | None, saved: Path, train: Split
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Logits for the first IMAGES training images of students that never saw them, or None.

    Args:
        folder: where such students lie, trained alone on the second of `halves`; what they answer
            is saved. None: what was saved is taken, where it is of these training images.
        saved: an .npz file.

    Raises:
        UserError: a student in the folder is missing, or was trained on other images.
    """
    of = fingerprint([train.images, train.labels])
    if folder is None:
        try:
            held = read_arrays(saved, ["of", "logits"])
            if held["of"] == of:
                return tuple(torch.from_numpy(held["logits"]).float().to(train.images.device))
        except (UserError, LookupError, TypeError, ValueError):
            pass  # as if there were none
        print(f"no answers out of fold in {shown(saved)} for these images: see --out-of-fold")
        return None
    first, second = halves(train)
    half = data_facts(second.images, second.labels)
    logits = []
    for arch in STUDENTS:
        path = folder / ALONE[arch]
        student, facts = load_network(path, arch)
        if facts["hyperparameters"].get("data") != half:
            raise UserError(
                f"{path} was not trained on the second half of these images: make it with "
                "python -m studies.specialize halves and --indices runs/special/halves-2.npy"
            )
        student = for_inference(student, train.images.device)
        logits.append(predict(student, first.images[:IMAGES], arch))
    with replacing(saved) as file:
        np.savez_compressed(file, of=of, logits=torch.stack(logits).half().cpu().numpy())
    return tuple(logits)


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Each image cropped and flipped at random, as in training: uint8 (N, 32, 32, 3)."""
    generator = torch.Generator().manual_seed(0)
    shift = torch.randint(
        -AUGMENTATION.crop, AUGMENTATION.crop + 1, (len(images), 2), generator=generator
    )
    flip = torch.randint(0, 2, (len(images),), generator=generator).bool()
    return crop_and_flip(images, shift.to(images.device), flip.to(images.device))


def train_selector(variant: Variant, told: Answers, seed: int, steps: int) -> Selector:
    """A selector of this variant, trained on `told`."""
    targets = selector_labels(*told.logits, told.labels)
    weights = torch.ones_like(targets)
    if variant.weighted:
        weights = label_weights(*told.logits, told.labels)
    # A label belongs to the image as the students saw it, so that a crop of a crop is none of it.
    augmentation = Augmentation(0, False) if variant.labels == "augmented" else AUGMENTATION
    batches = Batches(told.images, STEP, seed, augmentation)
    epochs = -(-steps * STEP // len(told.labels))
    return fit(batches, targets, weights, epochs, variant.depth, variant.batch_norm)


def fit(
    batches: Batches,
    targets: torch.Tensor,
    weights: torch.Tensor,
    epochs: int,
    depth: int = 3,
    batch_norm: bool = True,
) -> Selector:
    """A selector trained by trainSelector.py's recipe.

    Args:
        batches: of the images; their seed is also that of the initial weights.
        targets, weights: float32 (N,), of these images: the labels, and how much each counts.
        epochs: passes over the images.
        depth, batch_norm: of the `Selector`.
    """
    device = batches.images.device
    seed_everything(batches.seed)
    selector = to_device(Selector(depth, batch_norm), device).train()
    (optimizer,) = optimizers(selector, "sgd", LEARNING_RATE, 0.9, 5e-4)
    schedule = one_cycle(optimizer, LEARNING_RATE, 0.25, epochs * batches.steps)
    for epoch in range(epochs):
        for images, target, weight in batches.epoch(epoch, targets, weights):
            with autocast(device):
                outputs = selector(images).float()
                loss = F.binary_cross_entropy_with_logits(outputs, target, weight)
            loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return selector


def measure(selector: Selector, choosing: Answers, test: Answers) -> dict[str, float]:
    """What routing by `selector` gives on `test`, its threshold chosen on `choosing`."""
    threshold = best_threshold(predict(selector, choosing.images).sigmoid(), *choosing.right())
    scores = predict(selector, test.images).sigmoid()
    first, second = test.right()
    to_first = scores >= threshold
    right, apart = torch.where(to_first, first, second), first != second
    better = first if first.sum() >= second.sum() else second
    return {
        "accuracy": share(right),
        "auroc": auroc(scores[apart], first[apart]),
        f"share_{STUDENTS[0]}": share(to_first),
        "mcnemar_p": mcnemar_p(right, better),
    }


def study(
    variants: tuple[Variant, ...],
    told: dict[str, Answers],
    choosing: Answers,
    test: Answers,
    seeds: int,
    steps: int,
) -> Iterator[dict]:
    """Each variant with each seed: its facts, its runs, and their mean and standard deviation.

    The intervals are of the means, as of another draw of as many test images.
    """
    first, second = test.right()
    alone = int((first & ~second).sum()), int((second & ~first).sum())
    if not all(alone):
        raise UserError(
            f"on none of the {len(test.labels)} test images is one student alone right: take more"
        )
    with tqdm(total=len(variants) * seeds, unit="selector") as bar:
        for variant in variants:
            runs = []
            for seed in range(seeds):
                selector = train_selector(variant, told[variant.labels], seed, steps)
                runs.append({"seed": seed, **measure(selector, choosing, test)})
                bar.update()
            summary = {}
            for key in ("accuracy", "auroc", f"share_{STUDENTS[0]}"):
                values = [run[key] for run in runs]
                spread = statistics.stdev(values) if seeds > 1 else 0.0
                summary[key] = {"mean": statistics.mean(values), "std": spread}
            accuracy, area = summary["accuracy"], summary["auroc"]
            accuracy["interval"] = wilson_interval(accuracy["mean"], len(test.labels))
            area["interval"] = auroc_interval(area["mean"], *alone)
            yield {**asdict(variant), **summary, "runs": runs}


def selectors(
    students: list[nn.Module],
    train: Split,
    val: Split,
    test: Split,
    seeds: int,
    folds: tuple[torch.Tensor, torch.Tensor] | None,
    batch_size: int = BATCH_SIZE,
) -> dict:
    """All variants between these students, measured on `test`.

    Half of the validation images choose thresholds. `folds` are the logits of students that were
    trained on other images, for the first IMAGES training images; without them the variants that
    learn from these are left out. Raises UserError where there are too few images.
    """
    if len(val) < 4:
        raise UserError("too few validation images: half of them choose thresholds")
    train = train.take(slice(IMAGES))
    tested, held_out, trained, augmented = (
        answers(students, images, split.labels, batch_size)
        for images, split in (
            (test.images, test),
            (val.images, val),
            (train.images, train),
            (shifted(train.images), train),
        )
    )
    half = len(val) // 2
    told = {"train": trained, "augmented": augmented, "held out": held_out.part(0, half)}
    if folds:
        told["out of fold"] = Answers(train.images, train.labels, folds).part(0, len(folds[0]))
    variants = tuple(each for each in VARIANTS if each.labels in told)
    return {
        "told": {
            name: {
                "images": len(each.labels),
                "accuracy": [share(right) for right in each.right()],
                "apart": share(each.right()[0] != each.right()[1]),
            }
            for name, each in told.items()
        },
        "variants": list(study(variants, told, held_out.part(half), tested, seeds, STEPS)),
    }


def print_table(told: dict) -> None:
    """The trained selectors as a table."""
    print(f"{'labels':<13}{'weighted':<10}{'depth':<7}{'norm':<7}{'top-1 %':>8}{'AUROC':>15}")
    for row in told["variants"]:
        print(
            f"{row['labels']:<13}{row['weighted']!s:<10}{row['depth']:<7}{row['batch_norm']!s:<7}"
            f"{100 * row['accuracy']['mean']:>8.2f}"
            f"{row['auroc']['mean']:>8.3f} +- {row['auroc']['std']:.3f}"
        )


def main() -> None:
    parser = cli.common_parser(__doc__, globals())
    parser.add_argument(
        "--seeds",
        type=cli.flag("SEEDS", int),
        default=SEEDS,
        metavar="N",
        help="trainings of each selector (default: %(default)s)",
    )
    parser.add_argument(
        "--out-of-fold",
        type=Path,
        metavar="PATH",
        help="folder of students that were trained on the second half of the training images",
    )
    cli.add_out(parser, OUT, "selectors.json and selectors.png")
    args = parser.parse_args()
    device = pick_device(args.device)
    figures = figures_into(args.out)
    train, val, test = load_splits(args.data_dir, args.subset, device)
    folds = out_of_fold(args.out_of_fold, args.out / "out_of_fold.npz", train)
    students = []
    for arch in STUDENTS:
        path = args.checkpoint_dir / FILES[arch]
        student, facts = load_network(path, arch)
        check_classes(path, facts, train.classes, train.name)
        students.append(for_inference(student, device))
    print(f"training selectors on {described(train, val, test)}", flush=True)
    told = selectors(students, train, val, test, args.seeds, folds, args.batch_size)
    print_table(told)
    written = [args.out / name for name in ("selectors.json", "selectors.png")]
    with replacing(written[0], binary=False) as file:
        json.dump(told, file, indent=1)
    from studies import routing_figures  # which needs Matplotlib

    figures.save(routing_figures.selectors(told), written[1])
    print(f"wrote {', '.join(map(shown, written))}")


if __name__ == "__main__":
    cli.run(main)
