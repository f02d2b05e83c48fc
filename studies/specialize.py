"""Tell each student which training images to learn from, so that the two come to differ.

    python -m studies.specialize halves      each another half of them
    python -m studies.specialize vehicles    student 1 thrice from vehicles, student 2 from animals
    python -m studies.specialize errors      each thrice from those on which the other errs most
    python -m studies.specialize routed      each thrice from those that the selector sends to it

Writes KIND-1.npy and KIND-2.npy, the images' indices, into runs/special/: learn from them with
python StudentTrain.py --model 1 --indices runs/special/KIND-1.npy, and the same with 2.
"""

from pathlib import Path

import numpy as np
import torch

from models import STUDENTS
from utils import cli
from utils.answers import predict
from utils.checkpoint import FILES, check_classes, load_network
from utils.data import Split, described, load_splits
from utils.device import for_inference, pick_device
from utils.files import UserError, replacing, shown, try_folder
from utils.method import absolute_error

BATCH_SIZE = 500  # images a step
OUT = Path("runs/special")  # for KIND-1.npy and KIND-2.npy
TIMES = 3  # an image that a student is to learn well counts so often
HARD = 0.2  # share of the images that count as those on which the other errs most
VEHICLES = ("airplane", "automobile", "ship", "truck")


def halves(train: Split) -> tuple[Split, Split]:
    """Two disjoint halves, in the random order of the split."""
    middle = len(train) // 2
    return train.take(slice(middle)), train.take(slice(middle, None))


def favoring(train: Split, mine: torch.Tensor) -> np.ndarray:
    """All indices once, and those of `mine`, bool (N,), TIMES times."""
    favored = train.indices[mine.cpu().numpy()]
    return np.concatenate([train.indices, *[favored] * (TIMES - 1)])


def vehicles(train: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """Where an image is of a vehicle, and where of an animal: two bool (N,)."""
    is_vehicle = torch.tensor([name in VEHICLES for name in train.classes])
    if not is_vehicle.any():
        raise UserError(f"{train.name} has no {', '.join(VEHICLES)}: choose another kind")
    there = is_vehicle.to(train.labels.device)[train.labels]
    return there, ~there


def errors(train: Split, logits: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """For each student, the share HARD of the images on which the other one errs most."""
    mine = []
    for other in reversed(logits):
        hardest = absolute_error(other, train.labels).topk(round(HARD * len(train))).indices
        mine.append(torch.zeros_like(train.labels, dtype=torch.bool).index_fill(0, hardest, True))
    return tuple(mine)


def main() -> None:
    parser = cli.common_parser(__doc__, globals())
    parser.add_argument("kind", choices=("halves", "vehicles", "errors", "routed"))
    cli.add_out(parser, OUT, "KIND-1.npy and KIND-2.npy")
    args = parser.parse_args()
    device = pick_device(args.device)
    try_folder(args.out)
    train = load_splits(args.data_dir, args.subset, device)[0]
    print(f"choosing from {described(train)}", flush=True)

    def answers(arch: str) -> torch.Tensor:
        path = args.checkpoint_dir / FILES[arch]
        net, facts = load_network(path, arch)
        check_classes(path, facts, train.classes, train.name)
        logits = predict(for_inference(net, device), train.images, arch, args.batch_size)
        return logits.sigmoid() >= facts["threshold"] if arch == "selector" else logits

    if args.kind == "halves":
        parts = [half.indices for half in halves(train)]
    else:
        if args.kind == "vehicles":
            mine = vehicles(train)
        elif args.kind == "errors":
            mine = errors(train, [answers(arch) for arch in STUDENTS])
        else:
            first = answers("selector")
            mine = first, ~first
        parts = [favoring(train, each) for each in mine]
    if not all(map(len, parts)):
        raise UserError(f"{len(train)} images are too few for two halves")
    for k, (arch, part) in enumerate(zip(STUDENTS, parts, strict=True), 1):
        path = args.out / f"{args.kind}-{k}.npy"
        with replacing(path) as file:
            np.save(file, part)
        print(f"wrote {shown(path)}: {arch} learns from {len(part):,} images")


if __name__ == "__main__":
    cli.run(main)
