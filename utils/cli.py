"""The command line of the scripts: flags, messages, and error handling."""

import argparse
import contextlib
import math
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
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
from utils.distributed import by_first, rank, ranks
from utils.files import UserError, shown
from utils.method import LOSSES
from utils.optim import OPTIMIZERS

# ------------------------------------------------------------------ allowed values


def _whole(low: int, high: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and low <= value <= high


def _real(low: float, below: float = math.inf) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and low <= value < below


def _above_0(value: Any) -> bool:
    return _real(0)(value) and value > 0


RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "EPOCHS": (_whole(1), "a positive integer"),
    "BATCH_SIZE": (_whole(1), "a positive integer"),
    "SUBSET": (_whole(1), "a positive integer"),
    "LEARNING_RATE": (_above_0, "a positive number"),
    "OPTIMIZER": (lambda value: value in OPTIMIZERS, " or ".join(map(repr, OPTIMIZERS))),
    "MOMENTUM": (_real(0, 1), "a number in [0, 1)"),
    "WEIGHT_DECAY": (_real(0), "a number >= 0"),
    "WARMUP": (_real(0, 1), "a number in [0, 1)"),
    "CROP": (_whole(0, 31), "an integer from 0 to 31"),
    "FLIP": (lambda value: type(value) is bool, "True or False"),
    "CUTOUT": (_whole(0, 64), "an integer from 0 to 64"),
    "SEEDS": (_whole(1), "a positive integer"),
    "ROUNDS": (_whole(1), "a positive integer"),
    "SEED": (_whole(0, 2**31 - 1), "an integer from 0 to 2147483647"),
    "STEM": (lambda value: value in STEMS, " or ".join(map(repr, STEMS))),
    "DISTILL_LOSS": (lambda value: value in LOSSES, " or ".join(map(repr, LOSSES))),
    "ALPHA": (_real(0), "a number >= 0"),
    "TEMPERATURE": (_above_0, "a positive number"),
    "TEACHER_VIEWS": (_whole(0), "an integer >= 0"),
    "CONTEXT": (lambda value: value in CONTEXTS, " or ".join(map(repr, CONTEXTS))),
    "LABEL_RULE": (lambda value: value in ("errors", "context"), "'errors' or 'context'"),
    "LABEL_WEIGHT": (lambda value: value in (None, "difference"), "None or 'difference'"),
    "DEPTH": (_whole(1, len(WIDTHS)), f"an integer from 1 to {len(WIDTHS)}"),
    "BATCH_NORM": (lambda value: type(value) is bool, "True or False"),
    "MACS": (_real(0), "a number >= 0"),
    "THRESHOLD": (
        lambda value: value is None or _real(0, 1.02)(value),
        "None or a number from 0 to 1.01",
    ),
}


def _check_block(block: Mapping[str, Any]) -> None:
    for name, (allowed, wanted) in RULES.items():
        if name in block and not allowed(block[name]):
            raise UserError(
                f"{name} = {block[name]!r} in the block at the head of the script must be {wanted}"
            )


def flag(name: str, kind: type) -> Callable[[str], Any]:
    """An argparse type that converts to `kind` and checks the rule RULES[name]."""
    allowed, wanted = RULES[name]

    def parse(text: str) -> Any:
        with contextlib.suppress(ValueError):
            if allowed(value := kind(text)):
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted.removeprefix('None or ')}")

    return parse


# ------------------------------------------------------------------ flags


def training_parser(doc: str, block: Mapping[str, Any]) -> argparse.ArgumentParser:
    """The parser of the three training scripts; `block` is that of `common_parser`."""
    parser = common_parser(doc, block, quick=True)
    training = parser.add_argument_group("training")
    add_number(training, "epochs", block["EPOCHS"], "number of epochs")
    training.add_argument(
        "--lr",
        type=flag("LEARNING_RATE", float),
        default=block["LEARNING_RATE"],
        metavar="RATE",
        help="maximum learning rate (default: %(default)s)",
    )
    what = "random seed of initial weights, image order and augmentation"
    add_number(training, "seed", block["SEED"], what)
    training.add_argument(
        "--resume",
        action="store_true",
        help="continue the last run where it stopped; the hyperparameters except --epochs must be "
        "the same, the device and the number of processes may differ",
    )
    return parser


def add_init(parser: argparse.ArgumentParser) -> None:
    """Add --init, for the scripts that train a classifier."""
    parser.add_argument(
        "--init",
        type=Path,
        metavar="PATH",
        help="start from the weights in this .pth file instead of random ones; weights of other "
        "projects need torchvision's parameter names and a 3x3 first convolution for 32x32 images",
    )


def add_context(parser: argparse.ArgumentParser, default: str, what: str) -> None:
    """Add --context, one of CONTEXTS; `what` begins its help text."""
    parser.add_argument(
        "--context",
        choices=CONTEXTS,
        default=default,
        help=f"{what}: clean, one kind of degradation, or a group of kinds; mixed is half clean, "
        "half degraded (default: %(default)s)",
    )


def add_indices(parser: argparse.ArgumentParser) -> None:
    """Add --indices, which selects training images by index."""
    parser.add_argument(
        "--indices",
        type=Path,
        metavar="PATH",
        help="train only on the images whose indices are in this .npy file; an index listed twice "
        "counts twice",
    )


def add_number(parser: argparse._ActionsContainer, name: str, default: int, what: str) -> None:
    """Add --`name`, a whole number under the rule of the same name; `what` is its help text."""
    parser.add_argument(
        f"--{name}",
        type=flag(name.replace("-", "_").upper(), int),
        default=default,
        metavar="N",
        help=f"{what} (default: %(default)s)",
    )


def add_out(parser: argparse.ArgumentParser, default: Path, files: str) -> None:
    """Add --out, for the programs that write results; `files` says what is written."""
    parser.add_argument(
        "--out",
        type=Path,
        default=default,
        metavar="PATH",
        help=f"folder for {files} (default: %(default)s)",
    )


class Parser(argparse.ArgumentParser):
    """With --subset, results are written below QUICK unless a flag names another folder.

    Args:
        quick: also write networks there, and look for networks there first, see `found`.
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
    """A parser with the flags that all scripts share.

    Args:
        doc: the description.
        block: the globals of the script; upper-case names give the defaults.
        quick: see `Parser`.

    Raises:
        UserError: a value in `block` is not allowed by RULES.
    """
    _check_block(block)
    parser = Parser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, quick=quick
    )
    add_number(parser, "batch-size", block["BATCH_SIZE"], "images per step")
    parser.add_argument(
        "--device",
        default="auto",
        metavar="NAME",
        help="cpu, cuda or cuda:1; auto uses a GPU if available (default: %(default)s)",
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        default=FOLDER,
        metavar="PATH",
        help="folder with CIFAR-10, or .npz file with your own data set (default: data, where "
        "CIFAR-10 is downloaded to)",
    )
    parser.add_argument(
        "--checkpoint-dir",
        type=Path,
        default=checkpoint.CHECKPOINTS,
        metavar="PATH",
        help="folder where .pth files are read and written (default: checkpoints)",
    )
    parser.add_argument(
        "--subset",
        type=flag("SUBSET", int),
        metavar="N",
        help="quick test: use only N images of each split, and write below runs/quick unless "
        "a flag names another folder" + ("; networks are looked for there first" if quick else ""),
    )
    return parser


def found(args: argparse.Namespace, file: str) -> Path:
    """The path to read `file` from. In a quick test: CHECKPOINTS if it is not in QUICK."""
    path, whole = args.checkpoint_dir / file, checkpoint.CHECKPOINTS / file
    return whole if args.quick and not path.exists() and whole.exists() else path


def logits_folder(args: argparse.Namespace, teacher: Path, student: Path) -> Path:
    """The folder for a teacher's stored logits: beside `teacher`, so that all students share it.

    It is beside `student` if the teacher's folder cannot be written, and in a quick test of a
    teacher in CHECKPOINTS, because a quick test does not write there.
    """
    quick = args.subset is not None and teacher.parent.resolve() == checkpoint.CHECKPOINTS
    beside = student if quick or not os.access(teacher.parent, os.W_OK) else teacher
    return beside.with_name(f"{teacher.stem}.logits")


def refuse_folder(parser: argparse.ArgumentParser, flag: str, path: Path | None) -> None:
    """End with an error if `path`, the value of `flag`, names a folder and not a file."""
    if path and (not path.name or path.is_dir()):
        parser.error(f"{flag} {path} must name a file, not a folder")


# ------------------------------------------------------------------ other scripts


def run_script(script: str, flags: Sequence[str]) -> None:
    """Run a script of this repository; it continues a run that was stopped.

    Ctrl-C in a terminal reaches the script too, and SIGTERM is passed on. In both cases, this
    waits until the script has saved its state. Raises UserError if the script fails or is stopped.
    """
    words = [script, *flags, *checkpoint.typed.flags, "--resume"]
    print(f"\n{shlex.join(['python', *words])}", flush=True)
    process = subprocess.Popen([sys.executable, ROOT / script, *words[1:]])
    before = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    status, interrupted = None, False
    try:
        while status is None:
            try:
                status = process.wait()
            except KeyboardInterrupt:
                interrupted = True
    finally:
        signal.signal(signal.SIGTERM, before)
    if status:
        raise UserError(f"{script} ended with status {status}: run this command again to continue")
    if interrupted:
        raise KeyboardInterrupt


# ------------------------------------------------------------------ messages


def announce(title: str, **facts: object) -> None:
    """Print what the program is about to do: a title, then one line per fact."""
    print(title)
    for name, fact in facts.items():
        print(f"  {name:<14}{fact}")
    print(flush=True)


@by_first
def next_command(args: argparse.Namespace, taught_by: str | None = None) -> str:
    """The next command to run: the first step that is missing or used networks since replaced.

    Args:
        taught_by: the fingerprint of the teacher of both students. None: any teacher.
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
    """Run a script's `main`. A UserError becomes one line on stderr and exit status 2."""
    with contextlib.suppress(AttributeError, OSError):  # a notebook's stdout has no reconfigure
        sys.stdout.reconfigure(errors="backslashreplace")  # for names the terminal cannot encode
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of the output, such as head, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except (UserError, OSError) as error:
        process = f"rank {rank()}: " if rank() else ""
        print(f"{process}{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if ranks() == 1 or "by peer" not in str(error):
            raise
        print(f"rank {rank()}: another process failed, see its error", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(status)
