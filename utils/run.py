"""The bookkeeping of a training run: epochs, steps, files, signals, and resuming where it stopped.

A script holds the learning itself:

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
import shlex
import signal
import sys
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
from utils.files import UserError, move, replacing, shown
from utils.optim import one_cycle, optimizers
from utils.safe_load import brief, read_dict

START_ANEW = "delete it, or leave --resume out"
CHECK_EVERY = 20  # steps between looks at the loss: each look makes a GPU wait


@dataclass
class Row:
    """What the history tells of an epoch, counted from 1."""

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
    """How far a run has come."""

    epoch: int = 0  # epochs done
    step: int = 0  # steps done of the epoch under way, with their sums:
    images: int = 0
    loss: float = 0.0
    hits: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)  # a Row an epoch

    @property
    def best(self) -> float:
        return max((row["val_accuracy"] for row in self.history), default=-1.0)


class Run:
    """A training run that leaves the epoch that is best by validation in `path`.

    Beside `path` it keeps, after every epoch, the history as NAME.csv and the last state as
    NAME.state.pth, from which `resume` continues to the same weights, bit for bit on the same CPU
    with the same PyTorch and number of threads; in another place it says that they will differ.
    Ctrl-C and SIGTERM save the state after the current step and exit with status 130 and 143. What
    an earlier run left is kept as NAME.previous.pth and NAME.previous.state.pth.

    With several processes each computes its share of every batch; their gradients are averaged,
    and batch norm keeps the statistics of the first one's share.

    Args:
        net: the network to train, on the device of `train`.
        path: the .pth file to write.
        train: the images to train on, on the device. Its labels only identify the run: `batches`
            takes what is learned.
        arch, stem: of the network, for its checkpoint; the selector has no stem.
        epochs: passes over the images.
        batch_size: images a step.
        optimizer: one of utils.optim.OPTIMIZERS.
        lr: highest learning rate, reached after `warmup` of the steps and left along a cosine.
        momentum: Nesterov's for "sgd" and "muon", the first of the betas for "adamw".
        weight_decay: on the weights of convolutions and linear layers, not on biases and norms.
        warmup: share of all steps, in [0, 1).
        seed: of the order of the images and their augmentation.
        augmentation: what happens to an image.
        views: number of augmented views of an image that the epochs show in turn; 0 for new ones.
        context: in which the images are shown, a key of utils.contexts.CONTEXTS.
        facts: more that identifies the run: checkpoints keep it, and resuming compares it.
        resume: continue the run that stopped, if there is one.
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
                "processes that share it"
            )
        self._model = net
        if ranks() > 1:
            torch.manual_seed(seed + rank())  # each its own dropout, from the same weights
            self._model = DistributedDataParallel(net)
        self.optimizers = optimizers(net, optimizer, lr, momentum, weight_decay)
        self.schedulers = self._schedules(steps_done=0)
        self.progress = Progress()
        self._begun = False
        self.state_path = path.with_suffix(".state.pth")

    def _schedules(self, steps_done: int) -> list[torch.optim.lr_scheduler.OneCycleLR]:
        steps = self.total_epochs * self.data.steps
        return [one_cycle(it, self.lr, self.warmup, steps, steps_done) for it in self.optimizers]

    def begin(self) -> None:
        """Be the run that --resume goes on with from here on: one that is new, or where it stopped.

        `epochs` does it; a script does it before, where there is work to do first. Raises UserError
        where a file cannot be written, or where the run is to resume from a state that cannot be
        continued.
        """
        if self._begun:
            return
        facts = self.hyperparameters | self.hyperparameters["augmentation"]
        del facts["augmentation"]
        told = "hyperparameters: " + ", ".join(f"{name}={value}" for name, value in facts.items())
        print(textwrap.fill(told, 98, subsequent_indent="  "))
        with StopRequest() as stop:
            if not (self.resume and self._continue()):
                self._begin()
            now = self.progress
            if stop.agreed() and now.epoch < self.total_epochs:
                stop.leave(f"epoch {now.epoch}, step {now.step}")
        self._begun = True

    def epochs(self) -> Iterator[int]:
        """Yield the epochs that are left, counted from 0. The script calls `end_epoch` in each.

        Raises UserError as `begin` does.
        """
        self.begin()
        with StopRequest() as self._stop:
            while self.progress.epoch < self.total_epochs:
                yield self.progress.epoch
                if self._stop.agreed() and self.progress.epoch < self.total_epochs:
                    self._stop.leave(f"epoch {self.progress.epoch}")

    def _continue(self) -> bool:
        """Go to where the last run stopped, if there was one."""
        state = self._read_state()
        if state is None:
            print(f"nothing to resume at {shown(self.state_path)}: starting with epoch 1")
            return False
        saved = datetime.fromtimestamp(self._saved_at())
        saved = f"{saved:%Y-%m-%d %H:%M}"
        try:
            self._load_state(state)
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            reason = brief(str(error))
            raise UserError(
                f"cannot resume: {self.state_path} does not fit, {reason}; {START_ANEW}"
            ) from error
        if self.progress.epoch == self.total_epochs:
            print(f"the run is finished: no epoch is left, as of {saved}")
        else:
            now = self.progress
            print(f"resuming after epoch {now.epoch}, step {now.step}, as saved on {saved}")
        return True

    def _begin(self) -> None:
        """Keep what an earlier run left, and save the state of this one, before epoch 1.

        The earlier state goes first, so that no kill lets --resume go on with it in silence. It
        comes back where this run cannot begin.
        """
        weights, state = (
            path.with_name(path.name.replace(".", ".previous.", 1))
            for path in (self.path, self.state_path)
        )
        moved = rank() == 0 and self.state_path.exists()
        if moved:
            move(self.state_path, state)
        try:
            if rank() == 0 and self.path.exists():
                with replacing(weights) as file:
                    file.write(self.path.read_bytes())
                print(f"what an earlier run left is kept: {shown(weights)}")
            self._save_state()
        except UserError:
            if moved:
                move(state, self.state_path)
            raise
        if moved:
            print(f"what an earlier run left is kept: {shown(state)}")

    def batches(
        self, *rows: torch.Tensor, clean: bool = False
    ) -> Iterator[tuple[torch.Tensor, ...]]:
        """Yield the rest of the epoch: normalized images (B, 3, 32, 32) and their B rows of each.

        The script calls `step` for each batch. Raises UserError where a loss is not finite.

        Args:
            rows: tensors (N, ...) on the device, such as labels: row i is of image i.
            clean: yield, as the last column, the same crops as they are in the context "clean".
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
        """What the network returns in training mode; with several processes, gradients are shared.

        Raises UserError where memory is short, with a smaller --batch-size.
        """
        with enough_memory(self.device, self.batch_size):
            return self._model(images)

    def step(self, loss: torch.Tensor, correct: torch.Tensor) -> None:
        """One step of the optimizer.

        Args:
            loss: scalar, the mean over this process's share of the batch.
            correct: bool (B,), the images of this share that the network is right on.
        """
        # Processes are averaged alike, though one may have an image more than another.
        share = ranks() * len(correct) / self.data.size(self.progress.step)
        with enough_memory(self.device, self.batch_size):
            (loss * share).backward()
        for optimizer, scheduler in zip(self.optimizers, self.schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
        self._waiting.append((loss.detach() * len(correct), correct.sum()))

    def _collect(self) -> None:
        """Add the losses and hits of the last steps to the sums, unless a loss is not finite."""
        now, waiting = self.progress, self._waiting
        losses, hits = (
            total(torch.stack(column)).tolist() for column in zip(*waiting, strict=True)
        )
        for step, loss in enumerate(losses, now.step - len(waiting) + 1):
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss is {loss} in epoch {now.epoch + 1}, step {step}: lower --lr, now "
                    f"{self.lr}; the files of epoch {now.epoch} are untouched"
                )
            now.loss += loss
        now.hits += sum(hits)
        waiting.clear()

    def end_epoch(self, val_loss: float, val_accuracy: float) -> None:
        """Write the history, the state and, where it is the best so far, the checkpoint.

        Args:
            val_loss: of the validation images.
            val_accuracy: top-1 on them, in [0, 1]: the measure of the best epoch.
        """
        now = self.progress
        improved = val_accuracy > now.best
        row = Row(
            epoch=now.epoch + 1,
            train_loss=now.loss / now.images,
            train_accuracy=now.hits / now.images,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            lr=self.schedulers[0].get_last_lr()[0],
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
        """What a run is: two that differ in any of it do not continue one another."""
        return {
            "arch": self.arch,
            "stem": self.stem,
            "classes": self.classes,
            **self.hyperparameters,
        }

    @property
    def _place(self) -> str:
        """Where a run computes: another place rounds differently."""
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
            "rng": gather_objects(torch.get_rng_state()),  # of dropout; of each process
            "cuda_rng": gather_objects(torch.cuda.get_rng_state() if cuda else None),
        }
        if rank() == 0:
            write_dict(self.state_path, state)

    @by_first
    def _saved_at(self) -> float:
        return self.state_path.stat().st_mtime

    @by_first
    def _read_state(self) -> dict[str, Any] | None:
        """The state beside `path`, None where there is none. UserError if it is another run's."""
        if not self.state_path.exists():
            return None
        try:
            state = read_dict(self.state_path)
            before, now = dict(state["identity"]), self._identity
            progress = Progress(**state["progress"])
            done = progress.epoch + (progress.step > 0)
            changed = [
                f"{name if name in now else brief(name)} was {brief(before.get(name))}, "
                f"is {brief(now.get(name))}"
                for name in sorted(before | now)
                if before.get(name) != now.get(name) and name != "epochs"
            ]
            if done > self.total_epochs:
                changed.append(f"epochs is {self.total_epochs}, {done} are done or under way")
        except UserError as error:
            raise UserError(f"cannot resume: {error}; {START_ANEW}") from error
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            raise UserError(
                f"cannot resume: {self.state_path} is no state of this version; {START_ANEW}"
            ) from error
        if changed:
            raise UserError(
                f"--resume continues {shown(self.state_path)} with the same hyperparameters only: "
                + "; ".join(changed[:20])
            )
        return state

    def _load_state(self, state: dict[str, Any]) -> None:
        """Go on from a state; one of ValueError, TypeError, LookupError if it cannot be this run's.

        A state may come from a stranger, and what the optimizers hold is written to without another
        look. So nothing of it is taken over but numbers, copied into what this run has made itself.
        """
        self.progress = _progress(state["progress"], self.data)
        steps_done = self.progress.epoch * self.data.steps + self.progress.step
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            _load_optimizer(optimizer, saved, steps_done)
        _copy_numbers(self.net.state_dict(), state["net"], "the network")
        self.schedulers = self._schedules(steps_done)
        place, epochs = state["place"], state["identity"]["epochs"]
        if type(place) is not str or type(epochs) is not int:
            raise ValueError("its place or epochs are of another type")
        if rank() < len(state["rng"]):
            torch.set_rng_state(state["rng"][rank()])
            if self.device.type == "cuda" and state["cuda_rng"][rank()] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"][rank()])
        if place != self._place:
            print(
                f"begun on {place[:200] if place.isprintable() else brief(place)}, going on on "
                f"{self._place}: the weights will not be the same bit for bit"
            )
        if epochs != self.total_epochs:
            print(
                f"begun for {epochs} epochs, now {self.total_epochs}: "
                "the learning rate goes on along the new schedule"
            )


def _progress(saved: dict[str, Any], batches: Batches) -> Progress:
    """The progress in a state; ValueError or TypeError where a run of `batches` cannot be there."""
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
        raise ValueError("its counts or its history cannot be those of this run")
    return now


def _load_optimizer(
    optimizer: torch.optim.Optimizer, saved: dict[str, Any], steps_done: int
) -> None:
    """Put the numbers that an optimizer saved after `steps_done` steps into a new one of its kind.

    A step makes what the new one keeps of each weight. Raises ValueError where the saved state has
    other settings, or tensors of other names, shapes or types, or numbers that no step leaves.
    """
    for ours, theirs in zip(
        optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True
    ):
        for name in ours.keys() & theirs.keys() - {"lr"}:  # which depends on the step
            if type(ours[name]) is not type(theirs[name]) or ours[name] != theirs[name]:
                raise ValueError(f"the optimizer's {name} is another")
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
            raise ValueError("the optimizer has done another number of steps")
        if "exp_avg_sq" in entry and (entry["exp_avg_sq"] < 0).any():
            raise ValueError("the optimizer's averages of squares are below 0")


def _copy_numbers(ours: Mapping[Any, Any], theirs: Any, whose: str) -> None:
    """Copy tensors into those of the same names; ValueError unless they are alike and finite."""
    if type(theirs) is not dict or theirs.keys() != ours.keys():
        raise ValueError(f"{whose} has other names")
    for name, tensor in ours.items():
        saved = theirs[name]
        if isinstance(tensor, Mapping):
            _copy_numbers(tensor, saved, whose)
        elif (
            not isinstance(saved, torch.Tensor)
            or (saved.shape, saved.dtype) != (tensor.shape, tensor.dtype)
            or not saved.isfinite().all()
        ):
            raise ValueError(f"{whose} has a {name} of another shape or type, or not finite")
        else:
            tensor.copy_(saved)


class StopRequest:
    """While entered, Ctrl-C and SIGTERM are noted; alone, a second one stops at once."""

    def __enter__(self) -> "StopRequest":
        self.signal = 0
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.signal = number
        if not dist.is_torchelastic_launched():  # torchrun passes on what the terminal sent, too
            self.__exit__()

    def agreed(self) -> bool:
        """Whether any process was asked to stop; all of them get the same answer."""
        if total(torch.tensor(self.signal > 0, dtype=torch.int)).item():
            self.signal = self.signal or signal.SIGTERM
        return self.signal > 0

    def leave(self, where: str) -> None:
        words = [word for word in sys.argv if word != "--resume"] + ["--resume"]
        launcher = "torchrun ..." if dist.is_torchelastic_launched() else "python"
        if rank() == 0:
            print(
                f"stopped after {where}; continue with: {launcher} {shlex.join(words)}",
                file=sys.stderr,
            )
        sys.exit(128 + self.signal)
