"""The command line of the scripts: hyperparameters, flags, messages, and error handling."""

import argparse
import contextlib
import difflib
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import nn

from models import STEMS, STUDENTS, parameters
from models.selector import WIDTHS
from utils import checkpoint
from utils.contexts import CONTEXTS
from utils.data import Split, listed
from utils.device import precision
from utils.distributed import rank, ranks
from utils.files import UserError, shown
from utils.method import LOSSES
from utils.optim import OPTIMIZERS

# ------------------------------------------------------------------ hyperparameters

NUMBERS = {  # type, smallest and largest value
    "EPOCHS": (int, 1, math.inf),
    "BATCH_SIZE": (int, 1, math.inf),
    "SUBSET": (int, 1, math.inf),
    "SEED": (int, 0, 2**31 - 1),
    "LEARNING_RATE": (float, 1e-20, 1e38),
    "MOMENTUM": (float, 0, 0.9999),
    "WEIGHT_DECAY": (float, 0, 1e38),
    "WARMUP": (float, 0, 0.9999),
    "CROP": (int, 0, 31),
    "CUTOUT": (int, 0, 192),
    "ALPHA": (float, 0, 1e38),
    "TEMPERATURE": (float, 1e-20, 1e38),
    "TEACHER_VIEWS": (int, 0, math.inf),
    "DEPTH": (int, 1, len(WIDTHS)),
    "THRESHOLD": (float, 0, 1.01),
    "SEEDS": (int, 1, math.inf),  # of studies, like the next two
    "ROUNDS": (int, 1, math.inf),
    "MACS": (float, 0, 1e9),
}
CHOICES = {
    "STEM": STEMS,
    "OPTIMIZER": OPTIMIZERS,
    "DISTILL_LOSS": LOSSES,
    "CONTEXT": tuple(CONTEXTS),
    "LABEL_RULE": ("errors", "context"),
    "FLIP": (True, False),
    "BATCH_NORM": (True, False),
}
NEEDED = ("EPOCHS", "BATCH_SIZE", "LEARNING_RATE", "SEED")  # by each training script
NEEDED += ("OPTIMIZER", "MOMENTUM", "WEIGHT_DECAY", "WARMUP", "CROP", "FLIP", "CUTOUT")


def constants(block: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters in `block`, the globals of a training script, in lower case.

    Constants of other modules are not hyperparameters: a script names them with their module, as
    in `models.STUDENTS`.
    """
    return {
        name.lower(): value
        for name, value in block.items()
        if name.isupper() and isinstance(value, (bool, int, float, str, tuple, NoneType))
    }


def settings(block: Mapping[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """The hyperparameters of a run: the `constants` of its script, with the flags applied."""
    return {name: getattr(args, name) for name in constants(block)}


def flag(name: str) -> Callable[[str], Any]:
    """An argparse type for the values that NUMBERS or CHOICES allows for a constant `name`."""

    def parse(text: str) -> Any:
        for choice in CHOICES.get(name, ()):
            if text == str(choice):
                return choice
        with contextlib.suppress(KeyError, ValueError):
            kind, low, high = NUMBERS[name]
            if low <= (value := kind(text)) <= high:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {_wanted(name)}")

    return parse


def _wanted(name: str) -> str:
    if name in CHOICES:
        return " or ".join(map(repr, CHOICES[name]))
    kind, low, high = NUMBERS[name]
    return f"{'a whole' if kind is int else 'a'} number from {low} to {high}"


def _allows(name: str, value: Any) -> bool:
    """Whether a script may set a constant to this value: one that the text of it gives, too."""
    with contextlib.suppress(argparse.ArgumentTypeError):
        return (name, value) == ("THRESHOLD", None) or flag(name)(str(value)) == value
    return False


# ------------------------------------------------------------------ flags


def add_flag(parser: "Parser", name: str, default: Any, what: str, *short: str) -> None:
    """Add the flag for a constant of a script, a key of NUMBERS or CHOICES.

    `what` is the help text, `short` are other names of the flag.
    """
    parser.add_argument(
        f"--{name.lower().replace('_', '-')}",
        *short,
        type=flag(name),
        choices=CHOICES.get(name),
        metavar="N" if name in NUMBERS else None,
        default=default,
        help=f"{what} (default: %(default)s)",
    )


def add_path(parser: "Parser", name: str, what: str, default: Path | None = None) -> None:
    """Add a flag for a path; `what` is the help text."""
    parser.add_argument(name, type=Path, metavar="PATH", default=default, help=what)


def add_out(parser: "Parser", default: Path, files: str) -> None:
    """Add --out, for the programs that write results; `files` says what is written."""
    add_path(parser, "--out", f"folder for {files} (default: %(default)s)", default)


def add_places(parser: "Parser", data: str = "cifar10") -> None:
    """Add --data and --checkpoint-dir, for the programs that read images and networks."""
    parser.add_argument(
        "--data",
        "--data-dir",
        type=os.path.expanduser,
        default=data,
        metavar="NAME",
        help="cifar10 or cifar100, which are downloaded to data/, a folder with CIFAR-10, or an "
        ".npz file with your own data set (default: %(default)s)",
    )
    what = "folder of the .pth files (default: checkpoints)"
    add_path(parser, "--checkpoint-dir", what, checkpoint.CHECKPOINTS)


def add_run(parser: "Parser") -> None:
    """Add --run, for the scripts that read and write networks."""
    what = "a run of its own, in runs/NAME; networks that it lacks are read from --checkpoint-dir"
    parser.add_argument("--run", metavar="NAME", help=what)


class Parser(argparse.ArgumentParser):
    """A parser that applies --set, and chooses the folders of --run and --subset.

    --run NAME reads and writes networks in runs/NAME, and reads those that it lacks from
    --checkpoint-dir (see `found`). Results are written there too, unless a flag names another
    folder. --subset is like --run quick, for networks only if `quick` is true. The flags that were
    given, with their values, are in `typed`. `names` are the constants that --set may change.
    """

    def __init__(self, description: str, names: Sequence[str] = (), quick: bool = False) -> None:
        form = argparse.RawDescriptionHelpFormatter
        super().__init__(description=description, formatter_class=form)
        self.register("type", Path, _path)
        self.names, self.quick = names, quick

    def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
        parsed = super().parse_args(args)
        # Again without defaults: a flag may be given with the value of its default.
        given = vars(super().parse_args(args, argparse.Namespace(**dict.fromkeys(vars(parsed)))))
        parsed.typed = {name: value for name, value in given.items() if value is not None}
        for change in parsed.typed.get("set", ()):
            name, _, text = change.partition("=")
            if name not in self.names:
                self.error(f"--set {change}: choose from {', '.join(self.names)}")
            try:
                setattr(parsed, name.lower(), flag(name)(text))
            except argparse.ArgumentTypeError as error:
                self.error(f"--set {name}: {error}")
        run = parsed.typed.get("run", checkpoint.QUICK.name)
        if not re.fullmatch(r"[\w-]+", run, re.ASCII):
            self.error(f"--run {run!r}: use letters, digits, - and _")
        folder = checkpoint.QUICK.with_name(run)
        apart = parsed.typed.keys() & {"run", "subset"}
        if apart and "out" in given and "out" not in parsed.typed:
            parsed.out = folder / parsed.out.name
        parsed.others = getattr(parsed, "checkpoint_dir", None)
        if "run" in apart or (self.quick and apart and "checkpoint_dir" not in parsed.typed):
            parsed.checkpoint_dir = folder
        return parsed


def _path(text: str) -> Path:
    """A path of a flag. The shell leaves the ~ in --out=~/results as it is."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty")
    return Path(os.path.expanduser(text))


def common_parser(doc: str, block: Mapping[str, Any], quick: bool = False) -> Parser:
    """A parser with the flags that all scripts share.

    `doc` is the description, `block` the globals of the script, whose upper-case names give the
    defaults. For `quick`, see `Parser`. Raises UserError if a value in `block` is not allowed.
    """
    names = [name for name in (*NUMBERS, *CHOICES) if name in block]
    for name in names:
        if not _allows(name, block[name]):
            said = f"{name} = {block[name]!r} at the head of the script"
            raise UserError(f"{said} must be {_wanted(name)}")
    parser = Parser(doc, names, quick)
    add_flag(parser, "BATCH_SIZE", block["BATCH_SIZE"], "images per step")
    what = "cpu, cuda or cuda:1; auto uses a GPU if available (default: %(default)s)"
    parser.add_argument("--device", default="auto", metavar="NAME", help=what)
    add_places(parser, block.get("DATA", "cifar10"))
    what = "quick test: use only N images of each split, and write below runs/quick unless "
    what += "a flag names another folder" + quick * "; networks are looked for there first"
    parser.add_argument("--subset", type=flag("SUBSET"), metavar="N", help=what)
    return parser


def training_parser(doc: str, block: Mapping[str, Any]) -> Parser:
    """The parser of the three training scripts; `block` is that of `common_parser`.

    The parsed arguments have all hyperparameters, also those without a flag. Also raises UserError
    if a name in `block` is a misspelt hyperparameter, or one of NEEDED is missing.
    """
    absent = [name for name in (*NUMBERS, *CHOICES) if name not in block]
    for name in filter(str.isupper, block):
        if name not in NUMBERS and (meant := difflib.get_close_matches(name, absent, 1, 0.8)):
            raise UserError(f"{name} at the head of the script: did you mean {meant[0]}?")
    if missing := [name for name in NEEDED if name not in block]:
        raise UserError(f"{missing[0]} is missing at the head of the script")
    parser = common_parser(doc, block, quick=True)
    parser.set_defaults(**constants(block))
    add_flag(parser, "EPOCHS", block["EPOCHS"], "number of epochs")
    add_flag(parser, "LEARNING_RATE", block["LEARNING_RATE"], "maximum learning rate", "--lr")
    what = "random seed of initial weights, image order and augmentation"
    add_flag(parser, "SEED", block["SEED"], what)
    if "STEM" in block:  # the script trains a classifier
        add_flag(parser, "STEM", block["STEM"], "stem of the network, see models/networks.py")
        what = "start from the weights in this .pth file instead of random ones; weights of other "
        what += "projects need torchvision's parameter names and a 3x3 first convolution"
        add_path(parser, "--init", what)
    add_run(parser)
    what = "change a hyperparameter at the head of the script, for example CROP=2"
    parser.add_argument("--set", nargs="+", metavar="NAME=VALUE", help=what)
    what = "continue the last run where it stopped; the hyperparameters except --epochs must be "
    what += "the same, the device and the number of processes may differ"
    parser.add_argument("--resume", action="store_true", help=what)
    return parser


def found(args: argparse.Namespace, file: str) -> Path:
    """The path to read `file` from: a student from --students, if given; else see `Parser`."""
    if getattr(args, "students", None) and file.removesuffix(".pth") in STUDENTS:
        return args.students / file
    path, other = args.checkpoint_dir / file, args.others / file
    return other if other.exists() and not path.exists() else path


def next_step(
    args: argparse.Namespace, script: str, *flags: object, same: Sequence[str] = ()
) -> None:
    """Print the command that follows, with the flags that make it a step of this run.

    `same` are names of flags that the next script has too, besides those that all scripts have.
    """
    words = ["python", Path(sys.argv[0]).with_name(script), *flags]
    for name in (*same, "data", "device", "subset", "run", "checkpoint_dir"):
        if name in args.typed:
            value = args.typed[name]
            words.append(f"--{name.replace('_', '-')}")
            words += value if isinstance(value, list) else [value]
    # There, --subset means fewer images, not other networks.
    if script == "inference.py" and args.checkpoint_dir == checkpoint.QUICK != args.others:
        words += [] if "run" in args.typed else ["--run", "quick"]
    print(f"next: {shlex.join(map(str, words))}")


# ------------------------------------------------------------------ messages


def aligned(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table of cells for the terminal; the first `left` columns are left-aligned."""
    columns = [[*column] for column in zip(heads, *rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    for k, (column, width) in enumerate(zip(columns, widths, strict=True)):
        columns[k] = [cell.ljust(width) if k < left else cell.rjust(width) for cell in column]
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def announce(title: str, **facts: object) -> None:
    """Print what the program is about to do: a title, then one line per fact."""
    print(title)
    for name, fact in facts.items():
        print(f"  {name:<14}{fact}")
    print(flush=True)


def training_facts(
    device: torch.device, net: nn.Module, train: Split, val: Split, path: Path
) -> dict[str, object]:
    """The facts that every training script announces."""
    processes = f", {ranks()} processes" if ranks() > 1 else ""
    return {
        "device": f"{device}, {precision(device)}{processes}",
        "data": f"{train.name}, {listed(train.classes)}",
        "images": f"{len(train):,} for training, {len(val):,} for validation",
        "parameters": f"{parameters(net):.2f} M",
        "writes": shown(path),
    }


def run(main: Callable[[], int | None]) -> None:
    """Run a script's `main`. A UserError becomes one line on stderr and exit status 2.

    So does a lack of memory on a GPU.
    """
    with contextlib.suppress(AttributeError, OSError):  # a notebook's stdout has no reconfigure
        sys.stdout.reconfigure(errors="backslashreplace")  # for names the terminal cannot encode
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (UserError, OSError, torch.OutOfMemoryError) as error:
        told, process = str(error), f"rank {rank()}: " if rank() else ""
        if isinstance(error, torch.OutOfMemoryError):
            told = f"{told.split('. ')[0]}: try a smaller --batch-size"
        print(f"{process}{os.path.basename(sys.argv[0])}: error: {told}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(status)
