"""Train the teacher on CIFAR-10.

    python teacherTrain.py                            train with the hyperparameters below
    python teacherTrain.py --epochs 1 --subset 2000   quick test, writes to runs/quick/
    python teacherTrain.py --resume                   continue a run that was stopped
    torchrun --standalone --nproc_per_node=2 teacherTrain.py      use two GPUs

Writes checkpoints/teacher.pth (the epoch with the best validation accuracy) and teacher.csv (one
row per epoch). StudentTrain.py then distills the teacher into the students.
"""

from utils import cli  # first: Ctrl-C while it imports PyTorch ends in one line

# isort: split
import torch
import torch.nn.functional as F

import models
from utils.checkpoint import FILES, starting_network
from utils.data import data_facts, load_splits
from utils.device import autocast, pick_device, to_device
from utils.distributed import join_group
from utils.files import claim
from utils.logits import report_accuracy, score
from utils.run import Run

# ------------------------------------------------------------------ hyperparameters

# Each of these also has a flag:
DATA = "cifar10"  # or "cifar100", or the path of an .npz file with your own images
EPOCHS = 40
BATCH_SIZE = 128  # images per step
LEARNING_RATE = 5e-3  # maximum, reached after the warm-up
SEED = 0
STEM = "cifar-pool"  # "cifar": no max-pool, more accurate, 4 times the MACs

# Edit these here, or use --set NAME=VALUE:
OPTIMIZER = "muon"  # or "adamw" with half the learning rate, or "sgd" with 0.1
MOMENTUM = 0.9  # Nesterov momentum of Muon and SGD, beta1 of AdamW
WEIGHT_DECAY = 0.05  # not applied to biases and normalization layers; 5e-4 for SGD
WARMUP = 0.2  # fraction of all steps; then cosine decay to 0
CROP = 4  # reflection padding before the random crop, in pixels
FLIP = True  # random horizontal flip
CUTOUT = 8  # side of the cutout square, in pixels

# ------------------------------------------------------------------ training


def main() -> None:
    args = cli.training_parser(__doc__, globals()).parse_args()
    device = pick_device(args.device)
    join_group(device)
    path = args.checkpoint_dir / FILES["teacher"]
    claim(path)
    train, val, test = load_splits(args.data, args.subset, device)
    torch.manual_seed(args.seed)
    teacher, init = starting_network(models.TEACHER, args.stem, args.init, path, train.classes)
    teacher = to_device(teacher, device)
    cli.announce(
        f"Training the teacher, {models.TEACHER} with the {args.stem} stem",
        **cli.training_facts(device, teacher, train, val, path),
    )

    settings = cli.settings(globals(), args) | {"arch": models.TEACHER, "init": init}
    settings["data"] = data_facts(train.images, train.labels)
    run = Run(teacher, path, train, settings, resume=args.resume)
    for _ in run.epochs():
        for images, labels in run.batches(train.labels):
            with autocast(device):
                logits = run.model(images)
                loss = F.cross_entropy(logits.float(), labels)
            run.step(loss, correct=logits.argmax(dim=1) == labels)
        run.end_epoch(*score(teacher, val, args.batch_size))

    report_accuracy(path, val, test)
    same = ("stem", "epochs", "batch_size", "seed")
    cli.next_step(args, "StudentTrain.py", "--model", 1, same=same)


if __name__ == "__main__":
    cli.run(main)
