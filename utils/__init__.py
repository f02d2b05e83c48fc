"""Code shared by the training scripts: data, method, checkpoints, and the loop of a run."""

import atexit
import gc
import sys

# Importing PyTorch creates half a million objects and no garbage: collection would only cost time.
_collects = gc.isenabled()
gc.disable()
try:
    import torchvision  # noqa: F401
except KeyboardInterrupt:
    print("interrupted", file=sys.stderr)
    sys.exit(130)

if _collects:
    gc.enable()

atexit.register(gc.freeze)  # the collection at exit would also go through all of them
