"""The state of a training run: saved between steps, and continued bit for bit."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from utils.checkpoint import write_dict
from utils.device import precision
from utils.distributed import by_first, gather_objects, rank, ranks
from utils.files import UserError, shown
from utils.safe_load import brief, read_dict

START_ANEW = "delete it, or leave out --resume"


@dataclass
class Progress:
    """The progress of a run."""

    epoch: int = 0  # epochs done
    step: int = 0  # steps done in the current epoch; the next four are sums over them
    images: int = 0
    loss: float = 0.0
    hits: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)  # one row per epoch

    @property
    def best(self) -> float:
        return max((row["val_accuracy"] for row in self.history), default=-1.0)


def save_state(
    path: Path,
    progress: Progress,
    identity: Mapping[str, Any],
    net: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    device: torch.device,
) -> None:
    """Write the state to `path`; the file is replaced atomically. UserError if it cannot be.

    Args:
        identity: the settings, compared by `read_state`.
    """
    cuda = device.type == "cuda"
    state = {
        "progress": asdict(progress),
        "identity": dict(identity),
        "place": place(device),
        "saved": time.time(),
        "net": net.state_dict(),
        "optimizers": [optimizer.state_dict()["state"] for optimizer in optimizers],
        "rng": gather_objects(torch.get_rng_state()),  # for dropout, one per process
        "cuda_rng": gather_objects(torch.cuda.get_rng_state() if cuda else None),
    }
    if rank() == 0:
        write_dict(path, state)


@by_first
def read_state(path: Path, weights: Path, identity: Mapping[str, Any]) -> dict[str, Any] | None:
    """The state at `path`, of a run that writes `weights`; None if there is no such file.

    Raises UserError if the file is damaged, the run had another identity (the number of epochs may
    differ, unless more are done or started), or its best weights are gone.
    """
    if not path.exists():
        return None
    try:
        state = read_dict(path)
        before, progress = dict(state["identity"]), Progress(**state["progress"])
    except UserError as error:
        raise UserError(f"cannot resume: {error}; {START_ANEW}") from error
    except (LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"cannot resume: {path} is not a state of this version; {START_ANEW}"
        ) from error
    changed = [
        f"{name} was {brief(before.get(name))}, is {brief(identity.get(name))}"
        for name in sorted(before | identity)
        if before.get(name) != identity.get(name) and name != "epochs"
    ]
    if (started := progress.epoch + (progress.step > 0)) > identity["epochs"]:
        changed.append(f"epochs is {identity['epochs']}, but {started} are done or started")
    if changed:
        raise UserError(
            f"--resume continues {shown(path)} with the same hyperparameters only: "
            f"{'; '.join(changed)}; {START_ANEW}"
        )
    if progress.history and not weights.exists():
        raise UserError(
            f"cannot resume: {shown(weights)} is missing: restore it, or start anew without "
            f"{shown(path)}: {START_ANEW}"
        )
    return state


def load_state(
    path: Path,
    state: Mapping[str, Any],
    epochs: int,
    net: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    device: torch.device,
) -> Progress:
    """Load `state`, read from `path`, into the network, the optimizers and the random generators.

    Says so if rounding or the schedule will differ. Raises UserError if the state does not fit.
    """
    try:
        net.load_state_dict(state["net"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            # Learning rates follow from the step, and where they are kept from the device.
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": saved, "param_groups": groups})
        if rank() < len(state["rng"]):
            torch.set_rng_state(state["rng"][rank()])
            if device.type == "cuda" and state["cuda_rng"][rank()] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"][rank()])
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"cannot resume: {path} does not fit, {brief(str(error))}; {START_ANEW}"
        ) from error
    if state["place"] != place(device):
        print(
            f"started on {state['place']}, continuing on {place(device)}: the weights will not be "
            "the same bit for bit"
        )
    if state["identity"]["epochs"] != epochs:
        print(
            f"started with {state['identity']['epochs']} epochs, continuing with {epochs}: "
            "the learning rate follows the new schedule"
        )
    return Progress(**state["progress"])


def place(device: torch.device) -> str:
    """Hardware and software that affect rounding, in words."""
    words = [device.type, precision(device), f"{ranks()} process{'es' if ranks() > 1 else ''}"]
    if device.type == "cpu":
        threads = torch.get_num_threads()
        words.append(f"{threads} thread{'s' if threads > 1 else ''}")
        words.append(torch.backends.cpu.get_cpu_capability())
    return ", ".join([*words, f"PyTorch {torch.__version__}"])
