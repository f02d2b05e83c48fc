"""A training run: epochs, steps, files, signals, and resuming.

The scripts contain the training loop itself:

    run = Run(net, path, ...)
    for epoch in run.epochs():
        for images, labels in run.batches(train.labels):
            with autocast(device):
                logits = run.model(images)
                loss = F.cross_entropy(logits.float(), labels)
            run.step(loss, correct=logits.argmax(dim=1) == labels)
        run.end_epoch(*score(net, val))
"""

import csv
import math
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from tqdm import tqdm

from utils.augment import Augmentation, Batches
from utils.checkpoint import save_checkpoint, write_dict
from utils.data import Split
from utils.device import keep_freed_memory
from utils.distributed import gather_objects, rank, ranks, total
from utils.files import UserError, previous, replacing, shown
from utils.optim import one_cycle, optimizers
from utils.resume import START_ANEW, Progress, place, read_state
from utils.safe_load import brief
from utils.stop import StopRequest
from utils.training_step import TrainingStep

CHECK_EVERY = 20  # steps between readings of the loss, because each reading blocks the GPU


class Run:
    """A training run. The weights of the epoch with the best validation accuracy go to `path`.

    After every epoch, the history is written to NAME.csv and the state to NAME.state.pth, where
    NAME is that of `path`. The files of an earlier run are kept as NAME.previous.pth and
    NAME.previous.state.pth. A signal (see `utils.stop`) saves the state after the current step and
    ends the program. With `resume`, a run continues from the state: on the same CPU, with the same
    version of PyTorch and number of threads, to the same weights bit for bit. Raises UserError if a
    file cannot be written, or the state does not fit.

    With several processes, each computes its share of every batch. The gradients are averaged.
    Batch norm keeps the statistics of the first process.

    Args:
        net: the network to train, on the device of `train`.
        path: the .pth file to write.
        train: the training images. The targets are passed to `batches`.
        settings: the hyperparameters, from `utils.cli.settings`, and what else makes the run what
            it is. They are printed, stored in the checkpoint, and compared when resuming. If it has
            a `context`, it is applied to each batch, unless the images are in it already.
        layers: names of modules of `net`, for `outputs`.
        resume: continue the previous run, if there is one.
    """

    def __init__(
        self,
        net: nn.Module,
        path: Path,
        train: Split,
        settings: Mapping[str, Any],
        layers: Sequence[str] = (),
        resume: bool = False,
    ) -> None:
        self.net, self.path, self.settings = net, path, dict(settings)
        self.data, self.device = train.data, train.images.device
        self.total_epochs, self.batch_size = settings["epochs"], settings["batch_size"]
        about = {name: getattr(self.data, name) for name in ("classes", "mean", "std")}
        self.identity = {**settings, **about}  # compared when resuming
        if self.device.type == "cpu":
            keep_freed_memory()
        context = settings.get("context", "clean")
        self.loader = Batches(
            train.images,
            self.batch_size,
            settings["seed"],
            Augmentation(settings["crop"], settings["flip"], settings["cutout"]),
            settings.get("teacher_views", 0),
            (rank(), ranks()),
            "clean" if train.context == context else context,
            train.data,
        )
        recipe = ("optimizer", "learning_rate", "momentum", "weight_decay")
        self.optimizers = optimizers(net, *(settings[name] for name in recipe))
        if ranks() > 1:
            torch.manual_seed(settings["seed"] + rank())  # different dropout in each process
        self._step = TrainingStep(net, self.optimizers, layers)
        self.schedulers = self._schedules(steps_done=0)
        self.progress = Progress()
        self.state_path = path.with_suffix(".state.pth")
        listed = ", ".join(f"{name}={value}" for name, value in self.settings.items())
        print(textwrap.fill(f"hyperparameters: {listed}", 98, subsequent_indent="  "))
        with StopRequest() as self._stop:
            if not (resume and self._continue()):
                self._begin()
            self._pause()

    def _schedules(self, steps_done: int) -> list[torch.optim.lr_scheduler.OneCycleLR]:
        rate, warmup = self.settings["learning_rate"], self.settings["warmup"]
        steps = self.total_epochs * self.loader.steps
        return [one_cycle(each, rate, warmup, steps, steps_done) for each in self.optimizers]

    def epochs(self) -> Iterator[int]:
        """Yield the remaining epochs, counted from 0. The script calls `end_epoch` in each."""
        with StopRequest() as self._stop:
            while self.progress.epoch < self.total_epochs:
                yield self.progress.epoch
                self._pause()

    def _pause(self) -> None:
        """Stop here if a signal was received and epochs remain. The state is saved already."""
        now = self.progress
        if self._stop.agreed() and now.epoch < self.total_epochs:
            self._stop.leave(f"epoch {now.epoch}, step {now.step}")

    def _continue(self) -> bool:
        """Load the state of the previous run. Returns whether there is one."""
        state = read_state(self.state_path, self.path, self.identity)
        if state is None:
            print(f"nothing to resume, no {shown(self.state_path)}: starting with epoch 1")
            return False
        try:
            self._load(state)
            before, there = state["identity"]["epochs"], state["place"]
            saved = f"{datetime.fromtimestamp(state['saved']):%Y-%m-%d %H:%M}"
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"cannot resume: {self.state_path} does not fit, {brief(str(error))}; {START_ANEW}"
            ) from error
        now, here = self.progress, place(self.device)
        self.schedulers = self._schedules(now.epoch * self.loader.steps + now.step)
        if there != here:
            print(
                f"started on {there}, continuing on {here}: the weights will not be the same bit "
                "for bit"
            )
        if before != self.total_epochs:
            print(
                f"started with {before} epochs, continuing with {self.total_epochs}: the learning "
                "rate follows the new schedule"
            )
        if now.epoch == self.total_epochs:
            print(f"the run is finished: all epochs were done on {saved}")
        else:
            print(f"resuming after epoch {now.epoch}, step {now.step}, saved on {saved}")
        return True

    def _load(self, state: Mapping[str, Any]) -> None:
        """Set the network, the optimizers, the random generators and the progress."""
        self.net.load_state_dict(state["net"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            # Learning rates follow from the step, and where they are kept from the device.
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": saved, "param_groups": groups})
        if rank() < len(state["rng"]):
            torch.set_rng_state(state["rng"][rank()])
            if self.device.type == "cuda" and state["cuda_rng"][rank()] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"][rank()])
        self.progress = Progress(**state["progress"])

    def _save_state(self) -> None:
        cuda = self.device.type == "cuda"
        state = {
            "progress": asdict(self.progress),
            "identity": self.identity,
            "place": place(self.device),
            "saved": time.time(),
            "net": self.net.state_dict(),
            "optimizers": [optimizer.state_dict()["state"] for optimizer in self.optimizers],
            "rng": gather_objects(torch.get_rng_state()),  # for dropout, one per process
            "cuda_rng": gather_objects(torch.cuda.get_rng_state() if cuda else None),
        }
        if rank() == 0:
            write_dict(self.state_path, state)

    def _begin(self) -> None:
        """Before epoch 1: keep the files of an earlier run, and save the state of this run."""
        for path in (self.path, self.state_path):
            if rank() == 0 and path.exists():
                with replacing(previous(path)) as file:
                    file.write(path.read_bytes())
                print(f"kept from an earlier run: {shown(previous(path))}")
        self._save_state()

    def batches(
        self, *rows: torch.Tensor, clean: bool = False
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield the remaining batches of the epoch, as `Batches.epoch` does.

        The script calls `step` for each batch. Raises UserError if a loss is not finite.
        """
        now, steps = self.progress, self.loader.steps
        started = time.perf_counter() - now.seconds
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.net.train()
        with tqdm(
            total=len(self.loader.images),
            initial=now.images,
            unit="img",
            unit_scale=True,
            desc=f"epoch {now.epoch + 1}/{self.total_epochs}",
            disable=rank() > 0,
        ) as bar:
            for batch in self.loader.epoch(now.epoch, *rows, start=now.step, clean=clean):
                size = self.loader.size(now.step)
                yield batch
                now.step += 1
                now.images += size
                stopping = self._stop.agreed() and now.step < steps
                if len(self._waiting) == CHECK_EVERY or now.step == steps or stopping:
                    self._collect()
                    bar.set_postfix_str(
                        f"loss {now.loss / now.images:.3f}, top-1 {now.hits / now.images:.1%}",
                        refresh=False,
                    )
                bar.update(size)
                now.seconds = time.perf_counter() - started
                if stopping:
                    bar.close()
                    self._save_state()
                    self._stop.leave(f"epoch {now.epoch + 1}, step {now.step} of {steps}")
        if ranks() > 1:
            for statistics in self.net.buffers():
                dist.broadcast(statistics, src=0)

    def outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The logits of the network in training mode, and the outputs of its `layers`."""
        return self._step.outputs(images)

    def model(self, images: torch.Tensor) -> torch.Tensor:
        """The logits alone."""
        return self.outputs(images)[0]

    def step(self, loss: torch.Tensor, correct: torch.Tensor) -> None:
        """Backward pass and optimizer step.

        `loss` is a scalar, the mean over this process's share of the batch; `correct`, bool (B,),
        says for each image of this share whether the prediction is correct.
        """
        # Gradients are averaged over processes with equal weights, but shares may differ in size.
        share = ranks() * len(correct) / self.loader.size(self.progress.step)
        self._step.update(loss * share)
        for scheduler in self.schedulers:
            scheduler.step()
        self._waiting.append((loss.detach() * len(correct), correct.sum()))

    def _collect(self) -> None:
        """Add the losses and hits of the last steps to the sums. UserError if one is not finite."""
        now, waiting = self.progress, self._waiting
        losses, hits = (
            total(torch.stack(column)).tolist() for column in zip(*waiting, strict=True)
        )
        for step, loss in enumerate(losses, now.step - len(waiting) + 1):
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss is {loss} in epoch {now.epoch + 1}, step {step}: lower --lr, now "
                    f"{self.settings['learning_rate']}; the files of epoch {now.epoch} stay as "
                    "they are"
                )
            now.loss += loss
        now.hits += sum(hits)
        waiting.clear()

    def end_epoch(self, val_loss: float, val_accuracy: float) -> None:
        """Write the history, the state and, if this epoch is the best so far, the checkpoint.

        The best epoch has the highest `val_accuracy`: top-1 on the validation images, in [0, 1].
        """
        now = self.progress
        improved = val_accuracy > now.best
        row = {  # accuracies are in [0, 1]
            "epoch": now.epoch + 1,
            "train_loss": now.loss / now.images,
            "train_accuracy": now.hits / now.images,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "lr": float(self.schedulers[0].get_last_lr()[0]),
            "seconds": round(now.seconds, 1),
            "images_per_second": round(now.images / now.seconds, 1),
        }
        now.history.append(row)
        now.epoch += 1
        now.step = now.images = now.hits = 0
        now.loss = now.seconds = 0.0
        if improved and rank() == 0:
            save_checkpoint(self.path, self.net, self.settings, now.epoch, val_accuracy, self.data)
        if rank() == 0:
            with replacing(self.path.with_suffix(".csv"), binary=False) as file:
                writer = csv.DictWriter(file, now.history[0], lineterminator="\n")
                writer.writeheader()
                writer.writerows(now.history)
        self._save_state()
        print(
            f"  validation: loss {val_loss:.3f}, top-1 {val_accuracy:.2%}"
            + (f", the best so far: written to {shown(self.path)}" if improved else "")
        )
