"""Run a script, and kill or interrupt it at a chosen moment between its writes to the disk.

The moments, numbered from 1, are each step of an optimizer and, of each file written as NAME.part
and renamed: `opened`, `half` written, `written`, `synced` to the disk, `renamed`, and `durable`,
when its folder is synced too. What happens at moment AT depends on MODE:

    kill    SIGKILL
    power   SIGKILL, and unsynced data are lost: random bytes at the end of unsynced files, and
            random renames in unsynced folders
    int     Ctrl-C
    term    SIGTERM

The names of all moments are printed to stderr. With AT 0, nothing happens.
"""

import builtins
import ctypes
import os
import random
import runpy
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_post_hook
from tqdm.std import TqdmDefaultWriteLock

ROOT = Path(__file__).resolve().parent.parent
SIGNALS = {"int": signal.SIGINT, "term": signal.SIGTERM}


class Disk:
    """Count the moments, stop the process at one of them, and simulate a power loss."""

    def __init__(self, at: int, mode: str) -> None:
        self.at, self.mode, self.count = at, mode, 0
        self.unsynced: set[Path] = set()
        self.renames: list[tuple[Path, Path, Path]] = []  # source, target, the target before
        self.open, self.replace = builtins.open, os.replace
        builtins.open, os.fsync, os.replace = self._open, self._fsync, self._replace
        register_optimizer_step_post_hook(self._stepped)

    def _stepped(self, optimizer, *_) -> None:
        """Count a step, but not those with zero gradients that precede the loading of a state."""
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        if any(weight.grad is not None and weight.grad.any() for weight in weights):
            self._moment("step")

    def _open(self, path, *args, **kwargs):
        file = self.open(path, *args, **kwargs)
        if str(path).endswith(".part"):
            self.unsynced.add(Path(path).resolve())
            self._moment("opened", Path(path))
        return file

    def _fsync(self, descriptor: int) -> None:
        """Only record the call: waiting for the disk would not test more."""
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.suffix == ".part":
            self._moment("half", path)
            self._moment("written", path)
            self.unsynced.discard(path)
            self._moment("synced", path)
        elif path.is_dir():
            done = [rename for rename in self.renames if rename[1].parent == path]
            for rename in done:
                self.renames.remove(rename)
                rename[2].unlink(missing_ok=True)
                self._moment("durable", rename[1])

    def _replace(self, source, target) -> None:
        source, target = Path(source).resolve(), Path(target)
        target = target.parent.resolve() / target.name
        before = target.with_name(f".{target.name}.{self.count}")
        if target.exists():
            os.link(target, before)
        self.replace(source, target)
        self.renames.append((source, target, before))
        if source in self.unsynced:
            self.unsynced ^= {source, target}
        self._moment("renamed", target)

    def _moment(self, what: str, path: Path = Path()) -> None:
        name = path.name.split(f".{os.getpid()}.")[0]
        self.count += 1
        print(f"\nmoment {self.count}: {f'{what} {name}'.strip()}", file=sys.stderr, flush=True)
        if self.count != self.at:
            return
        if self.mode in SIGNALS:
            os.kill(os.getpid(), SIGNALS[self.mode])
            return
        if what == "half":
            os.truncate(path, path.stat().st_size // 2)
        if self.mode == "power":
            self._lose()
        for _, _, before in self.renames:
            before.unlink(missing_ok=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def _lose(self) -> None:
        chance = random.Random(self.at)
        for path in self.unsynced:
            os.truncate(path, chance.randrange(path.stat().st_size + 1))
        for source, target, before in reversed(self.renames):
            if chance.random() < 0.5:
                os.link(target, source)
                if before.exists():
                    self.replace(before, target)
                else:
                    target.unlink()


def run(script: str, *flags: str) -> None:
    """Run a script as `python script flags...` does in the folder of the repository."""
    sys.path.insert(0, str(ROOT))
    sys.argv = [script, *flags]
    runpy.run_path(script, run_name="__main__")


def strike(at: int, mode: str, script: str, *flags: str) -> None:
    Disk(at, mode)
    run(script, *flags)


# ------------------------------------------------------------------ for processes forked by tests


def child(printed: list[Connection], limits: list, function, *args: object) -> None:
    """Set `limits`, then call `function` with stdout and stderr sent to the pipes `printed`."""
    os.chdir(ROOT)
    for number, pipe in enumerate(printed, 1):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    sys.stdout.reconfigure(line_buffering=True)  # keep the output of a killed process
    TqdmDefaultWriteLock.mp_lock = None  # a killed process would leave the semaphore behind
    for limit in limits:
        limit()
    function(*args)


def drop_privileges() -> None:
    """Drop the capabilities that let root ignore file permissions."""
    version_3, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(version_3, nothing):
        raise OSError(ctypes.get_errno(), "capset")
