"""The state of a training run, from which it is continued bit for bit."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from utils.device import precision
from utils.distributed import by_first, ranks
from utils.files import UserError, shown
from utils.safe_load import brief, read_dict

START_ANEW = "delete it, or leave out --resume"


@dataclass
class Progress:
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
    except (UserError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"cannot resume from {shown(path)} ({error}); {START_ANEW}") from error
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
            f"cannot resume from {shown(path)}: restore {shown(weights)}, which is missing; or "
            f"start anew: {START_ANEW}"
        )
    return state


def place(device: torch.device) -> str:
    """Hardware and software that affect rounding, in words."""
    words = [device.type, precision(device), f"{ranks()} process{'es' if ranks() > 1 else ''}"]
    if device.type == "cpu":
        threads = torch.get_num_threads()
        words.append(f"{threads} thread{'s' if threads > 1 else ''}")
        words.append(torch.backends.cpu.get_cpu_capability())
    return ", ".join([*words, f"PyTorch {torch.__version__}"])
