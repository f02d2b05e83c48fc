"""Throughput of this code and of a plain PyTorch loop, measured alternately on this machine.

    python -m benchmarks                              all subjects, about ten minutes
    python -m benchmarks data "step NETWORK"          some subjects
    python -m benchmarks --json results/benchmarks.json
    python -m benchmarks "epoch NETWORK" --batch-size 32 128 512 --threads 1 2
    python -m benchmarks data --images 1000 10000 45000

Each subject has two sides, ours and plain, in two processes. After a warm-up, they run alternately
under the same conditions. A ratio compares two consecutive runs. The table shows the
medians, the smallest and largest ratio, the peak memory of each side and, for training steps, the
fraction of the machine's matrix multiplication rate that ours reaches.

Plain is the common practice (benchmarks/plain.py): torchvision's dataset, one transform per image,
a DataLoader with two workers, float32. benchmarks/deploy.py measures inference.
"""

import itertools
import multiprocessing
import os
import platform
import statistics
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
import torchvision
from torch.utils.benchmark import Timer

from benchmarks.subjects import BATCH_SIZE, STEM, SUBJECTS, Place, peak, prepare, work
from models import macs, network
from utils import cli
from utils.device import has_bf16, pick_device, precision
from utils.files import shown, try_folder, write_json

ROUNDS = 5  # pairs of runs per subject
SIDE = {"cuda": 8192, "cpu": 3072}  # of the matrices that are multiplied
SETTINGS = ("batch_size", "threads", "images")


def compare(
    subject: str, place: Place, threads: int | None, rounds: int, gflops: float
) -> dict[str, object]:
    """Measure both sides of a subject alternately. Returns a row of results/benchmarks.json.

    `gflops` is the matrix rate of the machine in the precision that ours uses.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn) as ours, ProcessPoolExecutor(1, spawn) as plain:
        sides = {"ours": ours, "plain": plain}
        for name, side in sides.items():
            side.submit(prepare, subject, name, threads, place).result()
        pairs = [
            [side.submit(work).result() for side in sides.values()] for _ in range(1 + rounds)
        ][1:]  # the first is the warm-up
        peaks = [side.submit(peak).result() for side in sides.values()]
    ratios = sorted(mine / theirs for mine, theirs in pairs)
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    row = {
        "subject": subject,
        "device": str(place.device),
        "batch_size": place.batch_size,
        "threads": threads,
        "images": place.images,
        "ours": medians[0],
        "plain": medians[1],
        "unit": "images/s",
        "ratio": statistics.median(ratios),
        "ratio_min": ratios[0],
        "ratio_max": ratios[-1],
        "ours_peak_mb": peaks[0],
        "plain_peak_mb": peaks[1],
    }
    if subject.startswith("step "):  # backward costs twice forward; a MAC is two operations
        operations = 3 * 2 * macs(network(subject.removeprefix("step "), STEM))
        row["share_of_matrix_rate"] = round(1e-9 * operations * row["ours"] / gflops, 3)
    return row


def machine(device: torch.device) -> dict[str, object]:
    """Name, precision and limits of the machine: matrix rates in GFLOP/s, memory in GB/s.

    The rate of bf16 is left out where autocast does not use it: a CPU that emulates bf16 would take
    minutes for one product.
    """
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), name)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)

    def seconds(work: Callable[[], object]) -> float:
        timer = Timer("work()", globals={"work": work}, num_threads=torch.get_num_threads())
        return min(timer.timeit(1).mean for _ in range(6))

    side = SIDE.get(device.type, SIDE["cpu"])
    matrix = torch.randn(side, side, device=device)
    rates = {"fp32_gflops": 2e-9 * side**3 / seconds(lambda: matrix @ matrix)}
    if has_bf16(device):
        half = matrix.bfloat16()
        rates["bf16_gflops"] = 2e-9 * side**3 / seconds(lambda: half @ half)
    source, target = torch.zeros(2, 64 * 2**20, device=device)
    rates["copy_gb_per_s"] = 2e-9 * source.nbytes / seconds(lambda: target.copy_(source))
    return {
        "name": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "precision": precision(device),
        **{name: round(rate, 1) for name, rate in rates.items()},
    }


def main() -> None:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    cli.add_path(parser, "--json", "write the results to this file")
    cli.add_flag(parser, "ROUNDS", ROUNDS, "pairs of runs per subject")
    parser.add_argument("--device", default="auto", help="default: %(default)s")
    for flag, default, what in (
        ("--batch-size", BATCH_SIZE, "images per step (default: %(default)s)"),
        ("--threads", None, "number of PyTorch threads on the CPU"),
        ("--images", None, "images per run, for data and epochs"),
    ):
        what += "; several values: each is measured"
        number = {"type": cli.flag("BATCH_SIZE"), "nargs": "+", "metavar": "N"}
        parser.add_argument(flag, default=[default], help=what, **number)
    cli.add_places(parser)
    args = parser.parse_args()
    if unknown := [name for name in args.subjects if name not in SUBJECTS]:
        parser.error(f"no subject {unknown[0]!r}: choose from {', '.join(SUBJECTS)}")
    device = pick_device(args.device)
    if args.json and args.json.is_dir():
        parser.error(f"--json {args.json} must name a file, not a folder")
    if args.json:
        try_folder(args.json.parent)
    about = machine(device)
    gflops = about.get("bf16_gflops", about["fp32_gflops"])
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    heads = f"{'ours':>9}{'plain':>9}{'ratio':>8}{'spread':>14}{'MB':>13}{'limit':>8}"
    print(f"\n{'images/s':<60}{heads}")
    runs = []
    for subject, batch_size, threads, images in itertools.product(
        args.subjects or SUBJECTS, args.batch_size, args.threads, args.images
    ):
        place = Place(device, args.data, args.checkpoint_dir, batch_size, images)
        row = compare(subject, place, threads, args.rounds, gflops)
        runs.append(row)
        settings = [f"{name} {row[name]}" for name in SETTINGS if row[name]]
        print(
            f"{', '.join([subject, *settings]):<60}{row['ours']:>9.0f}{row['plain']:>9.0f}"
            f"{row['ratio']:>8.2f}{row['ratio_min']:>7.2f}-{row['ratio_max']:<6.2f}"
            f"{row['ours_peak_mb']:>6},{row['plain_peak_mb']:>6}"
            f"{row.get('share_of_matrix_rate', '')!s:>8}",
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
