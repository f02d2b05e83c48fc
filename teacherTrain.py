"""Train the teacher, a ResNet-50, on CIFAR-10.

    python teacherTrain.py                            the whole run, as in the block below
    python teacherTrain.py --epochs 1 --subset 2000   a quick try, in runs/quick/
    python teacherTrain.py --resume                   go on where Ctrl-C stopped it
    torchrun --standalone --nproc_per_node=2 teacherTrain.py      on two GPUs

Writes checkpoints/teacher.pth (the epoch that is best by validation) and teacher.csv (a row an
epoch). The students learn from it: StudentTrain.py.
"""

import torch.nn.functional as F

from utils import cli
from utils.answers import report_accuracy, score
from utils.augment import Augmentation
from utils.checkpoint import FILES, starting_network
from utils.data import load_splits
from utils.device import autocast, pick_device, seed_everything, to_device
from utils.distributed import join_group
from utils.files import claim
from utils.run import Run

# ------------------------------------------------------------------ hyperparameters

# Each has a flag, too:
EPOCHS = 40
BATCH_SIZE = 128  # images a step
LEARNING_RATE = 5e-3  # the highest, at the end of the warm-up
SEED = 0

# These are changed here:
ARCH = "resnet50"
STEM = "cifar-pool"  # "cifar" drops the max-pool: the most accurate, 4 times the work, for a GPU
OPTIMIZER = "muon"  # or "adamw", with half the rate, or "sgd", with 0.1
MOMENTUM = 0.9  # Nesterov's for Muon and SGD, the first of the betas for AdamW
WEIGHT_DECAY = 0.05  # on weights, not on biases and norms; for SGD 5e-4
WARMUP = 0.2  # share of all steps; a cosine down to 0 follows
CROP = 4  # pixels of reflection around the image that a random crop may reach
FLIP = True  # mirror every other image, at random
CUTOUT = 8  # side of the square cut out of each image, in pixels

# ------------------------------------------------------------------ the story


def main() -> None:
    parser = cli.training_parser(__doc__, globals())
    cli.add_init(parser)
    args = parser.parse_args()
    device = pick_device(args.device)
    join_group(device)
    path = args.checkpoint_dir / FILES[ARCH]
    claim(path)
    train, val, test = load_splits(args.data_dir, args.subset, device)
    seed_everything(args.seed)
    teacher, init = starting_network(ARCH, STEM, args.init, path, train.classes)
    teacher = to_device(teacher, device)
    cli.announce(
        f"Training the teacher, {ARCH} with the {STEM} stem",
        **cli.training_facts(args, device, teacher, train, val, path),
    )

    run = Run(
        teacher,
        path,
        train,
        arch=ARCH,
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
        facts={"init": init},
        resume=args.resume,
    )
    for _ in run.epochs():
        for images, labels in run.batches(train.labels):
            with autocast(device):
                logits = run.model(images)
                loss = F.cross_entropy(logits.float(), labels)
            run.step(loss, correct=logits.argmax(dim=1) == labels)
        run.end_epoch(*score(teacher, val, args.batch_size))

    made = report_accuracy(path, val, test)
    print(f"next: {cli.next_command(args, taught_by=made)}")


if __name__ == "__main__":
    cli.run(main)
