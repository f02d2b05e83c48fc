"""Code shared by the training scripts: data, method, checkpoints, and the loop of a run."""

import atexit
import gc
import sys
from types import TracebackType


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType) -> None:
    if kind is KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if "torch" not in sys.modules:  # a script starts: Ctrl-C during its imports gives no traceback
    sys.excepthook = _one_line

# Importing PyTorch creates half a million objects and no garbage: collection would only cost time.
gc.disable()
import torchvision  # noqa: E402, F401

gc.enable()
atexit.register(gc.freeze)  # the collection at exit would also go through all of them
