"""The process of one side of a subject: it does one piece of work per line of its input.

Started by `python -m benchmarks`. Prints one JSON object per line: {"images", "seconds"} for each
piece and, at the end of the input, {"peak_mb"}, the peak memory of the process.
"""

import argparse
import json
import resource
import sys
import time
from pathlib import Path

import torch

from benchmarks.subjects import SUBJECTS, Place
from utils import cli
from utils.device import pick_device


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("side", choices=("ours", "plain"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--checkpoint-dir", type=Path, required=True)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--images", type=int)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = pick_device(args.device)
    place = Place(device, args.data_dir, args.checkpoint_dir, args.batch_size, args.images)
    torch.manual_seed(0)
    piece = SUBJECTS[args.subject][args.side == "plain"](place)
    for _ in sys.stdin:
        started = time.perf_counter()
        images = piece()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        print(json.dumps({"images": images, "seconds": seconds}), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"peak_mb": round(peak)}), flush=True)


if __name__ == "__main__":
    cli.run(main)
