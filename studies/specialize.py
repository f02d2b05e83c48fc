"""Tell each student which training images to learn from, so that the two come to differ.

    python -m studies.specialize halves      each another half of them
    python -m studies.specialize vehicles    student 1 thrice from vehicles, student 2 from animals

Writes KIND-1.npy and KIND-2.npy, the images' indices, into runs/special/: learn from them with
python StudentTrain.py --model 1 --indices runs/special/KIND-1.npy, and the same with 2.
"""

from pathlib import Path

import numpy as np
import torch

from models import STUDENTS
from utils import cli
from utils.data import Split, described, load_splits
from utils.files import UserError, replacing, shown, try_folder

BATCH_SIZE = 500  # images a step
OUT = Path("runs/special")  # for KIND-1.npy and KIND-2.npy
TIMES = 3  # an image that a student is to learn well counts so often
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


def main() -> None:
    parser = cli.common_parser(__doc__, globals())
    parser.add_argument("kind", choices=("halves", "vehicles"))
    cli.add_out(parser, OUT, "KIND-1.npy and KIND-2.npy")
    args = parser.parse_args()
    try_folder(args.out)
    train = load_splits(args.data_dir, args.subset)[0]
    print(f"choosing from {described(train)}", flush=True)

    if args.kind == "halves":
        parts = [half.indices for half in halves(train)]
    else:
        parts = [favoring(train, mine) for mine in vehicles(train)]
    if not all(map(len, parts)):
        raise UserError(f"{len(train)} images are too few for two halves")
    for k, (arch, part) in enumerate(zip(STUDENTS, parts, strict=True), 1):
        path = args.out / f"{args.kind}-{k}.npy"
        with replacing(path) as file:
            np.save(file, part)
        print(f"wrote {shown(path)}: {arch} learns from {len(part):,} images")


if __name__ == "__main__":
    cli.run(main)
