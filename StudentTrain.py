"""Distill the teacher into a student: the first (--model 1), the second (--model 2), and so on.

    python StudentTrain.py --model 1
    python StudentTrain.py --model 2
    python StudentTrain.py --model 3                            the smallest; needs student 2
    python StudentTrain.py --model 2 --epochs 1 --subset 2000   quick test, writes to runs/quick/
    python StudentTrain.py --model 1 --resume                   continue a run that was stopped
    python StudentTrain.py --model 2 --distill-loss none        train without the teacher
    python StudentTrain.py --model 1 --teacher PATH             use another network as teacher
    python StudentTrain.py --model 1 --teacher PATH PATH        the mean of the logits of several
    python StudentTrain.py --model 1 --context degraded         use noisy, dark, blurred images
    torchrun --standalone --nproc_per_node=2 StudentTrain.py --model 1          use two GPUs

Needs checkpoints/teacher.pth, written by teacherTrain.py, or --teacher. Writes
checkpoints/NAME.pth (the epoch with the best validation accuracy) and NAME.csv (one row per epoch).
NAME is the student's in models/networks.py. Without the teacher, the name is NAME_alone.pth;
inference.py evaluates these as well. After all students are trained, run trainSelector.py.
"""

from utils import cli  # first: Ctrl-C while it imports PyTorch ends in one line

# isort: split
import argparse
from pathlib import Path

import torch

import models
from utils.checkpoint import ALONE, FILES, fingerprint_of, load_teacher, starting_network
from utils.contexts import in_context
from utils.data import data_facts, load_splits, named_images
from utils.device import autocast, pick_device, to_device
from utils.distributed import join_group
from utils.files import UserError, claim, shown
from utils.logits import TeacherLogits, logits_folder, ready_teacher, report_accuracy, score
from utils.method import distillation_loss
from utils.run import Run
from utils.training_step import Outputs

# ------------------------------------------------------------------ hyperparameters

# Each of these also has a flag:
DATA = "cifar10"  # or "cifar100", or the path of an .npz file with your own images
EPOCHS = 48
BATCH_SIZE = 128  # images per step
LEARNING_RATE = 5e-3  # maximum, reached after the warm-up
SEED = 0
STEM = "cifar-pool"  # "cifar": no max-pool, more accurate, 4 times the MACs
DISTILL_LOSS = "mse"  # between logits; "kl": Hinton's softened targets; "none": no teacher
CONTEXT = "clean"  # of the student's images, see utils/contexts.py; the teacher's are clean

# Edit these here, or use --set NAME=VALUE:
ALPHA = 0.0  # weight of the cross-entropy; 0.1 was as good on validation, 1 was worse
TEMPERATURE = 4.0  # of the softened targets, for "kl" only
LAYERS = ()  # pairs of modules, (student's, teacher's), for a loss on features: docs/features.md
TEACHERS = ("teacher",)  # the mean of their logits teaches; "previous": the network trained before
TEACHER_VIEWS = 16  # augmented views per image with stored logits; 0: compute them every epoch
OPTIMIZER = "muon"  # or "adamw" with half the learning rate, or "sgd" with 0.1
MOMENTUM = 0.9  # Nesterov momentum of Muon and SGD, beta1 of AdamW
WEIGHT_DECAY = 0.05  # not applied to biases and normalization layers; 5e-4 for SGD
WARMUP = 0.2  # fraction of all steps; then cosine decay to 0
CROP = 4  # reflection padding before the random crop, in pixels
FLIP = True  # random horizontal flip
CUTOUT = 8  # side of the cutout square, in pixels

SMALL = {  # other values for a student with far fewer weights
    "cnn": {
        "EPOCHS": 150,
        "LEARNING_RATE": 2e-2,
        "TEACHERS": ("previous",),
        "TEACHER_VIEWS": 10,
        "CUTOUT": 0,
    },
}

# ------------------------------------------------------------------ training


def main() -> None:
    args = read_flags()
    arch, alone = models.STUDENTS[args.model - 1], args.distill_loss == "none"
    device = pick_device(args.device)
    join_group(device)
    path = args.checkpoint_dir / (ALONE if alone else FILES)[arch]
    claim(path)
    teacher, taught_by = None, None
    if not alone:
        previous = ("teacher", *models.STUDENTS)[args.model - 1]
        names = [previous if name == "previous" else name for name in args.teachers]
        paths = args.teacher or [cli.found(args, FILES[name]) for name in names]
        usual = not args.teacher and names == ["teacher"]
        stem = None if usual else args.stem  # lets in other networks, and weights of other projects
        teacher, facts = load_teacher(paths, stem)
        taught_by = fingerprint_of(teacher)
    train, val, test = load_splits(args.data, args.subset, device, facts if teacher else None)
    if teacher:
        teacher = ready_teacher(teacher, facts, paths[0], val, fused=not LAYERS)
    if args.indices:
        train = named_images(train, args.indices)
    val, test = in_context(val, args.context), in_context(test, args.context)
    torch.manual_seed(args.seed)
    student, init = starting_network(arch, args.stem, args.init, path, train.classes)
    student = to_device(student, device)
    cli.announce(
        f"Training student {args.model}, {arch} with the {args.stem} stem",
        **cli.training_facts(device, student, train, val, path),
        **({} if alone else {"teacher": ", ".join(map(shown, paths))}),
    )

    settings = cli.settings(globals(), args) | {"arch": arch, "init": init, "teacher": taught_by}
    settings["data"] = data_facts(train.images, train.labels)
    settings["teacher_views"] = 0 if alone else args.teacher_views
    run = Run(student, path, train, settings, [own for own, _ in LAYERS], resume=args.resume)
    stored = online = None  # logits of the teacher; the teacher itself, if it runs on every batch
    if teacher and args.teacher_views and not LAYERS:
        folder = logits_folder(paths[0], path, args.subset)
        stored = TeacherLogits(teacher, taught_by, run.loader, folder)
    elif teacher:
        online = Outputs(teacher, [its for _, its in LAYERS])

    for epoch in run.epochs():
        rows = [train.labels, stored.epoch(epoch)] if stored else [train.labels]
        for images, labels, *more in run.batches(*rows, clean=online is not None):
            with autocast(device):
                logits, *features = run.outputs(images)
                if online:
                    with torch.no_grad():
                        more = online(*more)
                taught, *examples = more or [None]
                loss = distillation_loss(
                    logits, taught, labels, args.distill_loss, args.alpha, args.temperature
                )
            run.step(loss, correct=logits.argmax(dim=1) == labels)
        run.end_epoch(*score(student, val, args.batch_size))

    report_accuracy(path, val, test)
    if args.model < len(models.STUDENTS):
        same = ("stem", "distill_loss", "teacher", "epochs", "batch_size", "learning_rate", "seed")
        same += ("set",)
        cli.next_step(args, "StudentTrain.py", "--model", args.model + 1, same=same)
    else:
        cli.next_step(args, "trainSelector.py")


def read_flags() -> argparse.Namespace:
    """Parse the flags and refuse combinations that make no sense."""
    parser = cli.training_parser(__doc__, globals())
    parser.add_argument(
        "--model",
        type=int,
        choices=range(1, len(models.STUDENTS) + 1),
        required=True,
        help="the student, in the order of STUDENTS in models/networks.py: "
        + ", ".join(models.NETWORKS[arch].title for arch in models.STUDENTS),
    )
    what = "distillation loss; none: cross-entropy only, no teacher"
    cli.add_flag(parser, "DISTILL_LOSS", DISTILL_LOSS, what)
    parser.add_argument(
        "--teacher",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="checkpoint of the teacher: one of this project, of any architecture, or weights with "
        f"torchvision's parameter names for a {models.NETWORKS[models.TEACHER].title} with a 3x3 "
        "first convolution; of several of this project, the mean of their logits teaches "
        "(default: TEACHERS in --checkpoint-dir)",
    )
    what = "context of the student's images, see utils/contexts.py (the teacher's are clean)"
    cli.add_flag(parser, "CONTEXT", CONTEXT, what)
    what = "train only on the images whose indices are in this .npy file; an index listed twice "
    cli.add_path(parser, "--indices", what + "counts twice")
    args = parser.parse_args()
    small = SMALL.get(models.STUDENTS[args.model - 1], {})
    parser.set_defaults(**{name.lower(): value for name, value in small.items()})
    args = parser.parse_args()  # with these defaults
    if args.distill_loss == "none" and args.teacher:
        raise UserError("--teacher has no effect with --distill-loss none: leave one of them out")
    return args


if __name__ == "__main__":
    cli.run(main)
