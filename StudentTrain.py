"""Distill the teacher into a student: DenseNet-121 (--model 1) or GoogLeNet (--model 2).

    python StudentTrain.py --model 1
    python StudentTrain.py --model 2
    python StudentTrain.py --model 2 --epochs 1 --subset 2000   quick test, writes to runs/quick/
    python StudentTrain.py --model 1 --resume                   continue a run that was stopped
    python StudentTrain.py --model 2 --distill-loss none        train without the teacher
    python StudentTrain.py --model 1 --teacher PATH             use another ResNet-50 as teacher
    python StudentTrain.py --model 1 --context degraded         use noisy, dark, blurred images
    torchrun --standalone --nproc_per_node=2 StudentTrain.py --model 1          use two GPUs

Needs checkpoints/teacher.pth, written by teacherTrain.py, or --teacher. Writes
checkpoints/densenet121.pth or googlenet.pth (the epoch with the best validation accuracy) and a
.csv file with the same name (one row per epoch). Without the teacher, the names are
densenet121_alone.pth and googlenet_alone.pth; inference.py evaluates these as well.
After both students are trained, run trainSelector.py.
"""

from pathlib import Path

import torch

from models import STUDENTS
from utils import cli
from utils.augment import Augmentation
from utils.checkpoint import (
    ALONE,
    FILES,
    check_classes,
    fingerprint_of,
    load_network,
    starting_network,
)
from utils.contexts import in_context
from utils.data import load_splits, named_images
from utils.device import autocast, for_inference, pick_device, to_device
from utils.distributed import join_group
from utils.files import UserError, claim, shown
from utils.logits import TeacherLogits, report_accuracy, score, with_its_stem
from utils.method import LOSSES, distillation_loss
from utils.run import Run

# ------------------------------------------------------------------ hyperparameters

# Each of these also has a flag:
EPOCHS = 48
BATCH_SIZE = 128  # images per step
LEARNING_RATE = 5e-3  # maximum, reached after the warm-up
SEED = 0
DISTILL_LOSS = "mse"  # between logits; "kl": Hinton's softened targets; "none": no teacher
CONTEXT = "clean"  # of the student's images, see utils/contexts.py; the teacher's are clean

# These have no flag, edit them here:
STEM = "cifar-pool"  # "cifar": no max-pool, more accurate, 4 times the MACs
ALPHA = 0.0  # weight of the cross-entropy; 0.1 was as good on validation, 1 was worse
TEMPERATURE = 4.0  # of the softened targets, for "kl" only
TEACHER_VIEWS = 16  # augmented views per image with stored logits; 0: compute them every epoch
OPTIMIZER = "muon"  # or "adamw" with half the learning rate, or "sgd" with 0.1
MOMENTUM = 0.9  # Nesterov momentum of Muon and SGD, beta1 of AdamW
WEIGHT_DECAY = 0.05  # not applied to biases and normalization layers; 5e-4 for SGD
WARMUP = 0.2  # fraction of all steps; then cosine decay to 0
CROP = 4  # reflection padding before the random crop, in pixels
FLIP = True  # random horizontal flip
CUTOUT = 8  # side of the cutout square, in pixels

# ------------------------------------------------------------------ training


def main() -> None:
    parser = cli.training_parser(__doc__, globals())
    parser.add_argument(
        "--model",
        type=int,
        choices=(1, 2),
        required=True,
        help="the student: 1 is DenseNet-121, 2 is GoogLeNet",
    )
    parser.add_argument(
        "--distill-loss",
        choices=LOSSES,
        default=DISTILL_LOSS,
        help="distillation loss; none: cross-entropy only, no teacher (default: %(default)s)",
    )
    parser.add_argument(
        "--teacher",
        type=Path,
        metavar="PATH",
        help="checkpoint of the teacher: one of this project, or any ResNet-50 weights with "
        "torchvision's parameter names and a 3x3 first convolution for 32x32 images (default: "
        "teacher.pth in --checkpoint-dir)",
    )
    cli.add_context(parser, CONTEXT, "context of the student's images (the teacher's are clean)")
    cli.add_init(parser)
    cli.add_indices(parser)
    args = parser.parse_args()
    arch, alone = STUDENTS[args.model - 1], args.distill_loss == "none"
    if alone and args.teacher:
        raise UserError("--teacher has no effect with --distill-loss none: leave one of them out")
    device = pick_device(args.device)
    join_group(device)
    path = args.checkpoint_dir / (ALONE if alone else FILES)[arch]
    claim(path)
    teacher, taught_by = None, None
    if not alone:
        teacher_path = args.teacher or cli.found(args, FILES["resnet50"])
        stem = STEM if args.teacher else None  # external weights: replaced by with_its_stem below
        teacher, facts = load_network(teacher_path, "resnet50", stem)
        taught_by = fingerprint_of(teacher)
    train, val, test = load_splits(args.data_dir, args.subset, device)
    if teacher:
        check_classes(teacher_path, facts, train.classes, train.name)
        if facts["val_accuracy"] is None:
            teacher = with_its_stem(teacher, val.take(slice(500)), args.teacher)
        teacher = for_inference(teacher, device)
    if args.indices:
        train = named_images(train, args.indices)
    val = in_context(val, args.context)
    torch.manual_seed(args.seed)
    student, init = starting_network(arch, STEM, args.init, path, train.classes)
    student = to_device(student, device)
    cli.announce(
        f"Training student {args.model}, {arch} with the {STEM} stem",
        **cli.training_facts(args, device, student, train, val, path),
        distillation="none" if alone else f"{args.distill_loss}, alpha {ALPHA}",
        **({} if alone else {"teacher": shown(teacher_path)}),
        context=args.context,
    )

    run = Run(
        student,
        path,
        train,
        arch=arch,
        stem=STEM,
        epochs=args.epochs,
        batch_size=args.batch_size,
        optimizer=OPTIMIZER,
        lr=args.lr,
        momentum=MOMENTUM,
        weight_decay=WEIGHT_DECAY,
        warmup=WARMUP,
        seed=args.seed,
        augmentation=Augmentation(CROP, FLIP, CUTOUT),
        views=0 if alone else TEACHER_VIEWS,
        context=args.context,
        facts={
            "distill_loss": args.distill_loss,
            "alpha": ALPHA,
            "temperature": TEMPERATURE,
            "init": init,
            "teacher": taught_by,
        },
        resume=args.resume,
    )
    answers = None
    if teacher and TEACHER_VIEWS:
        folder = cli.logits_folder(args, teacher_path, path)
        answers = TeacherLogits(teacher, taught_by, run.data, folder, run.pause)

    online = not (alone or answers)  # the teacher runs on every batch
    for epoch in run.epochs():
        rows = [train.labels, answers.epoch(epoch)] if answers else [train.labels]
        for images, labels, *rest in run.batches(*rows, clean=online):
            taught = rest[0] if rest else None  # the teacher's logits; if online, its images
            with autocast(device):
                if online:
                    with torch.no_grad():
                        taught = teacher(taught)
                logits = run.model(images)
                loss = distillation_loss(
                    logits, taught, labels, args.distill_loss, ALPHA, TEMPERATURE
                )
            run.step(loss, correct=logits.argmax(dim=1) == labels)
        run.end_epoch(*score(student, val, args.batch_size))

    report_accuracy(path, val, in_context(test, args.context))
    print(f"next: {cli.next_command(args, taught_by)}")


if __name__ == "__main__":
    cli.run(main)
