"""What the scripts share on the command line: flags, the device, and how errors are told."""

import argparse
import contextlib
import gc
import math
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import STEMS, STUDENTS, parameters
from models.selector import WIDTHS
from utils import checkpoint
from utils.checkpoint import FILES, ROOT
from utils.contexts import CONTEXTS
from utils.data import FOLDER, Split, listed
from utils.device import precision
from utils.distributed import rank, ranks
from utils.files import UserError, shown
from utils.method import LOSSES
from utils.optim import OPTIMIZERS

# ------------------------------------------------------------------ what a value may be


def _whole(low: int, high: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _real(low: float, below: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and low <= value < below


def _above_0(value: Any) -> bool:
    return _real(0)(value) and value > 0


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "EPOCHS": (_whole(1), "a whole number above 0"),
    "BATCH_SIZE": (_whole(1), "a whole number above 0"),
    "SUBSET": (_whole(1), "a whole number above 0"),
    "LEARNING_RATE": (_above_0, "a number above 0"),
    "OPTIMIZER": (lambda value: value in OPTIMIZERS, " or ".join(map(repr, OPTIMIZERS))),
    "MOMENTUM": (_real(0, 1), "a number from 0 to below 1"),
    "WEIGHT_DECAY": (_real(0), "a number, 0 or above"),
    "WARMUP": (_real(0, 1), "a number from 0 to below 1"),
    "CROP": (_whole(0, 31), "a whole number from 0 to 31"),
    "FLIP": (lambda value: type(value) is bool, "True or False"),
    "CUTOUT": (_whole(0, 64), "a whole number from 0 to 64"),
    "SEEDS": (_whole(1), "a whole number above 0"),
    "SEED": (_whole(0, 2**31 - 1), "a whole number from 0 to 2147483647"),
    "STEM": (lambda value: value in STEMS, " or ".join(map(repr, STEMS))),
    "DISTILL_LOSS": (lambda value: value in LOSSES, " or ".join(map(repr, LOSSES))),
    "ALPHA": (_real(0), "a number, 0 or above"),
    "TEMPERATURE": (_above_0, "a number above 0"),
    "TEACHER_VIEWS": (_whole(0), "a whole number, 0 or above"),
    "CONTEXT": (lambda value: value in CONTEXTS, " or ".join(map(repr, CONTEXTS))),
    "LABEL_WEIGHT": (lambda value: value in (None, "difference"), "None or 'difference'"),
    "DEPTH": (_whole(1, len(WIDTHS)), f"a whole number from 1 to {len(WIDTHS)}"),
    "BATCH_NORM": (lambda value: type(value) is bool, "True or False"),
    "MACS": (_real(0), "a number, 0 or above"),
    "THRESHOLD": (
        lambda value: value is None or _real(0, 1.02)(value),
        "None or a number from 0 to 1.01",
    ),
}


def _check_block(block: Mapping[str, Any]) -> None:
    for name, (allowed, wanted) in RULES.items():
        if name in block and not allowed(block[name]):
            raise UserError(
                f"{name} = {block[name]!r} in the block at the head of the script: {wanted} is "
                "wanted"
            )


def flag(name: str, kind: type) -> Callable[[str], Any]:
    """An argparse type: `kind`, under the rule of `name`."""
    allowed, wanted = RULES[name]

    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if allowed(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted.removeprefix('None or ')}")

    return parse


# ------------------------------------------------------------------ flags


def training_parser(doc: str, block: Mapping[str, Any]) -> argparse.ArgumentParser:
    """The flags of the three training scripts, with defaults from `block` as `common_parser`."""
    parser = common_parser(doc, block, quick=True)
    training = parser.add_argument_group("training")
    training.add_argument(
        "--epochs",
        type=flag("EPOCHS", int),
        default=block["EPOCHS"],
        metavar="N",
        help="passes over the training images (default: %(default)s)",
    )
    training.add_argument(
        "--lr",
        type=flag("LEARNING_RATE", float),
        default=block["LEARNING_RATE"],
        metavar="RATE",
        help="highest learning rate (default: %(default)s)",
    )
    training.add_argument(
        "--seed",
        type=flag("SEED", int),
        default=block["SEED"],
        metavar="N",
        help="of the initial weights, order and augmentation (default: %(default)s)",
    )
    training.add_argument(
        "--resume",
        action="store_true",
        help="continue the last run where it stopped, with the same hyperparameters but for "
        "--epochs; on another device, or with another number of processes, too",
    )
    return parser


def add_init(parser: argparse.ArgumentParser) -> None:
    """The flag of the scripts that train a classifier."""
    parser.add_argument(
        "--init",
        type=Path,
        metavar="PATH",
        help="start from the weights in this .pth, of the same network, not from random ones; "
        "weights from elsewhere need torchvision's names and a first layer for 32x32 images",
    )


def add_context(parser: argparse.ArgumentParser, default: str, what: str) -> None:
    """The flag that chooses one of CONTEXTS, for `what`."""
    parser.add_argument(
        "--context",
        choices=CONTEXTS,
        default=default,
        help=f"{what}: clean, degraded in one way, or a group of these, of which mixed is half "
        "clean and half degraded (default: %(default)s)",
    )


def add_indices(parser: argparse.ArgumentParser) -> None:
    """The flag that chooses the training images one by one."""
    parser.add_argument(
        "--indices",
        type=Path,
        metavar="PATH",
        help="learn only from the training images whose indices this .npy names, from one that it "
        "names twice as from two",
    )


def add_out(parser: argparse.ArgumentParser, default: Path, files: str) -> None:
    """The flag of the programs that write results."""
    parser.add_argument(
        "--out",
        type=Path,
        default=default,
        metavar="PATH",
        help=f"folder for {files} (default: %(default)s)",
    )


class Parser(argparse.ArgumentParser):
    """Where --subset is given, what is written goes below QUICK, unless a flag says where to.

    Args:
        quick: networks, too; they are read there first, see `found`.
    """

    def __init__(self, *args: Any, quick: bool = False, **values: Any) -> None:
        super().__init__(*args, **values)
        self.quick = quick

    def parse_args(self, *args: Any, **values: Any) -> argparse.Namespace:
        parsed = super().parse_args(*args, **values)
        subset, out = parsed.subset is not None, self.get_default("out")
        parsed.quick = self.quick and subset and self._is_default("checkpoint_dir", parsed)
        if parsed.quick:
            parsed.checkpoint_dir = checkpoint.QUICK
        if subset and out and self._is_default("out", parsed):
            parsed.out = checkpoint.QUICK / out.name
        flags = [
            word
            for name in ("data_dir", "device", *(["subset"] if self.quick else []))
            if not self._is_default(name, parsed)
            for word in (f"--{name.replace('_', '-')}", str(getattr(parsed, name)))
        ]
        script, usual = Path(sys.argv[0]), [checkpoint.CHECKPOINTS]
        if self.quick and subset:
            usual = [*usual, checkpoint.QUICK] if parsed.quick else []
        scripts = script.parent if script.resolve().parent == ROOT else Path()
        checkpoint.typed = checkpoint.Typed(scripts, flags, usual)
        return parsed

    def _is_default(self, name: str, parsed: argparse.Namespace) -> bool:
        return getattr(parsed, name) is self.get_default(name)  # not only equal to it


def common_parser(doc: str, block: Mapping[str, Any], quick: bool = False) -> Parser:
    """The flags of every script, with defaults from `block`, the upper-case names at its head.

    `quick` is that of Parser. Raises UserError where a name in the block is nonsense.
    """
    _check_block(block)
    parser = Parser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, quick=quick
    )
    parser.add_argument(
        "--batch-size",
        type=flag("BATCH_SIZE", int),
        default=block["BATCH_SIZE"],
        metavar="N",
        help="images a step (default: %(default)s)",
    )
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda or cuda:1; auto takes a GPU where there is one (default: %(default)s)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=FOLDER,
        metavar="PATH",
        help="a folder that holds CIFAR-10, or an .npz file of your own images (default: data, "
        "into which CIFAR-10 is downloaded)",
    )
    parser.add_argument(
        "--checkpoint-dir",
        type=Path,
        default=checkpoint.CHECKPOINTS,
        metavar="PATH",
        help="folder of the .pth files, read and written (default: checkpoints)",
    )
    parser.add_argument(
        "--subset",
        type=flag("SUBSET", int),
        metavar="N",
        help="use only N images of each split, for a quick try, which writes below runs/quick "
        "unless a flag says where to" + (", and reads networks there first" if quick else ""),
    )
    return parser


def found(args: argparse.Namespace, file: str) -> Path:
    """Where a network is read: in a quick try that of the whole run, where quick ones made none."""
    path, whole = args.checkpoint_dir / file, checkpoint.CHECKPOINTS / file
    return whole if args.quick and not path.exists() and whole.exists() else path


# ------------------------------------------------------------------ what is said


def announce(title: str, **facts: object) -> None:
    """Say what is about to happen, a line a fact."""
    print(title)
    for name, fact in facts.items():
        print(f"  {name:<14}{fact}")
    print(flush=True)


def next_command(args: argparse.Namespace, taught_by: str | None = None) -> str:
    """What to type next: the first step not done yet, or done with other networks than there are.

    Args:
        taught_by: the fingerprint of the teacher that both students need; None: any will do.
    """
    made: list[str] = []
    for arch in (*STUDENTS, "selector"):
        command = checkpoint.COMMANDS[arch]
        try:
            net, facts = checkpoint.load_network(found(args, FILES[arch]), arch)
        except UserError:
            break
        needs = ("teacher", taught_by)
        if arch == "selector":
            needs, command = ("students", made), checkpoint.selector_command(facts)
        if needs[1] is not None and facts["hyperparameters"].get(needs[0]) != needs[1]:
            break
        made.append(checkpoint.fingerprint_of(net))
    else:
        context = facts["hyperparameters"].get("context")
        seen = f" --context {context}" if context in list(CONTEXTS)[1:] else ""
        return checkpoint.to_type(f"python inference.py{seen}", args.checkpoint_dir)
    if arch in STUDENTS and getattr(args, "teacher", None):
        command += f" --teacher {shlex.quote(str(args.teacher))}"
    elif arch in STUDENTS and not found(args, FILES["resnet50"]).exists():
        command = checkpoint.COMMANDS["resnet50"]
    return checkpoint.to_type(command, args.checkpoint_dir)


def training_facts(
    args: argparse.Namespace,
    device: torch.device,
    net: nn.Module,
    train: Split,
    val: Split,
    path: Path,
) -> dict[str, object]:
    """What a training script announces."""
    processes = f", {ranks()} processes" if ranks() > 1 else ""
    return {
        "device": f"{device}, {precision(device)}{processes}",
        "data": f"{train.name}, {listed(train.classes)}",
        "images": f"{len(train):,} to train on, {len(val):,} to validate",
        "parameters": f"{parameters(net):.2f} M",
        "writes": shown(path),
    }


def run(main: Callable[[], int | None]) -> None:
    """Run a script's `main`: a UserError is one line on stderr and exit status 2, no traceback."""
    with contextlib.suppress(AttributeError, OSError):  # a notebook's stdout shows all names
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal's may be unable to
    gc.freeze()  # what was imported: at the end, looking for garbage in it takes most of a second
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (UserError, OSError) as error:
        process = f"rank {rank()}: " if rank() else ""
        print(f"{process}{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if ranks() == 1 or "by peer" not in str(error):
            raise
        print(f"rank {rank()}: another process ended, see its error", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(status)
