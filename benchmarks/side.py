"""What the process of one side of a subject does: `prepare`, then `work` again and again."""

import resource
import time
from collections.abc import Callable

import torch

from benchmarks.subjects import SUBJECTS, Place

pieces: list[Callable[[], float]] = []  # the piece of this process


def prepare(subject: str, side: str, threads: int | None, place: Place) -> None:
    """Prepare the piece of `side`, "ours" or "plain"."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    piece = getattr(SUBJECTS[subject], side)(place)

    def timed() -> float:
        started = time.perf_counter()
        images = piece()
        if place.device.type == "cuda":
            torch.cuda.synchronize()
        return images / (time.perf_counter() - started)

    pieces.append(timed)


def work() -> float:
    """Do the piece of work. Returns images per second."""
    return pieces[0]()


def peak() -> int:
    """The peak memory of this process in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
