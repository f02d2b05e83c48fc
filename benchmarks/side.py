"""One side of a subject, in a process of its own."""

import multiprocessing
import resource
import time
from multiprocessing.connection import Connection

import torch

from benchmarks.subjects import SUBJECTS, Place
from utils.files import UserError


def serve(requests: Connection, subject: str, side: str, threads: int | None, place: Place) -> None:
    """The process of one side: for each request, do a piece of work and answer with images/s.

    The answer to False is the peak memory in MB, which ends the process; so does a UserError.
    """
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(0)
    try:
        piece = getattr(SUBJECTS[subject], side)(place)
        while requests.recv():
            started = time.perf_counter()
            images = piece()
            if place.device.type == "cuda":
                torch.cuda.synchronize()
            requests.send(images / (time.perf_counter() - started))
        requests.send(round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))
    except UserError as error:
        requests.send(error)


class Side:
    """A process of `serve`, and the requests to it."""

    def __init__(self, *of: object) -> None:
        context = multiprocessing.get_context("spawn")
        self.requests, its_end = context.Pipe()
        self.process = context.Process(target=serve, args=(its_end, *of))
        self.process.start()
        its_end.close()

    def ask(self, more: bool = True) -> float:
        """Images/s of a piece of work or, to end the process, its peak memory in MB."""
        try:
            self.requests.send(more)
            answer = self.requests.recv()
        except (EOFError, OSError) as error:
            raise UserError("a benchmark process failed: see its error above") from error
        if isinstance(answer, UserError):
            raise answer
        return answer
