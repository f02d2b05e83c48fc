"""Checkpoints: one dictionary per file, weights in half precision, loaded without running code."""

import io
import os
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import CLASS_COUNTS, NETWORKS, SELECTED, STUDENTS, TEACHER, Mean, Selector, network
from utils.data import CIFAR10, CLASSES, DataSet, Split, fingerprint, listed, load_splits, numbered
from utils.distributed import by_first, rank
from utils.files import UserError, previous, replacing, shown
from utils.safe_load import brief, read_dict

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / "checkpoints"  # default folder
QUICK = ROOT / "runs" / "quick"  # default folder of a quick test, that is, with --subset
FILES = {name: f"{name}.pth" for name in ("teacher", *STUDENTS, "selector")}
EXPECTED = {name: TEACHER if name == "teacher" else name for name in FILES}  # architectures
ALONE = {arch: f"{arch}_alone.pth" for arch in STUDENTS}  # trained without the teacher
COMMANDS = {
    "teacher": "python teacherTrain.py",
    **{arch: f"python StudentTrain.py --model {k}" for k, arch in enumerate(STUDENTS, 1)},
    "selector": "python trainSelector.py",
}
KEYS = ("arch", "stem", "state_dict", "classes", "mean", "std", "val_accuracy", "test_accuracy")
KEYS += ("hyperparameters", "epoch", "torch_version")  # newer files also have data and size
WRAPPERS = ("state_dict", "net", "model", "model_state_dict")  # keys of weights in other projects


def save_checkpoint(
    path: Path,
    net: nn.Module,
    settings: Mapping[str, Any],
    epoch: int,
    val_accuracy: float,
    data: DataSet = CIFAR10,
) -> None:
    """Write the weights of `net` and facts about them to `path`. The file is replaced atomically.

    `settings` are the hyperparameters; they have `arch` and, for classifiers, `stem`. Weights are
    stored in half precision, which is more precise than the bf16 that networks compute in.
    `val_accuracy` is top-1, in [0, 1]. The test accuracy is None until `amend_checkpoint` sets it.
    Raises UserError if a weight is not finite in half precision or the file cannot be written.
    """
    state_dict = {
        name: tensor.detach().cpu().half() if tensor.is_floating_point() else tensor.cpu()
        for name, tensor in net.state_dict().items()
    }
    if not all(tensor.isfinite().all() for tensor in state_dict.values()):
        raise UserError(f"{path} not written: a weight is not finite in half precision; lower --lr")
    checkpoint = {
        "arch": settings["arch"],
        "stem": settings.get("stem"),
        "state_dict": state_dict,
        "data": data.name,
        "classes": list(data.classes),
        "mean": list(data.mean),
        "std": list(data.std),
        "size": data.size,
        "val_accuracy": val_accuracy,
        "test_accuracy": None,
        "hyperparameters": dict(settings),
        "epoch": epoch,
        "torch_version": str(torch.__version__),
    }
    write_dict(path, checkpoint)


def amend_checkpoint(path: Path, **facts: Any) -> None:
    """Add `facts`, for example the test accuracy, to the checkpoint at `path`.

    Raises UserError as `read_checkpoint` does.
    """
    if rank() == 0:
        write_dict(path, read_checkpoint(path) | facts)


def write_dict(path: Path, content: dict[str, Any]) -> None:
    """Save `content` to `path` for `read_dict`. The file is replaced atomically.

    Raises UserError if the file cannot be written.
    """
    buffer = io.BytesIO()  # on a full disk, torch.save replaces the OSError by another error
    torch.save(content, buffer)
    with replacing(path) as file:
        file.write(buffer.getbuffer())


def read_checkpoint(path: Path, arch: str | None = None, stem: str | None = None) -> dict[str, Any]:
    """Read the dictionary in `path`, with tensors on the CPU.

    Raises UserError if the file is missing, truncated, not a checkpoint, for another architecture,
    or contains code. Only `load_network` checks that the weights fit the architecture.

    Args:
        path: a file written by `save_checkpoint`.
        arch: the expected architecture. None: any.
        stem: if given, other files are accepted too: those of this project for any architecture,
            and those of other projects for `arch` with this stem: a state dict, or a dictionary
            that has it under one of WRAPPERS. Their classes are named "class 0" and so on, and
            val_accuracy is None.
    """
    name = next((name for name in FILES if FILES[name] == path.name), "")
    command = COMMANDS.get(name, "").removeprefix("python ")
    if command and not os.path.exists(path):
        raise UserError(f"{path} is missing; run {command}")
    checkpoint = read_dict(path)
    missing = [key for key in KEYS if key not in checkpoint]
    if missing and arch and stem:
        return _from_elsewhere(checkpoint, arch, stem)
    if missing:
        raise UserError(f"{path} is not a checkpoint of this project: it has no {missing[0]}")
    expected = [arch] if arch and not stem else [*NETWORKS, "selector"]
    if checkpoint["arch"] not in expected:
        raise UserError(
            f"{path} holds {brief(checkpoint['arch'])}, expected {' or '.join(expected)}: "
            f"{f'run {command}' if command else 'name another file'}, or edit TEACHER and STUDENTS "
            "in models/networks.py"
        )
    return checkpoint


def _from_elsewhere(content: dict[str, Any], arch: str, stem: str) -> dict[str, Any]:
    """Convert the dictionary of another project's file to the format of this project."""
    wrapped = [content[key] for key in WRAPPERS if isinstance(content.get(key), dict)]
    weights = wrapped[0] if wrapped else content
    # DistributedDataParallel and torch.compile add these prefixes.
    names = [str(name).replace("_orig_mod.", "") for name in weights]
    while names and all(name.startswith("module.") for name in names):
        names = [name.removeprefix("module.") for name in names]
    state_dict = dict(zip(names, weights.values(), strict=True))
    with torch.device("meta"):  # only the names count
        *_, bias = network(arch, stem).state_dict()
    last = state_dict.get(bias)
    count = len(last) if isinstance(last, torch.Tensor) and last.ndim == 1 else 0
    return {
        "arch": arch,
        "stem": stem,
        "state_dict": state_dict,
        "classes": numbered(count if count in CLASS_COUNTS else len(CLASSES)),
        "mean": list(CIFAR10.mean),
        "std": list(CIFAR10.std),
        "val_accuracy": None,
        "hyperparameters": {},
    }


@by_first
def load_network(
    path: str | Path, arch: str | None = None, stem: str | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a network and its checkpoint dictionary. The network is float32, in eval mode, on CPU.

    The arguments are those of `read_checkpoint`. Raises UserError as it does, or if the weights do
    not fit the architecture or are not finite.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path, arch, stem)
    found, stem, hyperparameters = (checkpoint[key] for key in ("arch", "stem", "hyperparameters"))
    with torch.device("cpu"):  # PyTorch's default device may be another
        if found == "selector":
            outputs = len(hyperparameters.get("selected", SELECTED))
            shape = hyperparameters["depth"], hyperparameters["batch_norm"]
            net: nn.Module = Selector(*shape, outputs)
        else:
            net = network(found, stem, len(checkpoint["classes"]))
    try:
        net.load_state_dict(dict(checkpoint["state_dict"]))
    except RuntimeError as error:
        lines = str(error).splitlines()[1:4]
        reasons = "; ".join(textwrap.shorten(line, 160, placeholder=" ...") for line in lines)
        raise UserError(f"{path}: its weights do not fit {found}, {stem}: {reasons}") from error
    for name, tensor in net.state_dict().items():
        if not tensor.isfinite().all():
            raise UserError(f"{path}: its weights {name} are not finite")
    return net.eval(), checkpoint


def load_teacher(
    paths: Sequence[Path], stem: str | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Load a teacher and its checkpoint dictionary; of several, their `Mean` and the first's.

    Without `stem`, the teacher must be of the architecture TEACHER. With `stem`, it may be any
    network of this project, or a single file with weights of another project for TEACHER.
    Raises UserError as `load_network` does, or if several were trained on other images.
    """
    if stem is None:
        return load_network(paths[0], TEACHER)
    foreign = (TEACHER, stem) if len(paths) == 1 else ()
    nets, facts = zip(*(load_network(path, *foreign) for path in paths), strict=True)
    for path, its in zip(paths, facts, strict=True):
        if its["arch"] not in NETWORKS:
            raise UserError(f"{path} holds a selector, which teaches nothing: leave it out")
        check_data(path, its, replace(data_of(facts[0]), name=shown(paths[0])))
    return Mean(nets) if len(nets) > 1 else nets[0], facts[0]


def fingerprint_of(net: nn.Module) -> str:
    """Fingerprint of the weights of `net`: twelve hexadecimal digits."""
    return fingerprint(net.state_dict().values())


def load_parts(
    find: Callable[[str], Path], names: Sequence[str] = (*STUDENTS, "selector")
) -> dict[str, tuple[nn.Module, dict[str, Any]]]:
    """Load networks that work together: for each, the network and its checkpoint dictionary.

    `find` returns the path of a file of FILES, `names` are keys of FILES. Raises UserError as
    `load_network`, or if the students have different classes, or the selector is for others.
    """
    paths = {name: find(FILES[name]) for name in names}
    parts = {name: load_network(path, EXPECTED[name]) for name, path in paths.items()}
    first = replace(data_of(parts[names[0]][1]), name=shown(paths[names[0]]))
    for name in names:
        if name != "selector":
            check_data(paths[name], parts[name][1], first)
    if "selector" in names:
        recipe = parts["selector"][1]["hyperparameters"]
        made_for, selected = recipe.get("students", []), recipe.get("selected", list(STUDENTS))
        these = [
            fingerprint_of(parts[arch][0]) if arch in parts else weights
            for arch, weights in zip(STUDENTS, made_for, strict=False)
        ]
        if these != made_for or len(made_for) < len(STUDENTS) or selected != list(SELECTED):
            raise UserError(
                f"{shown(paths['selector'])} has a selector and thresholds for other students than "
                "these: run trainSelector.py again"
            )
    return parts


def load_system(
    find: Callable[[str], Path],
    names: Sequence[str],
    data: str | Path,
    subset: int | None = None,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, tuple[nn.Module, dict[str, Any]]], tuple[Split, Split, Split]]:
    """`load_parts` with these arguments, and `load_splits` of the data set, for the networks.

    Raises UserError as these do, or if the networks were trained on another data set.
    """
    parts = load_parts(find, names)
    facts = parts[names[0]][1]
    splits = load_splits(data, subset, device, facts)
    check_data(find(FILES[names[0]]), facts, splits[0].data)
    return parts, splits


def data_of(checkpoint: Mapping[str, Any]) -> DataSet:
    """The data set that a network was trained on."""
    return DataSet(
        checkpoint.get("data", "data set"),
        tuple(checkpoint["classes"]),
        tuple(checkpoint["mean"]),
        tuple(checkpoint["std"]),
        checkpoint.get("size", CIFAR10.size),
    )


def check_data(path: Path, checkpoint: Mapping[str, Any], data: DataSet) -> None:
    """Raise UserError unless the network at `path` was trained on images like those of `data`.

    For weights of other projects, which say nothing about it, only the number of classes counts.
    """
    own = data_of(checkpoint)
    if checkpoint.get("val_accuracy", 0) is None and len(own.classes) == len(data.classes):
        return
    for what in ("classes", "size", "mean", "std"):
        here, there = getattr(own, what), getattr(data, what)
        if here != there:
            say = listed if what == "classes" else str
            raise UserError(
                f"{what} differ: {shown(path)} has {say(here)}, and {data.name} has {say(there)}: "
                "use --data for the data set that it was trained on, or --checkpoint-dir for "
                "networks trained on this data set"
            )


def starting_network(
    arch: str, stem: str, init: Path | None, path: Path, classes: Sequence[str] = CLASSES
) -> tuple[nn.Module, str | None]:
    """The initial network of a run that writes `path`, and the fingerprint of its weights.

    Without `init`, the weights are random and the fingerprint is None. `init` may be a file of
    another project, see `read_checkpoint`. If it has another number of classes, the last layer is
    new. Raises UserError as `load_network` does; or if `init` has another architecture or stem; or
    if the run would overwrite it.
    """
    if init is None:
        return network(arch, stem, len(classes)), None
    own = [path, path.with_suffix(".state.pth")]
    if init.resolve() in [file.resolve() for file in (*own, *map(previous, own))]:
        raise UserError(f"--init {init} would be overwritten by this run: copy it to another file")
    net, checkpoint = load_network(init, arch, stem)
    if checkpoint["val_accuracy"] is None:
        print(elsewhere(init, stem))
    if (found := (checkpoint["arch"], checkpoint["stem"])) != (arch, stem):
        raise UserError(f"--init {init} has {found}, but the run has {(arch, stem)}; see --stem")
    made_of = fingerprint_of(net)
    if (count := len(checkpoint["classes"])) != len(classes):
        print(
            f"--init {init} has {count} classes, the data set {len(classes)}: the last layer is new"
        )
        weights, net = net.state_dict(), network(arch, stem, len(classes))
        last = list(weights)[-2:]  # weight and bias
        net.load_state_dict(weights | {name: net.state_dict()[name] for name in last})
    return net, made_of


def elsewhere(path: Path, stem: str) -> str:
    """What is assumed about weights of another project, which come without this information."""
    return (
        f"{path} is not a checkpoint of this project: assuming the {stem} stem, the classes of the "
        "data set, and the mean and std of CIFAR-10"
    )
