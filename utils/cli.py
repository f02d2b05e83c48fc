"""What the scripts share on the command line: flags, the device, and how errors are told."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from models import parameters
from utils.device import precision
from utils.files import UserError, shown

ROOT = Path(__file__).resolve().parent.parent


def positive(kind: type) -> Callable[[str], float]:
    """An argparse type: a number above 0."""

    def parse(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = "positive number" if kind is float else "positive integer"
    return parse


def training_parser(
    doc: str, epochs: int, batch_size: int, lr: float, seed: int
) -> argparse.ArgumentParser:
    """The flags of the three training scripts, with the defaults of the script's block."""
    parser = common_parser(doc, batch_size)
    training = parser.add_argument_group("training")
    training.add_argument(
        "--epochs", type=positive(int), default=epochs, metavar="N",
        help="passes over the training images (default: %(default)s)",
    )  # fmt: skip
    training.add_argument(
        "--lr", type=positive(float), default=lr, metavar="RATE",
        help="highest learning rate (default: %(default)s)",
    )  # fmt: skip
    training.add_argument(
        "--seed", type=int, default=seed, metavar="N",
        help="of the initial weights, order and augmentation (default: %(default)s)",
    )  # fmt: skip
    training.add_argument(
        "--resume", action="store_true",
        help="continue the last run where it stopped, with the same hyperparameters",
    )  # fmt: skip
    return parser


def common_parser(doc: str, batch_size: int) -> argparse.ArgumentParser:
    """The flags of every script."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--batch-size", type=positive(int), default=batch_size, metavar="N",
        help="images a step (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--device", default="auto", metavar="NAME",
        help="cpu, cuda or cuda:1; auto takes a GPU where there is one (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--data-dir", type=Path, default=ROOT / "data", metavar="PATH",
        help="folder of CIFAR-10, downloaded into it where missing, or an .npz file of your own "
        "images (default: data)",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint-dir", type=Path, default=ROOT / "checkpoints", metavar="PATH",
        help="folder of the .pth files, read and written (default: checkpoints)",
    )  # fmt: skip
    parser.add_argument(
        "--subset", type=positive(int), metavar="N",
        help="use only N images of each split, for a quick try",
    )  # fmt: skip
    return parser


def announce(title: str, **facts: object) -> None:
    """Say what is about to happen, a line a fact."""
    print(title)
    for name, fact in facts.items():
        print(f"  {name:<14}{fact}")
    print(flush=True)


def training_facts(
    args: argparse.Namespace,
    device: torch.device,
    net: nn.Module,
    images: int,
    val: int,
    path: Path,
) -> dict[str, object]:
    """What a training script announces."""
    return {
        "device": f"{device}, {precision(device)}",
        "images": f"{images:,} to train on, {val:,} to validate",
        "parameters": f"{parameters(net):.2f} M",
        "epochs": f"{args.epochs}, batches of {args.batch_size}, learning rate up to {args.lr:g}",
        "writes": shown(path),
    }


def run(main: Callable[[], int | None]) -> None:
    """Run a script's `main`: a UserError is one line on stderr and exit status 2, no traceback."""
    try:
        sys.exit(main())
    except UserError as error:
        print(f"{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
