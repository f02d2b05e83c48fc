"""Code shared by the training scripts: data, method, checkpoints, and the loop of a run."""

import atexit
import gc

# Importing PyTorch creates half a million objects and no garbage: collection would only cost time.
_collects = gc.isenabled()
gc.disable()
import torchvision  # noqa: E402, F401

if _collects:
    gc.enable()

atexit.register(gc.freeze)  # the collection at exit would also go through all of them
