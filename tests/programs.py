"""Programs in processes of their own, forked from one that has imported PyTorch already."""

import multiprocessing
import os
from dataclasses import dataclass

import fault_driver

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["torch", "torchvision", "numpy", "tqdm"])


@dataclass
class Done:
    status: int
    stdout: str
    stderr: str


class Run:
    """A script in a separate process; `limits` are called there before the script starts."""

    def __init__(self, function, *args, limits=()):
        pipes = [FORKS.Pipe(duplex=False) for _ in ("stdout", "stderr")]
        self.printed = [reader for reader, _ in pipes]
        writers = [writer for _, writer in pipes]
        self.process = FORKS.Process(
            target=fault_driver.child, args=(writers, limits, function, *args)
        )
        self.process.start()
        for writer in writers:
            writer.close()

    def wait(self):
        self.process.join(240)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        texts = []
        for reader in self.printed:
            with open(os.dup(reader.fileno())) as file:
                texts.append(file.read())
            reader.close()
        return Done(self.process.exitcode, *texts)
