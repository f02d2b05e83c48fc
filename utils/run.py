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
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from utils.augment import Augmentation, Batches
from utils.checkpoint import save_checkpoint, write_dict
from utils.data import Split, data_facts
from utils.device import enough_memory, keep_freed_memory, precision
from utils.distributed import by_first, gather_objects, rank, ranks, total
from utils.files import UserError, move, previous, replacing, shown
from utils.optim import one_cycle, optimizers
from utils.safe_load import brief, read_dict
from utils.stop import StopRequest
from utils.training_step import TrainingStep

START_ANEW = "delete it, or leave out --resume"
CHECK_EVERY = 20  # steps between readings of the loss, because each reading blocks the GPU


@dataclass
class Row:
    """A row of the history; `epoch` is counted from 1, accuracies are in [0, 1]."""

    epoch: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    lr: float
    seconds: float
    images_per_second: float


@dataclass
class Progress:
    """The progress of a run."""

    epoch: int = 0  # epochs done
    step: int = 0  # steps done in the current epoch; the next four are sums over them
    images: int = 0
    loss: float = 0.0
    hits: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)  # one Row per epoch

    @property
    def best(self) -> float:
        return max((row["val_accuracy"] for row in self.history), default=-1.0)


class Run:
    """A training run. The weights of the epoch with the best validation accuracy go to `path`.

    After every epoch, the history is written to NAME.csv and the state to NAME.state.pth, where
    NAME is that of `path`. With `resume`, a run continues from the state. The resulting weights are
    the same as without the interruption, bit for bit, on the same CPU with the same version of
    PyTorch and number of threads. Otherwise the run prints that they will differ.
    Ctrl-C and SIGTERM save the state after the current step and exit with status 130 and 143. The
    files of an earlier run are kept as NAME.previous.pth and NAME.previous.state.pth.

    With several processes, each computes its share of every batch. The gradients are averaged.
    Batch norm keeps the statistics of the first process.

    Args:
        net: the network to train, on the device of `train`.
        path: the .pth file to write.
        train: the training images. The labels only identify the run; the targets are passed to
            `batches`.
        arch, stem: of the network, for its checkpoint; stem is None for the selector.
        epochs: number of epochs.
        batch_size: images per step.
        optimizer: one of utils.optim.OPTIMIZERS.
        lr: maximum learning rate, reached after the warm-up; cosine decay follows.
        momentum: Nesterov momentum for "sgd" and "muon", beta1 for "adamw".
        weight_decay: not applied to biases and normalization layers.
        warmup: fraction of all steps, in [0, 1).
        seed: of the image order and the augmentation.
        augmentation: of the training images.
        views: number of augmented views per image, used in turn; 0: new ones in every epoch.
        context: of the training images, a key of utils.contexts.CONTEXTS.
        facts: more hyperparameters, stored in the checkpoint and compared when resuming.
        resume: continue the previous run, if there is one.
    """

    def __init__(
        self,
        net: nn.Module,
        path: Path,
        train: Split,
        *,
        arch: str,
        stem: str | None,
        epochs: int,
        batch_size: int,
        optimizer: str,
        lr: float,
        momentum: float,
        weight_decay: float,
        warmup: float,
        seed: int,
        augmentation: Augmentation,
        views: int = 0,
        context: str = "clean",
        facts: Mapping[str, Any] | None = None,
        resume: bool = False,
    ) -> None:
        self.net, self.path, self.arch, self.stem = net, path, arch, stem
        self.classes = list(train.classes)
        self.total_epochs, self.batch_size, self.lr, self.warmup = epochs, batch_size, lr, warmup
        self.resume, self.device = resume, train.images.device
        self.hyperparameters = {
            "epochs": epochs,
            "batch_size": batch_size,
            "optimizer": optimizer,
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "warmup": warmup,
            "seed": seed,
            "augmentation": asdict(augmentation),
            "views": views,
            "context": context,
            "data": data_facts(train.images, train.labels),
            **(facts or {}),
        }
        if self.device.type == "cpu":
            keep_freed_memory()
        self.data = Batches(
            train.images, batch_size, seed, augmentation, views, (rank(), ranks()), context
        )
        if self.data.size(self.data.steps - 1) < ranks():
            raise UserError(
                f"--batch-size {batch_size}: a batch has fewer images than the {ranks()} "
                "processes that share it; use a larger one"
            )
        self.optimizers = optimizers(net, optimizer, lr, momentum, weight_decay)
        parallel = None
        if ranks() > 1:
            torch.manual_seed(seed + rank())  # different dropout in each process
            parallel = DistributedDataParallel(net)
        self._step = TrainingStep(net, self.optimizers, parallel)
        self.schedulers = self._schedules(steps_done=0)
        self.progress = Progress()
        self._begun = False
        self.state_path = path.with_suffix(".state.pth")

    def _schedules(self, steps_done: int) -> list[torch.optim.lr_scheduler.OneCycleLR]:
        steps = self.total_epochs * self.data.steps
        return [one_cycle(it, self.lr, self.warmup, steps, steps_done) for it in self.optimizers]

    def begin(self) -> None:
        """Start the run: print the hyperparameters, then write or load the state.

        `epochs` calls this. A script can call it earlier, to find errors before long work. Raises
        UserError if a file cannot be written, or if the state to resume from does not fit.
        """
        if self._begun:
            return
        facts = self.hyperparameters | self.hyperparameters["augmentation"]
        del facts["augmentation"]
        told = "hyperparameters: " + ", ".join(f"{name}={value}" for name, value in facts.items())
        print(textwrap.fill(told, 98, subsequent_indent="  "))
        with StopRequest() as self._stop:
            if not (self.resume and self._continue()):
                self._begin()
            self.pause()
        self._begun = True

    def epochs(self) -> Iterator[int]:
        """Yield the remaining epochs, counted from 0. The script calls `end_epoch` in each.

        Raises UserError as `begin` does.
        """
        self.begin()
        with StopRequest() as self._stop:
            while self.progress.epoch < self.total_epochs:
                yield self.progress.epoch
                self.pause()

    def pause(self) -> None:
        """Stop here if a signal was received and epochs remain. The state is saved already."""
        now = self.progress
        if self._stop.agreed() and now.epoch < self.total_epochs:
            self._stop.leave(f"epoch {now.epoch}, step {now.step}")

    def _continue(self) -> bool:
        """Load the state of the previous run. Returns whether there is one."""
        found = self._read_state()
        if found is None:
            print(f"nothing to resume, no {shown(self.state_path)}: starting with epoch 1")
            return False
        state, time_saved = found
        saved = f"{datetime.fromtimestamp(time_saved):%Y-%m-%d %H:%M}"
        try:
            self._load_state(state)
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            reason = brief(str(error))
            raise UserError(
                f"cannot resume: {self.state_path} does not fit, {reason}; {START_ANEW}"
            ) from error
        if self.progress.epoch == self.total_epochs:
            print(f"the run is finished: all epochs were done on {saved}")
        else:
            now = self.progress
            print(f"resuming after epoch {now.epoch}, step {now.step}, saved on {saved}")
        return True

    def _begin(self) -> None:
        """Before epoch 1: keep the files of an earlier run, and save the state of this run.

        The earlier state is renamed first, so that --resume cannot continue it by mistake if this
        run is killed. It is renamed back if this run cannot start. The earlier weights are copied.
        """
        weights, state = map(previous, (self.path, self.state_path))
        moved = rank() == 0 and self.state_path.exists()
        if moved:
            move(self.state_path, state)
        try:
            if rank() == 0 and self.path.exists():
                with replacing(weights) as file:
                    file.write(self.path.read_bytes())
                print(f"kept from an earlier run: {shown(weights)}")
            self._save_state()
        except UserError:
            if moved:
                move(state, self.state_path)
            raise
        if moved:
            print(f"kept from an earlier run: {shown(state)}")

    def batches(
        self, *rows: torch.Tensor, clean: bool = False
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield the remaining batches of the epoch, as `Batches.epoch` does.

        The script calls `step` for each batch. Raises UserError if a loss is not finite.

        Args:
            rows: tensors (N, ...) on the device, for example labels; row i is of image i.
            clean: also yield, as the last item, the same crops in the context "clean".
        """
        now, steps = self.progress, self.data.steps
        started = time.perf_counter() - now.seconds
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.net.train()
        with tqdm(
            total=len(self.data.images),
            initial=now.images,
            unit="img",
            unit_scale=True,
            desc=f"epoch {now.epoch + 1}/{self.total_epochs}",
            disable=rank() > 0,
        ) as bar:
            for batch in self.data.epoch(now.epoch, *rows, start=now.step, clean=clean):
                size = self.data.size(now.step)
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

    def model(self, images: torch.Tensor) -> torch.Tensor:
        """Call the network, in training mode. With several processes, gradients are averaged.

        Raises UserError, which proposes a smaller --batch-size, if there is not enough memory.
        """
        with enough_memory(self.device, self.batch_size):
            return self._step.logits(images)

    def step(self, loss: torch.Tensor, correct: torch.Tensor) -> None:
        """Backward pass and optimizer step.

        Args:
            loss: scalar, the mean over this process's share of the batch.
            correct: bool (B,), for each image of this share, whether the prediction is correct.
        """
        # Gradients are averaged over processes with equal weights, but shares may differ in size.
        share = ranks() * len(correct) / self.data.size(self.progress.step)
        with enough_memory(self.device, self.batch_size):
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
                    f"{self.lr}; the files of epoch {now.epoch} are unchanged"
                )
            now.loss += loss
        now.hits += sum(hits)
        waiting.clear()

    def end_epoch(self, val_loss: float, val_accuracy: float) -> None:
        """Write the history, the state and, if this epoch is the best so far, the checkpoint.

        Args:
            val_loss: loss on the validation images.
            val_accuracy: top-1 accuracy on them, in [0, 1]. The highest one is the best epoch.
        """
        now = self.progress
        improved = val_accuracy > now.best
        row = Row(
            epoch=now.epoch + 1,
            train_loss=now.loss / now.images,
            train_accuracy=now.hits / now.images,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            lr=float(self.schedulers[0].get_last_lr()[0]),
            seconds=round(now.seconds, 1),
            images_per_second=round(now.images / now.seconds, 1),
        )
        now.history.append(asdict(row))
        now.epoch += 1
        now.step = now.images = now.hits = 0
        now.loss = now.seconds = 0.0
        if improved and rank() == 0:
            save_checkpoint(
                self.path,
                self.net,
                self.arch,
                self.stem,
                self.hyperparameters,
                now.epoch,
                val_accuracy,
                self.classes,
            )
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

    @property
    def _identity(self) -> dict[str, Any]:
        """The hyperparameters that must be the same when resuming (except epochs)."""
        return {
            "arch": self.arch,
            "stem": self.stem,
            "classes": self.classes,
            **self.hyperparameters,
        }

    @property
    def _place(self) -> str:
        """Hardware and software that affect rounding, in words."""
        place = [self.device.type, precision(self.device)]
        place.append(f"{ranks()} process{'es' if ranks() > 1 else ''}")
        if self.device.type == "cpu":
            threads = torch.get_num_threads()
            place.append(f"{threads} thread{'s' if threads > 1 else ''}")
            place.append(torch.backends.cpu.get_cpu_capability())
        return ", ".join([*place, f"PyTorch {torch.__version__}"])

    def _save_state(self) -> None:
        cuda = self.device.type == "cuda"
        state = {
            "progress": asdict(self.progress),
            "identity": self._identity,
            "place": self._place,
            "net": self.net.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rng": gather_objects(torch.get_rng_state()),  # for dropout, one per process
            "cuda_rng": gather_objects(torch.cuda.get_rng_state() if cuda else None),
        }
        if rank() == 0:
            write_dict(self.state_path, state)

    @by_first
    def _read_state(self) -> tuple[dict[str, Any], float] | None:
        """Read the state, and when it was saved; None if there is none.

        Raises UserError if it is damaged or of a different run.
        """
        if not self.state_path.exists():
            return None
        try:
            state = read_dict(self.state_path)
            before, now = dict(state["identity"]), self._identity
            progress = Progress(**state["progress"])
            done = progress.epoch + (progress.step > 0)
            lost = bool(progress.history) and not self.path.exists()
            changed = [
                f"{name if name in now else brief(name)} was {brief(before.get(name))}, "
                f"is {brief(now.get(name))}"
                for name in sorted(before | now)
                if before.get(name) != now.get(name) and name != "epochs"
            ]
            if done > self.total_epochs:
                changed.append(f"epochs is {self.total_epochs}, but {done} are done or started")
        except UserError as error:
            raise UserError(f"cannot resume: {error}; {START_ANEW}") from error
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"cannot resume: {self.state_path} is not a state of this version; {START_ANEW}"
            ) from error
        if changed:
            raise UserError(
                f"--resume continues {shown(self.state_path)} with the same hyperparameters only: "
                f"{'; '.join(changed[:20])}; {START_ANEW}"
            )
        if lost:
            raise UserError(
                f"cannot resume: {shown(self.path)} is missing: restore it, or start anew without "
                f"{shown(self.state_path)}: {START_ANEW}"
            )
        return state, self.state_path.stat().st_mtime

    def _load_state(self, state: dict[str, Any]) -> None:
        """Continue from a state. Raises ValueError, TypeError or LookupError if it does not fit.

        The state may come from an untrusted source, and fused optimizers write to their tensors
        without checks. So only numbers are copied, into tensors that this run has created.
        """
        self.progress = _progress(state["progress"], self.data)
        steps_done = self.progress.epoch * self.data.steps + self.progress.step
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            _load_optimizer(optimizer, saved, steps_done)
        _copy_numbers(self.net.state_dict(), state["net"], "the network")
        self.schedulers = self._schedules(steps_done)
        place, epochs = state["place"], state["identity"]["epochs"]
        if type(place) is not str or type(epochs) is not int:
            raise ValueError("place or epochs have the wrong type")
        if rank() < len(state["rng"]):
            torch.set_rng_state(state["rng"][rank()])
            if self.device.type == "cuda" and state["cuda_rng"][rank()] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"][rank()])
        if place != self._place:
            print(
                f"started on {place[:200] if place.isprintable() else brief(place)}, continuing on "
                f"{self._place}: the weights will not be the same bit for bit"
            )
        if epochs != self.total_epochs:
            print(
                f"started with {epochs} epochs, continuing with {self.total_epochs}: "
                "the learning rate follows the new schedule"
            )


def _progress(saved: dict[str, Any], batches: Batches) -> Progress:
    """The progress in a state. Raises ValueError or TypeError if it is impossible for `batches`."""
    now = Progress(**saved)
    rows = [Row(**row) for row in now.history]
    numbers = [
        (getattr(it, column.name), column.type)
        for it in (now, *rows)
        for column in fields(it)
        if column.name != "history"
    ]
    if not (
        all(type(number) is kind and math.isfinite(number) for number, kind in numbers)
        and 0 <= now.step < batches.steps
        and now.images == sum(map(batches.size, range(now.step)))
        and 0 <= now.hits <= now.images
        and now.seconds >= 0
        and len(rows) == now.epoch
        and all(row.epoch == epoch for epoch, row in enumerate(rows, 1))
        and all(0 <= row.train_accuracy <= 1 and 0 <= row.val_accuracy <= 1 for row in rows)
    ):
        raise ValueError("counts or history are not possible for this run")
    return now


def _load_optimizer(
    optimizer: torch.optim.Optimizer, saved: dict[str, Any], steps_done: int
) -> None:
    """Copy the numbers of a saved optimizer state, after `steps_done` steps, to a new optimizer.

    A step with zero gradients creates the tensors of the new optimizer first. Raises ValueError if
    the saved state has other settings, names, shapes or types, or impossible numbers.
    """
    for ours, theirs in zip(
        optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True
    ):
        # lr depends on the step, capturable on the device
        for name in ours.keys() & theirs.keys() - {"lr", "capturable"}:
            if type(ours[name]) is not type(theirs[name]) or ours[name] != theirs[name]:
                raise ValueError(f"the optimizer has a different {name}")
    if steps_done:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                weight.grad = torch.zeros_like(weight)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    kept = optimizer.state_dict()["state"]
    _copy_numbers(kept, saved["state"], "the optimizer")
    for entry in kept.values():
        if entry.get("step", steps_done) != steps_done:
            raise ValueError("the optimizer has a different number of steps")
        if "exp_avg_sq" in entry and (entry["exp_avg_sq"] < 0).any():
            raise ValueError("the optimizer has negative averages of squares")


def _copy_numbers(ours: Mapping[Any, Any], theirs: Any, whose: str) -> None:
    """Copy tensors to those with the same names.

    Raises ValueError unless names, shapes and types are the same and all numbers are finite.
    """
    if type(theirs) is not dict or theirs.keys() != ours.keys():
        raise ValueError(f"{whose} has different names")
    for name, tensor in ours.items():
        saved = theirs[name]
        if isinstance(tensor, Mapping):
            _copy_numbers(tensor, saved, whose)
        elif (
            not isinstance(saved, torch.Tensor)
            or (saved.shape, saved.dtype) != (tensor.shape, tensor.dtype)
            or not saved.isfinite().all()
        ):
            raise ValueError(f"{whose} has a {name} of different shape or type, or not finite")
        else:
            tensor.copy_(saved)
