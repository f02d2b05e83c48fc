"""Run a script and strike it at a chosen moment of its life on the disk.

    python tests/fault_driver.py AT MODE script.py [its flags]

The moments, numbered from 1, are each step of an optimizer and, of each file written as NAME.part
and renamed: `opened`, `half` written, `written`, `synced` to the disk, `renamed`, and `durable`,
when its folder is synced too. At moment AT the run is struck by MODE:

    kill    SIGKILL
    power   the same, and what was not synced is lost: of an unsynced file a random part of its
            bytes, of the renames in an unsynced folder a random choice
    int     Ctrl-C
    term    SIGTERM

The moment that is struck is named on stderr. With 0 for AT nothing strikes, and all are listed.
"""

import builtins
import ctypes
import os
import random
import resource
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
    """Counts moments, strikes at one of them, and knows what a power loss would take."""

    def __init__(self, at: int, mode: str) -> None:
        self.at, self.mode = at, mode
        self.moments: list[str] = []
        self.unsynced: set[Path] = set()
        self.renames: list[tuple[Path, Path, Path]] = []  # source, target, the target before
        self.open, self.replace = builtins.open, os.replace
        builtins.open, os.fsync, os.replace = self._open, self._fsync, self._replace
        register_optimizer_step_post_hook(lambda *_: self._moment("step"))

    def _open(self, path, *args, **kwargs):
        file = self.open(path, *args, **kwargs)
        if str(path).endswith(".part"):
            self.unsynced.add(Path(path).resolve())
            self._moment("opened", Path(path))
        return file

    def _fsync(self, descriptor: int) -> None:
        """Only note it: to wait for the disk would show nothing more."""
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
        before = target.with_name(f".{target.name}.{len(self.moments)}")
        if target.exists():
            os.link(target, before)
        self.replace(source, target)
        self.renames.append((source, target, before))
        if source in self.unsynced:
            self.unsynced ^= {source, target}
        self._moment("renamed", target)

    def _moment(self, what: str, path: Path = Path()) -> None:
        name = path.name.split(f".{os.getpid()}.")[0]
        self.moments.append(f"{what} {name}".strip())
        if len(self.moments) != self.at:
            return
        print(f"\nstruck at {self.at}: {self.moments[-1]}", file=sys.stderr, flush=True)
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
    """Run a script of the repository as `python script flags...` does."""
    sys.path.insert(0, str(ROOT))
    sys.argv = [script, *flags]
    runpy.run_path(str(ROOT / script), run_name="__main__")


def strike(at: int, mode: str, script: str, *flags: str) -> None:
    disk = Disk(at, mode)
    try:
        run(script, *flags)
    finally:
        if at == 0:
            for number, moment in enumerate(disk.moments, 1):
                print(f"moment {number}: {moment}", file=sys.stderr)


# ------------------------------------------------------------------ for processes forked by tests


def child(printed: list[Connection], limits: list, function, *args: object) -> None:
    """Set `limits`, then call `function`, with stdout and stderr going into the pipes `printed`."""
    os.chdir(ROOT)
    for number, pipe in enumerate(printed, 1):
        os.dup2(pipe.fileno(), number)
        pipe.close()
    sys.stdout.reconfigure(line_buffering=True)  # a killed process leaves what it has said
    TqdmDefaultWriteLock.mp_lock = None  # and no semaphore
    for limit in limits:
        limit()
    function(*args)


def drop_privileges() -> None:
    """Give up what lets root write where permissions forbid it."""
    version_3, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(version_3, nothing):
        raise OSError(ctypes.get_errno(), "capset")


def limit_memory(more: int) -> None:
    """Let this process take only `more` bytes of addresses than it has now."""
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + more, now + more))


if __name__ == "__main__":
    strike(int(sys.argv[1]), *sys.argv[2:])
