"""Stopping a program by a signal: what is being done is finished first."""

import contextlib
import os
import shlex
import signal
import sys

import torch
import torch.distributed as dist

from utils.distributed import rank, total

# Ctrl-C, the system's request, and a closed terminal, which Windows has no signal for.
STOPPING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class StopRequest:
    """Context manager that records Ctrl-C, SIGTERM and SIGHUP. A second one stops at once.

    Not so under torchrun: it forwards signals that the terminal has sent to the process already.
    A signal that was ignored when the program started (nohup, for example) stays ignored.
    """

    def __enter__(self) -> "StopRequest":
        self.signal = 0
        self._before = {
            number: signal.signal(number, self._note)
            for number in STOPPING
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.signal = number
        if not dist.is_torchelastic_launched():
            self.__exit__()
            with contextlib.suppress(OSError):  # print is not safe in a signal handler
                os.write(2, b"\nstopping after this step; press Ctrl-C again to stop at once\n")

    def agreed(self) -> bool:
        """Whether any process has received a signal. The result is the same in all processes."""
        if total(torch.tensor(self.signal > 0, dtype=torch.int)).item():
            self.signal = self.signal or signal.SIGTERM
        return self.signal > 0

    def leave(self, where: str) -> None:
        """End the program with status 128 + signal, and print what continues it."""
        words = [word for word in sys.argv if word != "--resume"] + ["--resume"]
        launcher = "torchrun ..." if dist.is_torchelastic_launched() else "python"
        message = f"stopped after {where}; continue with: {launcher} {shlex.join(words)}"
        if rank() == 0:
            with contextlib.suppress(OSError):  # the terminal is closed
                print(message, file=sys.stderr)
        sys.exit(128 + self.signal)
