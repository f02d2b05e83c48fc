"""Train the selector: a small CNN that sends each image to the student with the smaller error.

    python trainSelector.py
    python trainSelector.py --epochs 1 --subset 2000   quick test, writes to runs/quick/
    python trainSelector.py --resume                   continue a run that was stopped
    python trainSelector.py --context mixed --label-rule context --checkpoint-dir PATH
    python trainSelector.py --run NAME --seed 1 --set DEPTH=2    writes to runs/NAME/
    torchrun --standalone --nproc_per_node=2 trainSelector.py     use two GPUs

Needs the students in checkpoints/, written by StudentTrain.py, and the teacher for the thresholds
of --target teacher. Writes checkpoints/selector.pth (the epoch with the best routed accuracy on the
validation images, and the thresholds for the policies of inference.py) and selector.csv (one row
per epoch).
"""

from utils import cli  # first: Ctrl-C while it imports PyTorch ends in one line

# isort: split
import argparse
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

import models
from models import MultiStudent, Selector, macs, offsets_of
from utils.checkpoint import FILES, amend_checkpoint, fingerprint_of, load_network, load_system
from utils.contexts import context_labels, image_seeds, in_context, told_apart
from utils.data import Split, data_facts
from utils.device import autocast, for_inference, pick_device, to_device
from utils.distributed import join_group
from utils.files import UserError, claim, shown
from utils.logits import predict, top1
from utils.method import (
    cascade_thresholds,
    routed_accuracy,
    selector_labels,
    selector_thresholds,
    share,
)
from utils.run import Run

# ------------------------------------------------------------------ hyperparameters

# Each of these also has a flag:
DATA = "cifar10"  # or "cifar100", or the path of an .npz file with your own images
EPOCHS = 10
BATCH_SIZE = 128  # images per step
LEARNING_RATE = 0.05  # maximum, reached after the warm-up
SEED = 0
CONTEXT = "clean"  # of all images, see utils/contexts.py
LABEL_RULE = "errors"  # the student that errs less; "context": the one trained on such images

# Edit these here, or use --set NAME=VALUE:
DEPTH = 3  # convolution blocks, 1 to 4
BATCH_NORM = True  # in each block
THRESHOLD = None  # a student answers if its probability is >= this; None: chosen on validation
OPTIMIZER = "sgd"  # or "muon" or "adamw", with a much lower learning rate
MOMENTUM = 0.9  # Nesterov momentum of SGD and Muon, beta1 of AdamW
WEIGHT_DECAY = 5e-4  # not applied to biases and normalization layers
WARMUP = 0.25  # fraction of all steps; then cosine decay to 0
CROP = 4  # reflection padding before the random crop, in pixels
FLIP = True  # random horizontal flip
CUTOUT = 0  # side of the cutout square, in pixels

# ------------------------------------------------------------------ training


def main() -> None:
    args = read_flags()
    device = pick_device(args.device)
    join_group(device)
    path = args.checkpoint_dir / FILES["selector"]
    claim(path)
    networks, trained_on, (clean, val, test) = load_networks(args, device)
    students = {arch: networks[arch] for arch in models.STUDENTS}
    # The context of an image is the same in every epoch, because its label depends on it.
    train, val, test = (in_context(split, args.context) for split in (clean, val, test))
    torch.manual_seed(args.seed)
    selector = to_device(Selector(args.depth, args.batch_norm, len(models.SELECTED)), device)
    cli.announce(
        f"Training the selector, {args.depth} blocks, between {' and '.join(models.SELECTED)}",
        **cli.training_facts(device, selector, train, val, path),
        students=", ".join(shown(cli.found(args, FILES[arch])) for arch in students),
        context=args.context,
        labels=f"by {args.label_rule}",
        threshold="chosen on the validation images" if args.threshold is None else args.threshold,
    )

    settings = cli.settings(globals(), args) | {"arch": "selector"}
    # Of the clean images: degraded pixels vary with the processor.
    settings["data"] = data_facts(clean.images, clean.labels)
    settings["students"] = [fingerprint_of(student) for student in students.values()]
    settings["selected"] = list(models.SELECTED)
    run = Run(selector, path, train, settings, resume=args.resume)

    work = [macs(student, train.data.size) for student in students.values()]
    networks = {arch: for_inference(net, device) for arch, net in networks.items()}
    val_logits = {arch: predict(net, val) for arch, net in networks.items()}
    of_selected = [val_logits[arch] for arch in models.SELECTED]
    right = torch.stack([logits.argmax(dim=1) == val.labels for logits in of_selected])
    # Which student should answer each image.
    if args.label_rule == "errors":
        train_logits = [predict(networks[arch], train, arch) for arch in models.SELECTED]
        targets = selector_labels(train_logits, train.labels)
        val_targets = selector_labels(of_selected, val.labels)
    else:
        targets, val_targets = (
            context_labels(args.context, image_seeds(split), trained_on).to(device)
            for split in (train, val)
        )
    print(f"{share(targets == 0):.1%} of the training images are labeled with student 1")

    for _ in run.epochs():
        for images, target in run.batches(targets):
            with autocast(device):
                # With two students, this is the published binary cross-entropy of the difference
                # of the logits.
                scores = run.model(images)
                loss = F.cross_entropy(scores.float(), target)
            run.step(loss, correct=scores.argmax(dim=1) == target)
        scores = predict(selector, val, "validation", args.batch_size)
        val_loss = F.cross_entropy(scores, val_targets).item()
        run.end_epoch(val_loss, routed_accuracy(scores, right))

    selector = for_inference(load_network(path)[0], device)
    scores = predict(selector, val)
    thresholds = [args.threshold] * (len(models.SELECTED) - 1)
    if args.threshold is None:
        thresholds = selector_thresholds(scores, right)
    offsets = offsets_of(thresholds).to(device)
    routed = MultiStudent([networks[arch] for arch in models.SELECTED], selector, offsets)
    seen = [val_logits[arch] for arch in models.STUDENTS], val.labels, work
    cascade = {"cascade_thresholds": cascade_thresholds(*seen)}
    if "teacher" in val_logits:
        teacher_right = val_logits["teacher"].argmax(dim=1) == val.labels
        cascade["cascade_teacher_thresholds"] = cascade_thresholds(*seen, teacher_right)
    logits, choice = predict(routed, test, "test")
    val_accuracy = routed_accuracy(scores + offsets, right)
    accuracy = {"val_accuracy": val_accuracy, "test_accuracy": top1(logits, test.labels)}
    amend_checkpoint(path, thresholds=thresholds, **cascade, **accuracy)
    print(
        f"\nthreshold {', '.join(f'{each:.2f}' for each in thresholds)}: routed top-1 "
        f"{val_accuracy:.2%} on the validation images, {accuracy['test_accuracy']:.2%} on "
        f"{len(test):,} test images; {share(choice == 0):.1%} of these went to "
        f"{models.SELECTED[0]}; wrote {shown(path)}"
    )
    for name, chosen in cascade.items():
        print(f"{name.replace('_', ' ')}: {', '.join(map(str, chosen))}")
    same_context = [] if args.context == "clean" else ["--context", args.context]
    cli.next_step(args, "inference.py", *same_context, same=["students"])


def read_flags() -> argparse.Namespace:
    """Parse the flags."""
    parser = cli.training_parser(__doc__, globals())
    cli.add_flag(parser, "CONTEXT", CONTEXT, "context of the images, see utils/contexts.py")
    what = "label each image with the student that errs less, or that was trained on its context"
    cli.add_flag(parser, "LABEL_RULE", LABEL_RULE, what)
    what = "folder of the students (default: that of the other networks)"
    cli.add_path(parser, "--students", what)
    return parser.parse_args()


def load_networks(
    args: argparse.Namespace, device: torch.device
) -> tuple[dict[str, nn.Module], list[str], tuple[Split, Split, Split]]:
    """The students by name, and the teacher if it is there; contexts of SELECTED; and the images.

    Raises UserError if a student is missing, a network is for other images, or --label-rule context
    cannot tell the students apart.
    """
    find = partial(cli.found, args)
    names = [*models.STUDENTS, *(["teacher"] if find(FILES["teacher"]).exists() else [])]
    parts, splits = load_system(find, names, args.data, args.subset, device)
    recipes = [parts[arch][1]["hyperparameters"] for arch in models.SELECTED]
    trained_on = [recipe.get("context", "clean") for recipe in recipes]
    if args.label_rule == "context" and not told_apart(trained_on, args.context):
        raise UserError(
            "--label-rule context needs students that were trained on different contexts, and "
            f"images of each; these were trained on {' and '.join(trained_on)} images, "
            f"the selector is for {args.context} images: use --label-rule errors"
        )
    return {arch: net for arch, (net, _) in parts.items()}, trained_on, splits


if __name__ == "__main__":
    cli.run(main)
