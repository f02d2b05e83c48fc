"""Choose different training images for the first two students, so that they specialize.

    python -m studies.specialize halves      a different half of the images for each student
    python -m studies.specialize vehicles    vehicles count 3 times for student 1, animals for 2

Writes the indices of the images to runs/special/KIND-1.npy and KIND-2.npy. To use them, run
python StudentTrain.py --model 1 --indices runs/special/KIND-1.npy, and the same with 2.
"""

from pathlib import Path

import numpy as np
import torch

from models import STUDENTS
from utils import cli
from utils.data import Split, described, load_splits
from utils.files import UserError, replacing, shown, try_folder

BATCH_SIZE = 500  # images per step
OUT = Path("runs/special")  # for KIND-1.npy and KIND-2.npy
TIMES = 3  # how often the images of a student's own kind count
VEHICLES = ("airplane", "automobile", "ship", "truck")


def halves(train: Split) -> tuple[Split, Split]:
    """Two disjoint random halves (the order of a split is random)."""
    middle = len(train) // 2
    return train.take(slice(middle)), train.take(slice(middle, None))


def favoring(train: Split, mine: torch.Tensor) -> np.ndarray:
    """The indices of all images once, and of those where `mine`, bool (N,), TIMES times."""
    favored = train.indices[mine.cpu().numpy()]
    return np.concatenate([train.indices, *[favored] * (TIMES - 1)])


def vehicles(train: Split) -> tuple[torch.Tensor, torch.Tensor]:
    """Whether each image shows a vehicle, and whether it shows an animal: two bool (N,)."""
    is_vehicle = torch.tensor([name in VEHICLES for name in train.classes])
    if not is_vehicle.any():
        raise UserError(f"{train.name} has no class {', '.join(VEHICLES)}: choose another kind")
    there = is_vehicle.to(train.labels.device)[train.labels]
    return there, ~there


def main() -> None:
    parser = cli.common_parser(__doc__, globals())
    parser.add_argument("kind", choices=("halves", "vehicles"))
    cli.add_out(parser, OUT, "KIND-1.npy and KIND-2.npy")
    args = parser.parse_args()
    try_folder(args.out)
    train = load_splits(args.data, args.subset)[0]
    print(f"choosing training images from {described(train)}", flush=True)

    if args.kind == "halves":
        parts = [half.indices for half in halves(train)]
    else:
        parts = [favoring(train, mine) for mine in vehicles(train)]
    if not all(map(len, parts)):
        raise UserError(f"{len(train)} images are too few for two halves: use more images")
    for k, (arch, part) in enumerate(zip(STUDENTS, parts, strict=False), 1):
        path = args.out / f"{args.kind}-{k}.npy"
        with replacing(path) as file:
            np.save(file, part)
        print(f"wrote {shown(path)}: for {arch}, {len(part):,} images")


if __name__ == "__main__":
    cli.run(main)
