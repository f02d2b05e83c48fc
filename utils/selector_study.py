"""Whether a selector can tell from the image alone which student is right, whatever its labels.

    python -m utils.selector_study     writes selectors.json and selectors.png into results/

Trains many small selectors, each with several seeds: on labels made in different ways, and at each
depth. A variant's threshold is chosen on images that are used for nothing else; all that is told is
measured on the test images. Needs both students' checkpoints and CIFAR-10, and ten minutes.
"""

import itertools
import json
import statistics
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from models import STUDENTS, Selector
from utils import cli
from utils.checkpoint import FILES, load_network
from utils.data import Augmentation, Split, crop_and_flip, load_splits
from utils.device import for_inference, pick_device, seed_everything, to_device
from utils.distillation import absolute_error, best_threshold, selector_labels
from utils.files import UserError, replacing, shown
from utils.statistics import auroc, mcnemar_p
from utils.train import Recipe, Trainer, predict

BATCH_SIZE = 128  # images a step
STEPS = 240  # of each selector, whatever the number of its images
IMAGES = 10_000  # of the training images
SEEDS = 5
LEARNING_RATE = 0.05  # as the rest of the recipe that of trainSelector.py
AUGMENTATION = Augmentation(crop=4, flip=True)
OUT = Path("results")  # for selectors.json and selectors.png

LABELS = {  # the images that a selector learns from
    "train": "training images, as published",
    "augmented": "the same cropped and flipped, as the students were trained",
    "held out": "images that no student was trained on",
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


def answers(students: list[nn.Module], images: torch.Tensor, labels: torch.Tensor) -> Answers:
    """What the students say of the images."""
    return Answers(images, labels, tuple(predict(student, images) for student in students))


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
    errors = [absolute_error(logits, told.labels) for logits in told.logits]
    targets = selector_labels(*told.logits, told.labels)
    weights = (errors[0] - errors[1]).abs() if variant.weighted else torch.ones_like(targets)
    weights = weights / weights.mean().clamp_min(1e-12)

    def loss(_: torch.Tensor, outputs: torch.Tensor, goals: torch.Tensor) -> torch.Tensor:
        target, weight = goals.unbind(dim=1)
        return F.binary_cross_entropy_with_logits(outputs.float(), target, weight)

    # A label belongs to the image as the students saw it, so that a crop of a crop is none of it.
    augmentation = Augmentation(0, False) if variant.labels == "augmented" else AUGMENTATION
    epochs = -(-steps * BATCH_SIZE // len(told.labels))
    recipe = Recipe(epochs, BATCH_SIZE, LEARNING_RATE, "sgd", 0.9, 5e-4, 0.25, seed, augmentation)
    seed_everything(seed)
    selector = to_device(Selector(variant.depth, variant.batch_norm), told.images.device)
    with TemporaryDirectory() as folder:  # nothing is written there: only steps are taken
        trainer = Trainer(
            selector, Path(folder) / "selector.pth", "selector", None, recipe, {}, told.images,
            torch.stack([targets, weights], dim=1), loss,
            correct=lambda outputs, goals: (outputs > 0) == (goals[:, 0] > 0.5),
            val_images=told.images[:0], validate=lambda outputs: (0.0, 0.0),
        )  # fmt: skip
        selector.train()
        for epoch in range(epochs):
            for step, (images, goals) in enumerate(trainer.batches.epoch(epoch)):
                trainer.step(images, goals, trainer.batches.size(step))
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
        "accuracy": right.double().mean().item(),
        "auroc": auroc(scores[apart], first[apart]),
        f"share_{STUDENTS[0]}": to_first.double().mean().item(),
        "mcnemar_p": mcnemar_p(right, better),
    }


def study(
    variants: tuple[Variant, ...], told: dict[str, Answers], choosing: Answers, test: Answers,
    seeds: int, steps: int,
) -> Iterator[dict]:  # fmt: skip
    """Each variant with each seed: its facts, its runs, and their mean and standard deviation."""
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
            yield {**asdict(variant), **summary, "runs": runs}


def main() -> None:
    parser = cli.common_parser(__doc__, globals())
    cli.add_out(parser, OUT, "selectors.json and selectors.png")
    args = parser.parse_args()
    device = pick_device(args.device)
    train, val, test = load_splits(args.data_dir, args.subset, device)
    if len(val) < 4:
        raise UserError("too few validation images: half of them choose thresholds")
    students = [
        for_inference(load_network(args.checkpoint_dir / FILES[arch], arch)[0], device)
        for arch in STUDENTS
    ]
    train = Split(train.images[:IMAGES], train.labels[:IMAGES], train.indices[:IMAGES])
    held_out = answers(students, val.images, val.labels)
    half = len(val) // 2
    told = {
        "train": answers(students, train.images, train.labels),
        "augmented": answers(students, shifted(train.images), train.labels),
        "held out": held_out.part(0, half),
    }
    tested = answers(students, test.images, test.labels)
    alone = [(one & ~other).sum() for one, other in (tested.right(), tested.right()[::-1])]
    if not all(alone):
        raise UserError(
            f"on none of the {len(test)} test images is one student alone right: take more"
        )
    rows = list(study(VARIANTS, told, held_out.part(half), tested, SEEDS, STEPS))
    first, second = tested.right()
    result = {
        "images": len(test),
        "better_student": max(right.double().mean().item() for right in (first, second)),
        "told": {
            name: {
                "images": len(each.labels),
                "apart": (each.right()[0] != each.right()[1]).double().mean().item(),
            }
            for name, each in told.items()
        },
        "variants": rows,
    }
    print(f"\n{'labels':<11}{'weighted':<10}{'depth':<7}{'norm':<7}{'top-1 %':>8}{'AUROC':>15}")
    for row in rows:
        print(
            f"{row['labels']:<11}{row['weighted']!s:<10}{row['depth']:<7}{row['batch_norm']!s:<7}"
            f"{100 * row['accuracy']['mean']:>8.2f}"
            f"{row['auroc']['mean']:>8.3f} +- {row['auroc']['std']:.3f}"
        )
    with replacing(args.out / "selectors.json", binary=False) as file:
        json.dump(result, file, indent=1)
    from utils import figures

    figures.save(figures.selectors(result), args.out / "selectors.png")
    print(f"wrote {shown(args.out / 'selectors.json')}, {shown(args.out / 'selectors.png')}")


if __name__ == "__main__":
    cli.run(main)
