"""Several processes that train one network, started by torchrun; alone, nothing happens here.

    torchrun --standalone --nproc_per_node=2 teacherTrain.py

Every process holds the whole network and all images and computes its share of each batch. The first
one, of rank 0, alone prints and writes.
"""

import atexit
import contextlib
import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist

P = ParamSpec("P")
T = TypeVar("T")
_first_alone = False  # while the first process does what the others wait for


def rank() -> int:
    """This process among the `ranks()`: 0 is the first."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def join_group(device: torch.device) -> None:
    """Meet the other processes that torchrun started; all but the first fall silent on stdout."""
    if not dist.is_torchelastic_launched():
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # gloo beside NCCL: what is agreed on at every step must not make the GPU wait.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    atexit.register(_leave_group)
    if rank():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115, open until the process ends


def _leave_group() -> None:
    """End the group: threads of one that is still there when Python has gone abort the process.

    A DistributedDataParallel that nobody uses any more, but that was not collected, holds on to it.
    """
    gc.collect()
    dist.destroy_process_group()


def total(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of `tensor` over all processes, on each of them."""
    if ranks() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather(part: torch.Tensor, count: int) -> torch.Tensor:
    """All rows, (count, ...), on every process, of which each holds its `tensor_split`."""
    if ranks() == 1:
        return part
    whole = part.new_zeros(count, *part.shape[1:])
    whole.tensor_split(ranks())[rank()].copy_(part)
    return total(whole)


def gather_objects(item: T) -> list[T]:
    """What each process holds, in the order of the ranks."""
    if ranks() == 1:
        return [item]
    items: list[T] = [item] * ranks()
    dist.all_gather_object(items, item)
    return items


def by_first(function: Callable[P, T]) -> Callable[P, T]:
    """A decorator: the first process calls the function, and all get what it returns.

    So one file serves all of them. Where it raises an error there, the other processes leave in
    silence with status 2. Called from another such function, it is a plain call.
    """

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> T:
        global _first_alone
        if ranks() == 1 or _first_alone:
            return function(*args, **kwargs)
        box: list[Any] = [None]
        failure = None
        if rank() == 0:
            _first_alone = True
            try:
                box = [(function(*args, **kwargs),)]
            except Exception as error:
                failure = error
            finally:
                _first_alone = False
        dist.broadcast_object_list(box, src=0)
        if failure:
            raise failure
        if box[0] is None:
            sys.exit(2)
        return box[0][0]

    return wrapper


@contextlib.contextmanager
def first_one_first() -> Iterator[None]:
    """Let one process of each machine through first: it downloads what the others then find."""
    first = int(os.environ.get("LOCAL_RANK", 0)) == 0
    if not first:
        total(torch.zeros(1))
    yield
    if first:
        total(torch.zeros(1))
