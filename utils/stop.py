"""Stopping a program by a signal: what is being done is finished first."""

import contextlib
import os
import shlex
import signal
import sys

import torch
import torch.distributed as dist

from utils.distributed import rank, total


class StopRequest:
    """Context manager that records Ctrl-C and SIGTERM. A second signal stops the process at once.

    Not so under torchrun: it forwards signals that the terminal has sent to the process already.
    """

    def __enter__(self) -> "StopRequest":
        self.signal = 0
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
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
        words = [word for word in sys.argv if word != "--resume"] + ["--resume"]
        launcher = "torchrun ..." if dist.is_torchelastic_launched() else "python"
        if rank() == 0:
            print(
                f"stopped after {where}; continue with: {launcher} {shlex.join(words)}",
                file=sys.stderr,
            )
        sys.exit(128 + self.signal)
