"""Throughput of this code and of a plain PyTorch loop, measured alternately on this machine.

    python -m benchmarks                              all subjects, about ten minutes
    python -m benchmarks data "step googlenet"        some subjects
    python -m benchmarks --json results/benchmarks.json

Each subject has two sides, ours and plain. After a warm-up, they run alternately under the same
conditions. A ratio compares two consecutive runs. The table shows the medians, and the smallest and
largest ratio.

benchmarks/subjects.py says what both sides are; benchmarks/deploy.py measures inference.
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable

import torch
import torchvision

from benchmarks.subjects import BATCH_SIZE, SUBJECTS
from utils import cli
from utils.data import Split, load_splits
from utils.device import CPUINFO, pick_device, precision
from utils.files import shown, try_folder, write_json

ROUNDS = 5  # pairs of runs per subject


def throughput(batches: Callable[[], Iterable], work: Callable[..., object]) -> float:
    """Do `work` with each of the batches. Returns images per second."""
    started, images = time.perf_counter(), 0
    for batch in batches():
        work(*batch)
        images += len(batch[0])
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return images / (time.perf_counter() - started)


def compare(subject: str, train: Split, rounds: int) -> dict[str, object]:
    """Measure both sides of a subject alternately. Returns a row of results/benchmarks.json."""
    torch.manual_seed(0)
    _, *sides = SUBJECTS[subject]
    sides = [side(train) for side in sides]
    pairs = [[throughput(*side) for side in sides] for _ in range(1 + rounds)]
    pairs = pairs[1:]  # the first is the warm-up
    ours, plain = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratios = [mine / theirs for mine, theirs in pairs]
    return {
        "subject": subject,
        "device": str(train.images.device),
        "batch_size": BATCH_SIZE,
        "ours": ours,
        "plain": plain,
        "unit": "images/s",
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def machine(device: torch.device) -> dict[str, object]:
    """Name and precision of the machine."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif CPUINFO.exists():
        lines = CPUINFO.read_text().splitlines()
        name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), name)
    return {
        "name": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "precision": precision(device),
    }


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    cli.add_path(parser, "--json", "write the results to this file")
    cli.add_flag(parser, "ROUNDS", ROUNDS, "pairs of runs per subject")
    parser.add_argument("--device", default="auto", help="default: %(default)s")
    what = "images as for teacherTrain.py (default: %(default)s)"
    parser.add_argument("--data", default="cifar10", metavar="NAME", help=what)
    args = parser.parse_args()
    if unknown := [name for name in args.subjects if name not in SUBJECTS]:
        parser.error(f"no subject {unknown[0]!r}: choose from {', '.join(SUBJECTS)}")
    if args.json and args.json.is_dir():
        parser.error(f"--json {args.json} must name a file, not a folder")
    if args.json:
        try_folder(args.json.parent)
    device = pick_device(args.device)
    train = load_splits(args.data, None, device)[0]
    about = machine(device)
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(f"\n{'images/s':<36}{'ours':>9}{'plain':>9}{'ratio':>8}{'spread':>14}")
    runs = []
    for subject in args.subjects or SUBJECTS:
        row = compare(subject, train, args.rounds)
        runs.append(row)
        print(
            f"{subject:<36}{row['ours']:>9.0f}{row['plain']:>9.0f}"
            f"{row['ratio']:>8.2f}{row['ratio_min']:>7.2f}-{row['ratio_max']:<6.2f}",
            flush=True,
        )
    if args.json:
        versions = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        }
        write_json(args.json, {"machine": about, "versions": versions, "runs": runs})
        print(f"wrote {shown(args.json)}")


if __name__ == "__main__":
    cli.run(main)
