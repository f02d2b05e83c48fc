"""The selector study: can a selector predict from the image alone which student is correct?

    python -m studies.selectors    writes selectors.json and selectors.png to results/

Trains many small selectors with several seeds, with different kinds of labels and depths; takes a
quarter of an hour on two cores. Needs the students' checkpoints and CIFAR-10. Thresholds are chosen
on images that are not used otherwise. All results are measured on the test images.

Out-of-fold labels come from students trained on the second half of the training split, without the
teacher, which has seen all of it: `StudentTrain.py --distill-loss none --epochs 6 --indices PATH`.
Their logits for the first images of the other half are stored in results/out_of_fold.npz: `logits`,
float16 (2, 10000, 10), and `of`, the fingerprint of the training split. For other images, these
labels are left out.
"""

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from evaluation.policies import Networks
from evaluation.significance import auroc_apart, auroc_mean_interval, wilson_interval
from models import SELECTED, Selector
from studies import ends, figures, write
from studies.policies import policy_facts
from utils import cli
from utils.augment import Augmentation, Batches, crop_and_flip
from utils.checkpoint import load_system
from utils.data import Split, described, fingerprint
from utils.device import autocast, for_inference, pick_device, to_device
from utils.files import UserError, shown, try_folder
from utils.logits import predict
from utils.method import label_weights, selector_labels, selector_thresholds, share
from utils.optim import one_cycle, optimizers
from utils.safe_load import read_arrays, read_logits

BATCH_SIZE = 500  # images per step, for the students' logits
SEEDS = 5  # runs per selector
OUT = Path("results")  # for selectors.json and selectors.png
FOLDS = Path("results/out_of_fold.npz")  # logits of students of the other half
STEPS = 240  # training steps per selector, rounded up to whole epochs
STEP = 128  # images per training step of a selector
IMAGES = 10_000  # number of training images, from the first on
LEARNING_RATE = 0.05  # as in trainSelector.py, like the other hyperparameters
AUGMENTATION = Augmentation(crop=4, flip=True)

SHARE = f"share_{SELECTED[0]}"  # of the images that go to this student

LABELS = {  # kinds of training images for a selector, in the figure's words
    "train": "training images",  # as published
    "augmented": "cropped training images",  # and flipped, as the students were trained
    "held out": "validation images",  # which neither student was trained on
    "out of fold": "training images, out of fold",  # by students of the other half
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


VARIANTS = (
    *(Variant(labels, weighted) for labels in LABELS for weighted in (False, True)),
    *(
        Variant("train", depth=depth, batch_norm=batch_norm)
        for depth, batch_norm in itertools.product((1, 2, 3, 4), (True, False))
        if (depth, batch_norm) != (3, True)  # the first one
    ),
)


class Images(NamedTuple):
    """Images of one kind, and the students' logits for them, on the CPU."""

    split: Split
    nets: Networks

    def scored(self, selector: nn.Module, title: str | None = None) -> Networks:
        """The logits of the students and of this selector."""
        scores = predict(selector, self.split, title).cpu()
        return replace(self.nets, logits=self.nets.logits | {"selector": scores})


def images_of(split: Split, logits: Sequence[torch.Tensor]) -> Images:
    """The images with the logits of all students, whose costs do not matter here."""
    stored = {arch: each.cpu() for arch, each in zip(SELECTED, logits, strict=True)}
    work = dict.fromkeys((*SELECTED, "selector"), 0)
    return Images(split, Networks(stored, work, split.labels.cpu()))


# ------------------------------------------------------------------ training


def lesson(nets: Networks, weighted: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Selector labels, int64 (N,), and their weights, float32 (N,)."""
    logits = [nets.logits[arch] for arch in SELECTED]
    labels = selector_labels(logits, nets.labels)
    return labels, label_weights(logits, nets.labels) if weighted else torch.ones(len(labels))


def fit(
    train: Images,
    targets: torch.Tensor,
    weights: torch.Tensor,
    seed: int,
    epochs: int,
    augmentation: Augmentation,
    depth: int = 3,
    batch_norm: bool = True,
) -> Selector:
    """Train a selector with the hyperparameters of trainSelector.py.

    Args:
        train: the images.
        targets, weights: labels and weights of these images, see `lesson`.
        seed: of the initial weights, the order and the augmentation.
        epochs: number of epochs.
        augmentation: of the images.
        depth, batch_norm: of the `Selector`.
    """
    images, device = train.split.images, train.split.images.device
    batches = Batches(images, STEP, seed, augmentation, data=train.split.data)
    torch.manual_seed(seed)
    selector = to_device(Selector(depth, batch_norm, len(SELECTED)), device).train()
    (optimizer,) = optimizers(selector, "sgd", LEARNING_RATE, 0.9, 5e-4)
    schedule = one_cycle(optimizer, LEARNING_RATE, 0.25, epochs * batches.steps)
    for epoch in range(epochs):
        for images, target, weight in batches.epoch(epoch, targets.to(device), weights.to(device)):
            with autocast(device):
                outputs = selector(images).float()
                loss = F.cross_entropy(outputs, target, reduction="none")
            (loss * weight).mean().backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return selector


def train_selector(variant: Variant, train: Images, seed: int, steps: int) -> Selector:
    """Train a selector of this variant."""
    # A label is valid for the image that the students saw, so these are not cropped again.
    augmentation = Augmentation(0, False) if variant.labels == "augmented" else AUGMENTATION
    epochs = -(-steps * STEP // len(train.split))
    shape = variant.depth, variant.batch_norm
    return fit(train, *lesson(train.nets, variant.weighted), seed, epochs, augmentation, *shape)


def thresholds_of(nets: Networks) -> list[float]:
    """The thresholds with the highest accuracy on these images, which have selector scores."""
    return selector_thresholds(nets.logits["selector"], nets.students_right(SELECTED))


def shifted(split: Split) -> Split:
    """Crop and flip each image randomly, as in training."""
    generator, images = torch.Generator().manual_seed(0), split.images
    crop, count = AUGMENTATION.crop, len(images)
    shift = torch.randint(-crop, crop + 1, (count, 2), generator=generator)
    flip = torch.randint(0, 2, (count,), generator=generator).bool()
    moved = crop_and_flip(images, shift.to(images.device), flip.to(images.device))
    return replace(split, images=moved)


def out_of_fold(path: Path, train: Split) -> Images | None:
    """The first IMAGES training images, with the logits at `path` by students of the other half.

    None if no logits are stored for these images.
    """
    first = train.take(slice(min(IMAGES, len(train) // 2)))
    try:
        if read_arrays(path, ["of"])["of"] == fingerprint([train.images, train.labels]):
            shape = (len(SELECTED), len(first), len(train.classes))
            return images_of(first, read_logits(path, {"logits": shape})["logits"])
    except (UserError, LookupError):
        pass  # as if the file were missing
    print(f"{shown(path)} has no logits for these images: none are trained out of fold")
    return None


# ------------------------------------------------------------------ results


def study(
    variants: Sequence[Variant],
    train: dict[str, Images],
    val: Images,
    test: Images,
    seeds: int,
    steps: int,
) -> Iterator[dict]:
    """Train each variant with each seed, choose thresholds on `val`, and evaluate on `test`.

    Yields the variant, its runs, and their means and standard deviations. The 95 % intervals of the
    means are for sampling of the test images.
    """
    right = test.nets.students_right(SELECTED)
    if auroc_apart(torch.zeros(len(test.split), len(SELECTED)), right)[1] is None:
        raise UserError("on these test images, no two students are each correct alone: use more")
    for variant in variants:
        runs = []
        for seed in tqdm(range(seeds), f"{variant.labels}, depth {variant.depth}", leave=False):
            selector = train_selector(variant, train[variant.labels], seed, steps)
            nets = test.scored(selector)
            outcome = nets.run("selector", thresholds_of(val.scored(selector)))
            facts = policy_facts(nets, outcome, nets.logits["selector"])
            kept = ("accuracy", "auroc", SHARE, "mcnemar_p")
            runs.append({"seed": seed, **{name: facts[name] for name in kept}})
        summary = {}
        for key in ("accuracy", "auroc", SHARE):
            values = [run[key] for run in runs]
            spread = statistics.stdev(values) if seeds > 1 else 0.0
            summary[key] = {"mean": statistics.mean(values), "std": spread}
        accuracy, area = summary["accuracy"], summary["auroc"]
        accuracy["interval"] = wilson_interval(accuracy["mean"], len(test.split))
        area["interval"] = auroc_mean_interval(area["mean"], right)
        yield {**asdict(variant), **summary, "runs": runs}


def table(results: dict) -> tuple[list[str], list[list[str]]]:
    """The variants as a table, heads and rows: means over seeds, range of p."""
    rows = []
    for row in results["variants"]:
        area = row["auroc"]
        ps = [run["mcnemar_p"] for run in row["runs"]]
        rows.append(
            [
                row["labels"] + (", weighted" if row["weighted"] else ""),
                str(row["depth"]) + ("" if row["batch_norm"] else ", no batch norm"),
                f"{100 * row['accuracy']['mean']:.2f}",
                f"{area['mean']:.3f} ({ends(area['interval'], '.2f')})",
                f"{min(ps):.2g} to {max(ps):.2g}",
            ]
        )
    return ["labels", "blocks", "top-1, %", "AUROC (95 % interval)", "p"], rows


def main() -> None:
    parser = cli.common_parser(__doc__, globals())
    cli.add_flag(parser, "SEEDS", SEEDS, "number of runs per selector")
    cli.add_out(parser, OUT, "selectors.json and selectors.png")
    args = parser.parse_args()
    device = pick_device(args.device)
    try_folder(args.out)
    loaded, splits = load_system(
        args.checkpoint_dir.joinpath, SELECTED, args.data, args.subset, device
    )
    train, val, test = splits
    students = [for_inference(student, device) for student, _ in loaded.values()]
    folds = out_of_fold(FOLDS, train)
    print(f"training selectors on {described(train, val, test)}", flush=True)
    train, half = train.take(slice(IMAGES)), len(val) // 2
    if not half:
        raise UserError("one half of the validation images is empty: use more images")

    def predicted(split: Split) -> Images:
        return images_of(split, [predict(net, split, None, args.batch_size) for net in students])

    sets = {
        "train": predicted(train),
        "augmented": predicted(shifted(train)),
        "held out": predicted(val.take(slice(half))),
        **({"out of fold": folds} if folds else {}),
    }
    variants = [each for each in VARIANTS if each.labels in sets]
    choosing, tested = predicted(val.take(slice(half, None))), predicted(test)
    right = {name: each.nets.students_right(SELECTED) for name, each in sets.items()}
    results = {
        "told": {
            name: {
                "images": each.shape[1],
                "accuracy": [share(own) for own in each],
                "apart": share(each.any(dim=0) & ~each.all(dim=0)),
            }
            for name, each in right.items()
        },
        "variants": list(study(variants, sets, choosing, tested, args.seeds, STEPS)),
    }
    print(cli.aligned(*table(results)))
    names = [
        f"{LABELS[row['labels']]}{', weighted' if row['weighted'] else ''}, "
        f"{row['depth']} block{'s' if row['depth'] > 1 else ''}"
        f"{'' if row['batch_norm'] else ' without batch norm'}"
        for row in results["variants"]
    ]
    drawn = figures.selector_aurocs(names, results["variants"])
    write(args.out, "selectors", results, selectors=drawn)


if __name__ == "__main__":
    cli.run(main)
