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
a DataLoader with two workers, float32. For inference, both sides are code of this project: the
routed system against the teacher; against the published inference, which runs the selector and both
students on every image; and ONNX Runtime, if installed, against PyTorch. Finally, the start-up time
of inference.py is measured by stages.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
import torchvision

from benchmarks.subjects import BATCH_SIZE, STEM, SUBJECTS, left_out
from models import macs, network
from utils import cli
from utils.device import has_bf16, pick_device, precision
from utils.files import UserError, shown, try_folder, write_json

ROUNDS = 5  # pairs of runs per subject
SETTING = ("batch_size", "threads", "images")


class Side:
    """A process that does one piece of work per request."""

    def __init__(self, subject: str, side: str, options: dict[str, object]) -> None:
        words = [sys.executable, "-m", "benchmarks.side", subject, side]
        for flag, value in options.items():
            if value is not None:
                words += [f"--{flag.replace('_', '-')}", str(value)]
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=cli.ROOT
        )

    def piece(self) -> float:
        """Run one piece of work. Returns images per second."""
        try:
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
            done = json.loads(self.process.stdout.readline())
        except (BrokenPipeError, json.JSONDecodeError) as error:
            raise UserError("a benchmark process failed: see its error above") from error
        return done["images"] / done["seconds"]

    def end(self) -> int:
        """End the process. Returns its peak memory in MB."""
        self.process.stdin.close()
        answer = json.loads(self.process.stdout.readline())
        self.process.wait()
        return answer["peak_mb"]


def compare(
    subject: str, setting: dict[str, int | None], args: argparse.Namespace, gflops: float
) -> dict:
    """Measure both sides of a subject alternately. Returns a row of results/benchmarks.json.

    `gflops` is the matrix rate of the machine in the precision that ours uses.
    """
    where = {name: getattr(args, name) for name in ("device", "data_dir", "checkpoint_dir")}
    ours, plain = (Side(subject, side, where | setting) for side in ("ours", "plain"))
    try:
        ours.piece(), plain.piece()  # warm up
        pairs = [(ours.piece(), plain.piece()) for _ in range(args.rounds)]
        ratios = sorted(mine / theirs for mine, theirs in pairs)
        row = {
            "subject": subject,
            "device": args.device,
            **setting,
            "ours": statistics.median(mine for mine, _ in pairs),
            "plain": statistics.median(theirs for _, theirs in pairs),
            "unit": "images/s",
            "ratio": statistics.median(ratios),
            "ratio_min": ratios[0],
            "ratio_max": ratios[-1],
            "ours_peak_mb": ours.end(),
            "plain_peak_mb": plain.end(),
        }
        if subject.startswith("step "):  # backward costs twice forward; a MAC is two operations
            work = 3 * 2 * macs(network(subject.removeprefix("step "), STEM))
            row["share_of_matrix_rate"] = round(1e-9 * work * row["ours"] / gflops, 3)
        return row
    finally:
        for side in (ours, plain):
            side.process.kill()
            side.process.wait()


def start(args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each stage from the start of inference.py to its first result, 3 runs."""
    words = [sys.executable, "-m", "benchmarks.start", args.device, str(args.checkpoint_dir)]
    runs = []
    for _ in range(3):
        started = time.perf_counter()
        done = subprocess.run(words, cwd=cli.ROOT, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            raise UserError("benchmarks.start failed: see its error above")
        stages = json.loads(done.stdout)
        whole = time.perf_counter() - started
        runs.append({**stages, "Python itself": whole - sum(stages.values()), "all": whole})
    return {name: round(statistics.median(run[name] for run in runs), 2) for name in runs[0]}


def limits(device: torch.device) -> dict[str, float]:
    """The limits of the machine: matrix rates in GFLOP/s, memory bandwidth in GB/s.

    The rate of bf16 is left out where autocast does not use it: a CPU that emulates bf16 would take
    minutes for one product.
    """

    def best(work, repeats: int = 5) -> float:
        times = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
        return min(times[1:])

    side = 8192 if device.type == "cuda" else 3072
    rates, dtypes = {}, {"fp32": torch.float32}
    if has_bf16(device):
        dtypes["bf16"] = torch.bfloat16
    for name, dtype in dtypes.items():
        matrix = torch.randn(side, side, device=device, dtype=dtype)
        rates[f"{name}_gflops"] = round(2e-9 * side**3 / best(lambda m=matrix: m @ m), 1)
    source = torch.zeros(64 * 2**20, device=device)
    target = torch.empty_like(source)
    bandwidth = 2e-9 * source.nbytes / best(lambda: target.copy_(source))
    return {**rates, "copy_gb_per_s": round(bandwidth, 1)}


def machine(device: torch.device) -> dict:
    """The name of the processor or GPU, its precision and its limits."""
    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), name)
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "name": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "precision": precision(device),
        **limits(device),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument("--json", type=Path, metavar="PATH", help="write the results to this file")
    cli.add_flag(parser, "ROUNDS", ROUNDS, "pairs of runs per subject")
    parser.add_argument("--device", default="auto", help="default: %(default)s")
    for flag, default, what in (
        ("--batch-size", BATCH_SIZE, "images per step (default: %(default)s)"),
        ("--threads", None, "number of PyTorch threads on the CPU"),
        ("--images", None, "images per run, for data, epochs and inference"),
    ):
        parser.add_argument(
            flag,
            type=cli.flag("BATCH_SIZE"),
            nargs="+",
            default=[default],
            metavar="N",
            help=f"{what}; several values: each is measured",
        )
    parser.add_argument("--data-dir", type=Path, default=cli.ROOT / "data", metavar="PATH")
    parser.add_argument(
        "--checkpoint-dir", type=Path, default=cli.ROOT / "checkpoints", metavar="PATH"
    )
    args = parser.parse_args()
    if unknown := [name for name in args.subjects if name not in SUBJECTS]:
        parser.error(f"no subject {unknown[0]!r}: choose from {', '.join(SUBJECTS)}")
    device = pick_device(args.device)
    if args.json and args.json.is_dir():
        parser.error(f"--json {args.json} must name a file, not a folder")
    if args.json:
        try_folder(args.json.parent)
    args.device = str(device)
    about = machine(device)
    gflops = about.get("bf16_gflops", about["fp32_gflops"])
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    print(
        f"\n{'images/s':<42}{'ours':>9}{'plain':>9}{'ratio':>8}{'spread':>14}{'MB':>13}{'limit':>8}"
    )
    runs = []
    for subject, *setting in itertools.product(
        args.subjects or SUBJECTS, args.batch_size, args.threads, args.images
    ):
        if reason := left_out(subject, device):
            print(f"{subject:<42}left out: {reason}")
            continue
        row = compare(subject, dict(zip(SETTING, setting, strict=True)), args, gflops)
        runs.append(row)
        varied = [f"{name} {row[name]}" for name in SETTING if len(getattr(args, name)) > 1]
        print(
            f"{', '.join([subject, *varied]):<42}{row['ours']:>9.0f}{row['plain']:>9.0f}"
            f"{row['ratio']:>8.2f}{row['ratio_min']:>7.2f}-{row['ratio_max']:<6.2f}"
            f"{row['ours_peak_mb']:>6},{row['plain_peak_mb']:>6}"
            f"{row.get('share_of_matrix_rate', '')!s:>8}",
            flush=True,
        )
    stages = None if args.subjects else start(args)
    if stages:
        print(f"start, seconds: {', '.join(f'{name} {each}' for name, each in stages.items())}")
    if args.json:
        versions = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        }
        content = {"machine": about, "versions": versions, "start": stages, "runs": runs}
        write_json(args.json, content)
        print(f"wrote {shown(args.json)}")


if __name__ == "__main__":
    cli.run(main)
