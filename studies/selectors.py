"""The selector study: can a selector predict from the image alone which student is correct?

    python -m studies.selectors    writes selectors.json and selectors.png to results/

Trains many small selectors with several seeds, with different labels and depths; takes ten minutes
on two cores. Needs the students' checkpoints and CIFAR-10. Thresholds are chosen on validation
images that are not used otherwise. All results are measured on the test images.
"""

import itertools
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from tqdm import tqdm

from evaluation.policies import Networks
from evaluation.significance import auroc_apart, auroc_mean_interval, wilson_interval
from models import SELECTED, Selector
from studies import OUT, ends, figures, write
from studies.policies import policy_facts
from utils import cli
from utils.augment import Augmentation, Batches
from utils.checkpoint import load_system
from utils.data import Split, described
from utils.device import autocast, for_inference, pick_device, to_device
from utils.files import UserError, try_folder
from utils.logits import predict
from utils.method import label_weights, selector_labels, selector_thresholds
from utils.optim import one_cycle, optimizers

BATCH_SIZE = 500  # images per step, for the students' logits
SEEDS = 5  # runs per selector
STEPS = 240  # training steps per selector, rounded up to whole epochs
STEP = 128  # images per training step of a selector
IMAGES = 10_000  # number of training images, from the first on
LEARNING_RATE = 0.05  # as in trainSelector.py, like the other hyperparameters
SHARE = f"share_{SELECTED[0]}"  # of the images that go to this student

LABELS = {  # kinds of training images for a selector, in the figure's words
    "train": "training images",  # as published
    "held out": "validation images",  # which neither student was trained on
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
Images = tuple[Split, Networks]  # images of one kind, and the students' logits on the CPU


def train_selector(variant: Variant, images: Images, seed: int, steps: int) -> Selector:
    """Train a selector of this variant with the hyperparameters of trainSelector.py."""
    split, nets = images
    logits, device = [nets.logits[arch] for arch in SELECTED], split.images.device
    targets = selector_labels(logits, nets.labels).to(device)
    weights = torch.ones(len(targets))
    if variant.weighted:
        weights = label_weights(logits, nets.labels)
    batches = Batches(split.images, STEP, seed, Augmentation(crop=4, flip=True), data=split.data)
    torch.manual_seed(seed)
    selector = Selector(variant.depth, variant.batch_norm, len(SELECTED))
    selector = to_device(selector, device).train()
    (optimizer,) = optimizers(selector, "sgd", LEARNING_RATE, 0.9, 5e-4)
    epochs = -(-steps * STEP // len(split))
    schedule = one_cycle(optimizer, LEARNING_RATE, 0.25, epochs * batches.steps)
    for epoch in range(epochs):
        for seen, target, weight in batches.epoch(epoch, targets, weights.to(device)):
            with autocast(device):
                loss = F.cross_entropy(selector(seen).float(), target, reduction="none")
            (loss * weight).mean().backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return selector


def scored(images: Images, selector: Selector) -> Networks:
    """The logits of the students and of this selector."""
    split, nets = images
    return replace(nets, logits=nets.logits | {"selector": predict(selector, split).cpu()})


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
    right = test[1].students_right(SELECTED)
    if auroc_apart(torch.zeros(right.T.shape), right)[1] is None:
        raise UserError("on these test images, no two students are each correct alone: use more")
    for variant in variants:
        runs = []
        for seed in tqdm(range(seeds), f"{variant.labels}, depth {variant.depth}", leave=False):
            selector = train_selector(variant, train[variant.labels], seed, steps)
            nets, choosing = scored(test, selector), scored(val, selector)
            thresholds = selector_thresholds(choosing.logits["selector"], choosing.students_right())
            outcome = nets.run("selector", thresholds)
            facts = policy_facts(nets, outcome, nets.logits["selector"])
            kept = ("accuracy", "auroc", SHARE, "mcnemar_p")
            runs.append({"seed": seed, **{name: facts[name] for name in kept}})
        summary = {}
        for key in ("accuracy", "auroc", SHARE):
            values = [run[key] for run in runs]
            spread = statistics.stdev(values) if seeds > 1 else 0.0
            summary[key] = {"mean": statistics.mean(values), "std": spread}
        accuracy, area = summary["accuracy"], summary["auroc"]
        accuracy["interval"] = wilson_interval(accuracy["mean"], right.shape[1])
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
    students = {arch: for_inference(student, device) for arch, (student, _) in loaded.items()}
    print(f"training selectors on {described(train, val, test)}", flush=True)
    half = len(val) // 2
    if not half:
        raise UserError("one half of the validation images is empty: use more images")

    def predicted(split: Split) -> Images:
        logits = {
            arch: predict(net, split, None, args.batch_size).cpu() for arch, net in students.items()
        }
        work = dict.fromkeys((*SELECTED, "selector"), 0)  # costs do not matter here
        return split, Networks(logits, work, split.labels.cpu())

    kinds = train.take(slice(IMAGES)), val.take(slice(half))
    sets = dict(zip(LABELS, map(predicted, kinds), strict=True))
    choosing, tested = predicted(val.take(slice(half, None))), predicted(test)
    results = {"variants": list(study(VARIANTS, sets, choosing, tested, args.seeds, STEPS))}
    print(cli.aligned(*table(results)))
    dots = []
    for row in sorted(results["variants"], key=lambda row: -row["auroc"]["mean"]):
        name = f"{LABELS[row['labels']]}{', weighted' if row['weighted'] else ''}, "
        name += f"{row['depth']} block{'s' if row['depth'] > 1 else ''}"
        name += "" if row["batch_norm"] else " without batch norm"
        dots.append((name, [run["auroc"] for run in row["runs"]], row["auroc"]["interval"]))
    what = "AUROC on the test images where exactly one student is correct"
    write(args.out, "selectors", results, selectors=figures.dots_per_seed(dots, 0.5, what))


if __name__ == "__main__":
    cli.run(main)
