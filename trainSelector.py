"""Train the selector: a small CNN that sends each image to the student that does better on it.

    python trainSelector.py
    python trainSelector.py --epochs 1 --subset 2000   a quick try
    python trainSelector.py --resume                   go on where Ctrl-C stopped it
    torchrun --standalone --nproc_per_node=2 trainSelector.py     on two GPUs

Needs checkpoints/densenet121.pth and googlenet.pth, made by StudentTrain.py. Writes
checkpoints/selector.pth (the epoch whose routed accuracy is best by validation, and thresholds
for the policies of inference.py), selector.csv (a row an epoch) and selector_labels.npz (which
student is better on each training image). inference.py uses it.
"""

import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from models import STUDENTS, MultiStudent, Selector, confidence, macs
from utils import cli
from utils.answers import predict, top1
from utils.augment import Augmentation
from utils.checkpoint import FILES, amend_checkpoint, load_network
from utils.data import Split, fingerprint, load_splits
from utils.device import autocast, for_inference, pick_device, seed_everything, to_device
from utils.distillation import absolute_error, best_threshold, routed_accuracy, selector_labels
from utils.distributed import from_first, join_group, rank
from utils.files import claim, replacing, shown
from utils.run import Run

# ------------------------------------------------------------------ hyperparameters

DEPTH = 3  # convolution blocks, 1 to 4
BATCH_NORM = True  # in each block
COST_WEIGHT = 0.0  # absolute error that the dearest student's MACs weigh; 0: the published labels
THRESHOLD = None  # student 1 answers from this probability on; None: chosen on validation
EPOCHS = 10
BATCH_SIZE = 128  # images a step
LEARNING_RATE = 0.05  # the highest, at the end of the warm-up
OPTIMIZER = "sgd"  # or "adamw", with a far lower rate
MOMENTUM = 0.9  # the first of AdamW's betas, or Nesterov's for SGD
WEIGHT_DECAY = 5e-4  # on weights, not on biases and norms
WARMUP = 0.25  # share of all steps; a cosine down to 0 follows
CROP = 4  # pixels of reflection around the image that a random crop may reach
FLIP = True  # mirror every other image, at random
CUTOUT = 0  # side of the square cut out of each image, in pixels
SEED = 0

# ------------------------------------------------------------------ the story


def main() -> None:
    args = cli.training_parser(__doc__, globals()).parse_args()
    device = pick_device(args.device)
    join_group(device)
    path = args.checkpoint_dir / FILES["selector"]
    from_first(lambda: claim(path))
    students = from_first(
        lambda: [load_network(args.checkpoint_dir / FILES[arch], arch)[0] for arch in STUDENTS]
    )
    train, val, test = load_splits(args.data_dir, args.subset, device)
    seed_everything(args.seed)
    selector = to_device(Selector(DEPTH, BATCH_NORM), device)
    cli.announce(
        f"Training the selector, {DEPTH} blocks, between {' and '.join(STUDENTS)}",
        **cli.training_facts(args, device, selector, len(train), len(val), path),
    )

    trained = [fingerprint(student.state_dict().values()) for student in students]
    work = [macs(student) for student in students]
    handicap = COST_WEIGHT * (work[0] - work[1]) / max(work)
    students = [for_inference(student, device) for student in students]
    labels_path = path.with_name("selector_labels.npz")
    targets = better_student(students, trained, handicap, train, labels_path)
    val_logits = [predict(student, val.images) for student in students]
    val_targets = selector_labels(*val_logits, val.labels, handicap)
    right = [logits.argmax(dim=1) == val.labels for logits in val_logits]

    run = Run(
        selector, path, train.images, targets,
        arch="selector", stem=None, epochs=args.epochs, batch_size=args.batch_size,
        optimizer=OPTIMIZER, lr=args.lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY,
        warmup=WARMUP, seed=args.seed, augmentation=Augmentation(CROP, FLIP, CUTOUT),
        facts={
            "depth": DEPTH, "batch_norm": BATCH_NORM, "cost_weight": COST_WEIGHT,
            "students": trained,
        },
        resume=args.resume,
    )  # fmt: skip
    for _ in run.epochs():
        for images, better in run.batches(targets):
            with autocast(device):
                scores = run.model(images)
                loss = F.binary_cross_entropy_with_logits(scores.float(), better)
            run.step(loss, correct=(scores > 0) == (better > 0.5))
        scores = predict(selector, val.images, "validation", args.batch_size)
        val_loss = F.binary_cross_entropy_with_logits(scores, val_targets).item()
        run.end_epoch(val_loss, routed_accuracy(0.5, scores.sigmoid(), *right))

    selector = for_inference(from_first(lambda: load_network(path))[0], device)
    scores = predict(selector, val.images).sigmoid()
    threshold = best_threshold(scores, *right, handicap) if THRESHOLD is None else THRESHOLD
    both = sum(val_logits).argmax(dim=1) == val.labels
    logits, choice = predict(MultiStudent(students, selector, threshold), test.images, "test")
    facts = {
        "threshold": threshold,
        "cascade_threshold": best_threshold(
            confidence(val_logits[1]), right[1], both, -COST_WEIGHT * work[0] / max(work)
        ),
        "val_accuracy": routed_accuracy(threshold, scores, *right),
        "test_accuracy": top1(logits, test.labels),
    }
    if rank() == 0:
        amend_checkpoint(path, **facts)
    print(
        f"\nthreshold {threshold:.2f}: routed top-1 {facts['val_accuracy']:.2%} on the validation "
        f"images, {facts['test_accuracy']:.2%} on {len(test):,} test images, of which "
        f"{(choice == 0).double().mean():.1%} went to {STUDENTS[0]}; wrote {shown(path)}"
    )
    print("next: python inference.py")


def better_student(
    students: list[nn.Module], trained: list[str], handicap: float, train: Split, path: Path
) -> torch.Tensor:
    """The selector's labels for the training images, float32 (N,), saved with their indices.

    Labels that lie at `path` are taken where they come from this rule, these very images and
    students, whose fingerprints are `trained`.
    """
    made_of = [fingerprint([train.images, train.labels]), *trained, str(handicap)]
    labels = from_first(lambda: saved_labels(path, made_of))
    if labels is None:
        logits = [
            predict(student, train.images, f"student {k}") for k, student in enumerate(students, 1)
        ]
        labels = selector_labels(*logits, train.labels, handicap)
        errors = torch.stack([absolute_error(each, train.labels) for each in logits], dim=1)
        if rank() == 0:
            with replacing(path) as file:
                np.savez(
                    file, indices=train.indices, labels=labels.cpu().byte(),
                    errors=errors.cpu().numpy(), made_of=made_of,
                )  # fmt: skip
    print(f"student 1 is the better on {labels.mean():.1%} of the training images")
    return labels.to(train.images.device)


def saved_labels(path: Path, made_of: list[str]) -> torch.Tensor | None:
    """The labels at `path`, float32 (N,), if they were made of the same images and students."""
    try:
        with np.load(path) as file:
            if file["made_of"].tolist() == made_of:
                return torch.from_numpy(file["labels"]).float()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # there are none, or they are damaged: they are made anew
    return None


if __name__ == "__main__":
    cli.run(main)
