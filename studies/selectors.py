"""The selector study: can a selector predict from the image alone which student is correct?

    python -m studies.selectors     writes selectors.json and selectors.png to results/
    python -m studies.selectors --out-of-fold runs/half    recompute the out-of-fold logits first

Trains many small selectors with several seeds, with different kinds of labels and depths; takes a
quarter of an hour on two cores. Needs the students' checkpoints and CIFAR-10. Thresholds are chosen
on images that are not used otherwise. All results are measured on the test images.

Out-of-fold labels come from students trained on one half of the training images and evaluated on
the other half. Their logits are stored in results/out_of_fold.npz. `--out-of-fold` computes them
again with the students in a folder, which are trained by

    python -m studies.specialize halves
    python StudentTrain.py --model 1 --distill-loss none --epochs 6 \\
        --indices runs/special/halves-2.npy --checkpoint-dir runs/half
    also with --model 2
"""

import itertools
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from evaluation import figures_into
from evaluation.policies import Networks
from evaluation.significance import auroc_mean_interval, wilson_interval
from models import SELECTED, STUDENTS, Selector
from studies.policies import measured_policy
from studies.specialize import halves
from utils import cli
from utils.augment import Augmentation, Batches, crop_and_flip
from utils.checkpoint import ALONE, FILES, check_data, load_network
from utils.data import CIFAR10, Split, data_facts, described, fingerprint, load_splits
from utils.device import autocast, for_inference, pick_device, to_device
from utils.files import UserError, replacing, shown, write_json
from utils.logits import predict
from utils.method import label_weights, selector_labels, selector_thresholds, share
from utils.optim import one_cycle, optimizers
from utils.safe_load import read_arrays, read_logits

BATCH_SIZE = 500  # images per step, for the students' logits
SEEDS = 5  # runs per selector
OUT = Path("results")  # for selectors.json and selectors.png
STEPS = 240  # training steps per selector, rounded up to whole epochs
STEP = 128  # images per training step of a selector
IMAGES = 10_000  # number of training images, from the first on
LEARNING_RATE = 0.05  # as in trainSelector.py, like the other hyperparameters
AUGMENTATION = Augmentation(crop=4, flip=True)

SHARE = f"share_{SELECTED[0]}"  # of the images that go to this student

LABELS = {  # kinds of training images for a selector
    "train": "training images, as published",
    "augmented": "the same cropped and flipped, as the students were trained",
    "held out": "images that neither student was trained on",
    "out of fold": "training images, by students that were trained on the other half of them",
}


@dataclass(frozen=True)
class Variant:
    """A variant of selector training.

    labels: a key of LABELS.
    weighted: weight each image by the difference of the students' absolute errors.
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
    """Images, uint8 (N, 32, 32, 3), and the students' logits for them.

    images: the images.
    nets: their labels and the logits.
    """

    images: torch.Tensor
    nets: Networks

    @property
    def logits(self) -> list[torch.Tensor]:
        """The logits of each student, (N, classes)."""
        return [self.nets.logits[arch] for arch in SELECTED]

    def right(self) -> torch.Tensor:
        """Whether each student is correct: bool (K, N)."""
        return self.nets.students_right(SELECTED)

    def part(self, start: int, end: int | None = None) -> "Answers":
        return Answers(self.images[start:end], self.nets.take(slice(start, end)))


def answers_of(
    images: torch.Tensor, labels: torch.Tensor, logits: Iterable[torch.Tensor]
) -> Answers:
    """The answers of all students, whose costs do not matter here."""
    stored = dict(zip(STUDENTS, logits, strict=True))
    return Answers(images, Networks(stored, dict.fromkeys((*STUDENTS, "selector"), 0), labels))


def out_of_fold(folder: Path | None, saved: Path, train: Split) -> torch.Tensor | None:
    """Logits of students that were not trained on the first IMAGES training images, or None.

    Args:
        folder: folder of such students, trained without the teacher on the second of `halves`.
            Their logits are computed and saved. None: use the saved logits if they are for these
            training images.
        saved: the .npz file of the logits, (K, N, classes).

    Raises:
        UserError: a student in the folder is missing or was trained on other images.
    """
    of = fingerprint([train.images, train.labels])
    if folder is None:
        try:
            if read_arrays(saved, ["of"])["of"] == of:
                shape = (len(STUDENTS), "N", len(train.classes))
                return read_logits(saved, {"logits": shape})["logits"].to(train.images.device)
        except (UserError, LookupError):
            pass  # as if the file were missing
        print(f"no out-of-fold logits in {shown(saved)} for these images: see --out-of-fold")
        return None
    first, second = halves(train)
    half = data_facts(second.images, second.labels)
    logits = []
    for arch in STUDENTS:
        path = folder / ALONE[arch]
        student, facts = load_network(path, arch)
        if facts["hyperparameters"].get("data") != half:
            raise UserError(
                f"{path} was not trained on the second half of these images: run python -m "
                "studies.specialize halves, then train it with --indices runs/special/halves-2.npy"
            )
        student = for_inference(student, train.images.device)
        logits.append(predict(student, first.images[:IMAGES], arch))
    logits = torch.stack(logits)
    with replacing(saved) as file:
        np.savez_compressed(file, of=of, logits=logits.half().cpu().numpy())
    return logits


def shifted(images: torch.Tensor) -> torch.Tensor:
    """Crop and flip each image randomly, as in training: uint8 (N, 32, 32, 3)."""
    generator = torch.Generator().manual_seed(0)
    shift = torch.randint(
        -AUGMENTATION.crop, AUGMENTATION.crop + 1, (len(images), 2), generator=generator
    )
    flip = torch.randint(0, 2, (len(images),), generator=generator).bool()
    return crop_and_flip(images, shift.to(images.device), flip.to(images.device))


def train_selector(variant: Variant, told: Answers, seed: int, steps: int) -> Selector:
    """Train a selector of this variant on `told`."""
    targets, weights = lesson(told.nets, variant.weighted)
    # A label is valid for the image that the students saw, so these are not cropped again.
    augmentation = Augmentation(0, False) if variant.labels == "augmented" else AUGMENTATION
    batches = Batches(told.images, STEP, seed, augmentation)
    epochs = -(-steps * STEP // len(told.images))
    return fit(batches, targets, weights, epochs, variant.depth, variant.batch_norm)


def lesson(nets: Networks, weighted: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Selector labels, int64 (N,), and their weights, float32 (N,)."""
    logits = [nets.logits[arch] for arch in SELECTED]
    labels = selector_labels(logits, nets.labels)
    if weighted:
        return labels, label_weights(logits, nets.labels)
    return labels, torch.ones(len(labels), device=labels.device)


def fit(
    batches: Batches,
    targets: torch.Tensor,
    weights: torch.Tensor,
    epochs: int,
    depth: int = 3,
    batch_norm: bool = True,
) -> Selector:
    """Train a selector with the hyperparameters of trainSelector.py.

    Args:
        batches: the images; their seed is also used for the initial weights.
        targets, weights: labels and weights of these images, see `lesson`.
        epochs: number of epochs.
        depth, batch_norm: of the `Selector`.
    """
    device = batches.images.device
    torch.manual_seed(batches.seed)
    selector = to_device(Selector(depth, batch_norm, len(SELECTED)), device).train()
    (optimizer,) = optimizers(selector, "sgd", LEARNING_RATE, 0.9, 5e-4)
    schedule = one_cycle(optimizer, LEARNING_RATE, 0.25, epochs * batches.steps)
    for epoch in range(epochs):
        for images, target, weight in batches.epoch(epoch, targets, weights):
            with autocast(device):
                outputs = selector(images).float()
                loss = F.cross_entropy(outputs, target, reduction="none")
            (loss * weight).mean().backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return selector


def measure(selector: Selector, choosing: Answers, test: Answers) -> dict[str, float]:
    """Evaluate routing by `selector` on `test`, with the thresholds chosen on `choosing`."""
    thresholds = selector_thresholds(predict(selector, choosing.images), choosing.right())
    scores = predict(selector, test.images)
    nets = replace(test.nets, logits=test.nets.logits | {"selector": scores})
    facts = measured_policy(nets, nets.run("selector", thresholds), scores)
    return {name: facts[name] for name in ("accuracy", "auroc", SHARE, "mcnemar_p")}


def study(
    variants: tuple[Variant, ...],
    told: dict[str, Answers],
    choosing: Answers,
    test: Answers,
    seeds: int,
    steps: int,
) -> Iterator[dict]:
    """Train and evaluate each variant with each seed.

    Yields the variant, its runs, and their means and standard deviations. The 95 % intervals of the
    means are for sampling of the test images.
    """
    right = test.right()
    for i, j in itertools.permutations(range(len(right)), 2):
        if not (right[i] & ~right[j]).any():
            raise UserError(
                f"among the {len(test.images)} test images, student {i + 1} must be correct on at "
                f"least one on which student {j + 1} is not: use more images"
            )
    with tqdm(total=len(variants) * seeds, unit="selector") as bar:
        for variant in variants:
            runs = []
            for seed in range(seeds):
                selector = train_selector(variant, told[variant.labels], seed, steps)
                runs.append({"seed": seed, **measure(selector, choosing, test)})
                bar.update()
            summary = {}
            for key in ("accuracy", "auroc", SHARE):
                values = [run[key] for run in runs]
                spread = statistics.stdev(values) if seeds > 1 else 0.0
                summary[key] = {"mean": statistics.mean(values), "std": spread}
            accuracy, area = summary["accuracy"], summary["auroc"]
            accuracy["interval"] = wilson_interval(accuracy["mean"], len(test.images))
            area["interval"] = auroc_mean_interval(area["mean"], right)
            yield {**asdict(variant), **summary, "runs": runs}


def selectors(
    students: list[nn.Module],
    train: Split,
    val: Split,
    test: Split,
    seeds: int,
    folds: torch.Tensor | None,
    batch_size: int = BATCH_SIZE,
) -> dict:
    """Evaluate all variants for these students on `test`.

    Thresholds are chosen on half of the validation images. `folds` are the out-of-fold logits for
    the first IMAGES training images; without them, the variants that need them are skipped. Raises
    UserError if there are too few images.
    """
    if len(val) < 4:
        raise UserError("too few validation images, at least 4 are needed: use more images")
    train = train.take(slice(IMAGES))
    tested, held_out, trained, augmented = (
        answers_of(
            images,
            split.labels,
            (predict(student, images, batch_size=batch_size) for student in students),
        )
        for images, split in (
            (test.images, test),
            (val.images, val),
            (train.images, train),
            (shifted(train.images), train),
        )
    )
    half = len(val) // 2
    told = {"train": trained, "augmented": augmented, "held out": held_out.part(0, half)}
    if folds is not None:
        count = folds.shape[1]
        told["out of fold"] = answers_of(train.images[:count], train.labels[:count], folds)
    variants = tuple(each for each in VARIANTS if each.labels in told)
    return {
        "told": {
            name: {
                "images": len(each.images),
                "accuracy": [share(right) for right in each.right()],
                "apart": share(each.right().any(dim=0) & ~each.right().all(dim=0)),
            }
            for name, each in told.items()
        },
        "variants": list(study(variants, told, held_out.part(half), tested, seeds, STEPS)),
    }


def print_table(told: dict) -> None:
    """Print the results of the variants as a table."""
    print(f"{'labels':<13}{'weighted':<10}{'depth':<7}{'norm':<7}{'top-1 %':>8}{'AUROC':>15}")
    for row in told["variants"]:
        print(
            f"{row['labels']:<13}{row['weighted']!s:<10}{row['depth']:<7}{row['batch_norm']!s:<7}"
            f"{100 * row['accuracy']['mean']:>8.2f}"
            f"{row['auroc']['mean']:>8.3f} +- {row['auroc']['std']:.3f}"
        )


def main() -> None:
    parser = cli.common_parser(__doc__, globals())
    cli.add_flag(parser, "SEEDS", SEEDS, "number of runs per selector")
    parser.add_argument(
        "--out-of-fold",
        type=Path,
        metavar="PATH",
        help="compute the out-of-fold logits with the students in this folder, which were trained "
        "on the second half of the training images",
    )
    cli.add_out(parser, OUT, "selectors.json and selectors.png")
    args = parser.parse_args()
    device = pick_device(args.device)
    figures = figures_into(args.out)
    paths = [args.checkpoint_dir / FILES[arch] for arch in STUDENTS]
    loaded = [load_network(path, arch) for path, arch in zip(paths, STUDENTS, strict=True)]
    # This study normalizes all images like CIFAR-10's, and refuses networks for other ones.
    train, val, test = load_splits(args.data, args.subset, device, asdict(CIFAR10))
    for path, (_, facts) in zip(paths, loaded, strict=True):
        check_data(path, facts, train.data)
    students = [for_inference(student, device) for student, _ in loaded]
    folds = out_of_fold(args.out_of_fold, args.out / "out_of_fold.npz", train)
    print(f"training selectors on {described(train, val, test)}", flush=True)
    told = selectors(students, train, val, test, args.seeds, folds, args.batch_size)
    print_table(told)
    written = [args.out / name for name in ("selectors.json", "selectors.png")]
    write_json(written[0], told)
    from studies.figures import selector_aurocs  # which needs Matplotlib

    figures.save(selector_aurocs(told), written[1])
    print(f"wrote {', '.join(map(shown, written))}")


if __name__ == "__main__":
    cli.run(main)
