"""What training needs: data, method, networks' files, and the bookkeeping of a run."""

import gc

# PyTorch's imports make half a million objects and no garbage, for which Python looks all the time.
_collects = gc.isenabled()
gc.disable()
import torchvision  # noqa: E402, F401

if _collects:
    gc.enable()
