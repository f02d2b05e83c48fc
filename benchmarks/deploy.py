"""Accuracy, size and speed of every network and policy: PyTorch, ONNX Runtime, and eight bits.

    python -m benchmarks.deploy                 ten minutes; writes results/deploy.json
    python -m benchmarks.deploy --subset 40     quick test; writes runs/quick/results/deploy.json

Measured on the CPU: one image at a time and BATCH images at a time, with one thread and two. All
runtimes, networks and policies take turns on the same images, so that they share the noise of the
machine; the median of several rounds counts.

Needs onnx, onnxscript, onnxruntime, the data set, and the checkpoints of all networks.
"""

import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from evaluation import testset
from evaluation.export import (
    CALIBRATION,
    PACKAGES,
    FromPixels,
    check_packages,
    eight_bit,
    onnx_bytes,
)
from evaluation.policies import System, system_of, thresholds_of
from models import STUDENTS, Recorded, macs
from utils import cli
from utils.checkpoint import FILES, load_system
from utils.device import autocast, for_inference
from utils.files import shown, try_folder, write_json
from utils.logits import top1

OUT = Path("results")  # for deploy.json
BATCH = 128
IMAGES = {1: 200, BATCH: 4 * BATCH}  # images that are timed, for each batch size
TURN = 20  # single images that a system takes before it is another one's turn
THREADS = (2, 1)
ROUNDS = 3
RUNTIMES = ("PyTorch", "ONNX float32", "ONNX int8")
CPU = torch.device("cpu")
LABELS = testset.LABELS | {"selector": testset.LABELS["routed"]}


class Session(nn.Module):
    """An ONNX file as a network: uint8 (N, S, S, 3) -> its first output."""

    def __init__(self, content: bytes) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # The threads of one session would keep the others from working.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(content, options)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(self.session.run(None, {"images": images.numpy()})[0])


def systems_of(
    nets: Mapping[str, nn.Module],
    work: Mapping[str, float],
    thresholds: Mapping[str, Sequence[float]],
) -> dict[str, System]:
    """The teacher, each student and each policy, made of these networks or `Recorded` ones.

    `work` has the MACs of each network, `thresholds` those of each policy.
    """
    systems = {name: System(nets[name], [(name,)], []) for name in ("teacher", *STUDENTS)}
    for policy, chosen in thresholds.items():
        systems[policy] = system_of(policy, nets, work, chosen)
    return systems


def recorded(nets: Mapping[str, nn.Module], images: torch.Tensor) -> dict[str, Recorded]:
    """The outputs of networks for uint8 images (N, S, S, 3), in the place of these networks."""
    batches = images.split(BATCH)
    return {
        name: Recorded(torch.cat([net(batch).float() for batch in batches]))
        for name, net in nets.items()
    }


def milliseconds(
    systems: Mapping[Any, System], images: torch.Tensor, batch: int
) -> dict[Any, float]:
    """The mean time that each system takes for `batch` of the images."""
    batches, total = images.split(batch), dict.fromkeys(systems, 0.0)
    turn = max(1, TURN // batch)
    for start in range(0, len(batches), turn):
        seconds: dict[Any, list[float]] = {key: [] for key in systems}
        for _ in range(ROUNDS):
            for key, system in systems.items():
                started = time.perf_counter()
                for each in batches[start : start + turn]:
                    system.net(each)
                seconds[key].append(time.perf_counter() - started)
        for key, rounds in seconds.items():
            total[key] += statistics.median(rounds)
    return {key: 1000 * each * batch / len(images) for key, each in total.items()}


def table(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """The heads and rows of a table of the results in deploy.json."""
    heads, lines = ["", "", "top-1, %", "MB"], []
    settings = sorted({(row["batch"], row["threads"]) for row in rows})
    for batch, threads in settings:
        what = "one image, ms" if batch == 1 else f"{batch} images, images/s"
        heads.append(f"{what}; {threads} thread{'s' * (threads > 1)}")
    for system, runtime in itertools.product(LABELS, RUNTIMES):
        own = [row for row in rows if (row["system"], row["runtime"]) == (system, runtime)]
        own.sort(key=lambda row: (row["batch"], row["threads"]))
        if own:
            accuracy, size = f"{100 * own[0]['top1']:.2f}", f"{own[0]['bytes'] / 1e6:.1f}"
            speed = [
                f"{row['ms']:.1f}" if row["batch"] == 1 else f"{row['images_per_s']:,.0f}"
                for row in own
            ]
            name = LABELS[system] if runtime == RUNTIMES[0] else ""
            lines.append([name, runtime, accuracy, size, *speed])
    return heads, lines


def main() -> None:
    parser = cli.Parser(description=__doc__)
    cli.add_places(parser)
    what = "quick test: only N test images, and write below runs/quick"
    parser.add_argument("--subset", type=cli.flag("SUBSET"), metavar="N", help=what)
    cli.add_out(parser, OUT, "deploy.json")
    args = parser.parse_args()
    check_packages(PACKAGES)
    try_folder(args.out)
    parts, (train, _, test) = load_system(args.checkpoint_dir.joinpath, tuple(FILES), args.data)
    test, some = test.take(slice(args.subset)), train.images[:CALIBRATION].numpy()
    work = {name: macs(net, test.data.size) for name, (net, _) in parts.items()}
    thresholds = thresholds_of(parts["selector"][1])
    ready = {
        name: FromPixels(for_inference(net, CPU), test.data) for name, (net, _) in parts.items()
    }
    print("exporting and quantizing", flush=True)
    saved = {name: (args.checkpoint_dir / FILES[name]).read_bytes() for name in parts}
    exported = {name: onnx_bytes(*part) for name, part in parts.items()}
    quantized = {name: eight_bit(content, some) for name, content in exported.items()}
    files = dict(zip(RUNTIMES, (saved, exported, quantized), strict=True))

    def networks(runtime: str) -> dict[str, nn.Module]:
        if runtime == "PyTorch":
            return ready
        return {name: Session(content) for name, content in files[runtime].items()}

    accuracies, rows = {}, []
    with torch.inference_mode(), autocast(CPU):
        for runtime in RUNTIMES:
            print(f"{runtime}: top-1 on {len(test):,} images", flush=True)
            stored = recorded(networks(runtime), test.images)
            for name, system in systems_of(stored, work, thresholds).items():
                outputs = system.net(torch.arange(len(test)))
                logits = outputs[0] if isinstance(outputs, tuple) else outputs
                accuracies[name, runtime] = top1(logits, test.labels)
        for threads, (batch, count) in itertools.product(THREADS, IMAGES.items()):
            print(f"{threads} threads, {batch} images at a time", flush=True)
            torch.set_num_threads(threads)
            systems = {
                (name, runtime): system
                for runtime in RUNTIMES
                for name, system in systems_of(networks(runtime), work, thresholds).items()
            }
            for key, ms in milliseconds(systems, test.images[:count], batch).items():
                name, runtime = key
                needed = {part for ran in systems[key].ran for part in ran}
                row = {"system": name, "runtime": runtime, "threads": threads, "batch": batch}
                row["top1"] = accuracies[key]
                row["bytes"] = sum(len(files[runtime][part]) for part in needed)
                row |= {"ms": round(ms, 3), "images_per_s": round(1000 * batch / ms, 1)}
                rows.append(row)
    write_json(args.out / "deploy.json", rows)
    print(f"{cli.aligned(*table(rows))}\n\nwrote {shown(args.out / 'deploy.json')}")


if __name__ == "__main__":
    cli.run(main)
