"""Checkpoints: one dictionary a file, weights in half precision, loadable without running code."""

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import ARCHS, STEMS, Selector, network
from utils.data import CLASSES, MEAN, STD
from utils.files import UserError, replacing

FILES = {
    "resnet50": "teacher.pth",
    "densenet121": "densenet121.pth",
    "googlenet": "googlenet.pth",
    "selector": "selector.pth",
}
COMMANDS = {
    "resnet50": "python teacherTrain.py",
    "densenet121": "python StudentTrain.py --model 1",
    "googlenet": "python StudentTrain.py --model 2",
    "selector": "python trainSelector.py",
}
KEYS = (
    "arch", "stem", "state_dict", "classes", "mean", "std", "val_accuracy", "test_accuracy",
    "hyperparameters", "epoch", "torch_version",
)  # fmt: skip


def save_checkpoint(
    path: Path,
    net: nn.Module,
    arch: str,
    stem: str | None,
    hyperparameters: Mapping[str, Any],
    epoch: int,
    val_accuracy: float,
) -> None:
    """Write the weights of `net` and what is known of them to `path`, which is replaced whole.

    Floating-point tensors are stored in half precision, which rounds far less than the bf16 that
    the networks compute in. `val_accuracy` is top-1, in [0, 1]; the test accuracy is None until
    `amend_checkpoint` notes it. Raises UserError where a weight does not fit into half precision or
    the file cannot be written.
    """
    state_dict = {
        name: tensor.detach().cpu().half() if tensor.is_floating_point() else tensor.cpu()
        for name, tensor in net.state_dict().items()
    }
    if not all(tensor.isfinite().all() for tensor in state_dict.values()):
        raise UserError(f"{path} not written: a weight is not finite in half precision; lower --lr")
    checkpoint = {
        "arch": arch,
        "stem": stem,
        "state_dict": state_dict,
        "classes": list(CLASSES),
        "mean": list(MEAN),
        "std": list(STD),
        "val_accuracy": val_accuracy,
        "test_accuracy": None,
        "hyperparameters": dict(hyperparameters),
        "epoch": epoch,
        "torch_version": str(torch.__version__),
    }
    write_dict(path, checkpoint)


def amend_checkpoint(path: Path, **facts: Any) -> None:
    """Add what was found out about the weights at `path`, such as their test accuracy."""
    write_dict(path, read_checkpoint(path) | facts)


def write_dict(path: Path, content: dict[str, Any]) -> None:
    """Save `content` to `path`, which is replaced whole. Raises UserError where it cannot be."""
    buffer = io.BytesIO()  # torch.save hides a full disk's OSError behind another
    torch.save(content, buffer)
    with replacing(path) as file:
        file.write(buffer.getbuffer())


def read_dict(path: Path) -> dict[str, Any]:
    """The dictionary in `path`, its tensors on the CPU; the counterpart of `write_dict`."""
    try:
        if zipfile.is_zipfile(path) and (damaged := zipfile.ZipFile(path).testzip()):
            raise UserError(f"{path} is damaged: {damaged} does not match its checksum")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, KeyError, OSError, pickle.UnpicklingError) as error:
        raise UserError(f"{path} is cut short or not a PyTorch checkpoint: {error}") from error


def read_checkpoint(path: Path, arch: str | None = None) -> dict[str, Any]:
    """The dictionary in `path`, its weights on the CPU.

    Args:
        path: a file written by `save_checkpoint`.
        arch: the architecture that it must hold; None takes any.

    Raises:
        UserError: the file is missing, cut short, no checkpoint, of another architecture, or
            carries code instead of tensors; the message says which.
    """
    command = next((COMMANDS[name] for name in COMMANDS if FILES[name] == path.name), None)
    if not path.exists():
        raise UserError(f"{path} is missing" + (f"; make it with: {command}" if command else ""))
    try:
        with open(path, "rb") as file:
            if file.read(1) not in (b"P", b"\x80", b""):  # of a zip archive, of a bare pickle
                raise UserError(f"{path} is not a PyTorch checkpoint")
        if zipfile.is_zipfile(path) and (damaged := zipfile.ZipFile(path).testzip()):
            raise UserError(f"{path} is damaged: {damaged} does not match its checksum")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is refused: it carries code instead of tensors, which is not run"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is cut short or not a PyTorch checkpoint: {error}") from error
    missing = [key for key in KEYS if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise UserError(f"{path} is not one of this project's checkpoints: no {', '.join(missing)}")
    if arch is not None and checkpoint["arch"] != arch:
        raise UserError(f"{path} holds {checkpoint['arch']!r}, expected {arch!r}")
    return checkpoint


def load_network(path: str | Path, arch: str | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """The network that `path` holds, in float32 and eval mode on the CPU, and its dictionary.

    Takes any of the four checkpoints and raises UserError as `read_checkpoint` does, or where the
    weights do not fit the architecture that the file names.
    """
    path = Path(path)
    checkpoint = read_checkpoint(path, arch)
    found, stem, hyperparameters = (checkpoint[key] for key in ("arch", "stem", "hyperparameters"))
    if found != "selector" and (found not in ARCHS or stem not in STEMS):
        raise UserError(f"{path} holds the unknown architecture {found!r} with stem {stem!r}")
    try:
        if found == "selector":
            net: nn.Module = Selector(hyperparameters["depth"], hyperparameters["batch_norm"])
        else:
            net = network(found, stem, len(checkpoint["classes"]))
        net.load_state_dict(checkpoint["state_dict"])
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: its weights do not fit {found}, {stem}: {error}") from error
    return net.eval(), checkpoint
