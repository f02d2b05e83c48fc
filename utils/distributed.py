"""Training with several processes, started by torchrun. All functions also work in one process.

    torchrun --standalone --nproc_per_node=2 teacherTrain.py

Each process has the whole network and all images, and computes its share of each batch. Only the
first process (rank 0) prints, and reads and writes files.
"""

import atexit
import functools
import gc
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist

P = ParamSpec("P")
T = TypeVar("T")


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """The number of processes that train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def join_group(device: torch.device) -> None:
    """Join the processes started by torchrun. All but the first one stop printing to stdout."""
    if not dist.is_torchelastic_launched():
        return
    # gloo in addition to NCCL: the stop flag, exchanged at every step, must not block the GPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    atexit.register(_leave_group)
    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, open until the process ends


def _leave_group() -> None:
    """Destroy the process group: otherwise its threads abort the process when Python exits."""
    gc.collect()  # an unused DistributedDataParallel keeps the group alive
    dist.destroy_process_group()


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over all processes, on each of them."""
    if ranks() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather_objects(item: T) -> list[T]:
    """The `item` of each process, in the order of the ranks."""
    if ranks() == 1:
        return [item]
    items: list[T] = [item] * ranks()
    dist.all_gather_object(items, item)
    return items


def gather(part: torch.Tensor) -> torch.Tensor:
    """Concatenate the parts of all processes, on every process."""
    return torch.cat(gather_objects(part.cpu())).to(part.device) if ranks() > 1 else part


def by_first(function: Callable[P, T]) -> Callable[P, T]:
    """Decorator: the first process calls the function, and all processes return its result.

    So only the first process needs the files. If it raises an error, the other processes exit with
    status 2 and no message.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        if ranks() == 1:
            return function(*args, **kwargs)
        result, failure = None, None
        if rank() == 0:
            try:
                result = function(*args, **kwargs)
            except Exception as error:
                failure = error
        box = [result, failure is None]
        dist.broadcast_object_list(box, src=0)
        if failure:
            raise failure
        return box[0] if box[1] else sys.exit(2)

    return wrapper
