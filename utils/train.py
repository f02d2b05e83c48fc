"""The one training loop: a step, an epoch, a checkpoint, and back to where a run was stopped."""

import csv
import math
import pickle
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from utils.checkpoint import amend_checkpoint, load_network, save_checkpoint, write_dict
from utils.data import Augmentation, Batches, Split, normalize
from utils.device import autocast, to_device
from utils.files import UserError, replacing, shown

CHECK_EVERY = 20  # steps between looks at the loss: each look makes a GPU wait


@dataclass
class Recipe:
    """The hyperparameters of a run that the loop itself reads.

    epochs: passes over the training images.
    batch_size: images a step.
    lr: highest learning rate, reached after `warmup` of the steps and left along a cosine.
    momentum: of SGD, with Nesterov's correction.
    weight_decay: on the weights of convolutions and linear layers, not on biases and norms.
    warmup: share of all steps, in [0, 1).
    seed: of the initial weights, the order of the images and their augmentation.
    augmentation: crop, flip and cutout.
    """

    epochs: int
    batch_size: int
    lr: float
    momentum: float
    weight_decay: float
    warmup: float
    seed: int
    augmentation: Augmentation


# ------------------------------------------------------------------ evaluation


@torch.inference_mode()
def predict(
    net: nn.Module, images: torch.Tensor, title: str | None = None, batch_size: int = 500
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """What `net` in eval mode returns for uint8 images (N, 32, 32, 3), on their device.

    Logits (N, classes) of a classifier, (N,) of the selector, as float32; logits and choice of a
    MultiStudent. `title` names a progress bar, gone when it is done.
    """
    net.eval()
    batches = []
    with tqdm(total=len(images), desc=title, unit="img", leave=False, disable=title is None) as bar:
        for batch in images.split(batch_size):
            with autocast(images.device):
                outputs = net(normalize(batch))
            batches.append(outputs if isinstance(outputs, tuple) else (outputs,))
            bar.update(len(batch))
    columns = [torch.cat(column) for column in zip(*batches, strict=True)]
    columns[0] = columns[0].float()
    return tuple(columns) if len(columns) > 1 else columns[0]


def top1(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Top-1 accuracy in [0, 1] of logits (N, classes) against labels (N,)."""
    return (logits.argmax(dim=1) == labels).double().mean().item()


def classification(val: Split) -> dict[str, Any]:
    """What a Trainer needs to watch a network that returns logits (N, classes)."""
    return {
        "correct": lambda logits, labels: logits.argmax(dim=1) == labels,
        "val_images": val.images,
        "validate": lambda logits: (
            F.cross_entropy(logits, val.labels).item(),
            top1(logits, val.labels),
        ),
    }


def report_test_accuracy(path: Path, test: Split) -> None:
    """Measure the weights in `path`, as saved, on the test images, and note it in the file."""
    net, checkpoint = load_network(path)
    logits = predict(to_device(net, test.images.device), test.images, "test")
    accuracy = top1(logits, test.labels)
    amend_checkpoint(path, test_accuracy=accuracy)
    print(
        f"\nthe best epoch, {checkpoint['epoch']}: top-1 {checkpoint['val_accuracy']:.2%} on the "
        f"validation images, {accuracy:.2%} on {len(test):,} test images; wrote {shown(path)}"
    )


# ------------------------------------------------------------------ the loop


@dataclass
class Progress:
    """How far a run has come."""

    epoch: int = 0  # epochs done
    step: int = 0  # steps done of the epoch under way, with their sums:
    images: int = 0
    loss: float = 0.0
    hits: int = 0
    seconds: float = 0.0
    history: list[dict[str, float]] = field(default_factory=list)  # a row an epoch

    @property
    def best(self) -> float:
        return max((row["val_accuracy"] for row in self.history), default=-1.0)


class Trainer:
    """Trains a network and leaves the epoch that is best by validation in `path`.

    Beside `path` it keeps, after every epoch, the history as NAME.csv and the last state as
    NAME.state.pth, from which --resume goes on to the same weights, bit for bit on the CPU. Ctrl-C
    and SIGTERM save the state after the step under way and exit with status 130 and 143. What an
    earlier run left at `path` is kept as NAME.previous.pth.

    Args:
        net: on the device that trains.
        path: where the best checkpoint goes, as `save_checkpoint` writes it.
        arch, stem: what the checkpoint says of the network.
        recipe: the hyperparameters that the loop reads.
        extra: those that only the script reads; they are saved too.
        images, targets: uint8 (N, 32, 32, 3) and (N, ...), on the device.
        loss: (normalized images, outputs, targets) -> scalar.
        correct: (outputs, targets) -> bool (B,), for the top-1 accuracy shown while training.
        val_images: uint8 (V, 32, 32, 3), on the device.
        validate: outputs for `val_images` -> (loss, accuracy in [0, 1]).
    """

    def __init__(
        self,
        net: nn.Module,
        path: Path,
        arch: str,
        stem: str | None,
        recipe: Recipe,
        extra: Mapping[str, Any],
        images: torch.Tensor,
        targets: torch.Tensor,
        loss: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
        correct: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        val_images: torch.Tensor,
        validate: Callable[[torch.Tensor], tuple[float, float]],
    ) -> None:
        self.net, self.path, self.arch, self.stem, self.recipe = net, path, arch, stem, recipe
        self.loss, self.correct = loss, correct
        self.val_images, self.validate = val_images, validate
        self.hyperparameters = {**asdict(recipe), "images": len(images), **extra}
        self.device = images.device
        self.batches = Batches(images, targets, recipe.batch_size, recipe.seed, recipe.augmentation)
        self.optimizer = torch.optim.SGD(
            _parameter_groups(net, recipe.weight_decay),
            lr=recipe.lr,
            momentum=recipe.momentum,
            nesterov=recipe.momentum > 0,
        )
        total_steps = recipe.epochs * self.batches.steps + 1  # it is stepped after the last, too
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=recipe.lr,
            total_steps=total_steps,
            pct_start=max(recipe.warmup, 1.5 / total_steps),  # a warm-up of 0 steps divides by 0
            cycle_momentum=False,
        )
        self.progress = Progress()
        self.state_path = path.with_suffix(".state.pth")

    def fit(self, resume: bool = False) -> None:
        """Run all epochs, or with `resume` those that the last run left.

        Raises UserError where the loss is not finite, where a file cannot be written, or where
        `resume` meets a state of other hyperparameters.
        """
        if resume and self.state_path.exists():
            self._load_state()
            if self.progress.epoch == self.recipe.epochs:
                print("the run is finished: no epoch is left")
            else:
                print(f"resuming after epoch {self.progress.epoch}, step {self.progress.step}")
        elif resume:
            print(f"nothing to resume at {shown(self.state_path)}: starting with epoch 1")
        elif self.state_path.exists():
            print(f"{shown(self.state_path)} holds an earlier run: --resume would continue it")
        with _StopRequest() as stop:
            while self.progress.epoch < self.recipe.epochs:
                self._train_epoch(stop)
                self._end_epoch()
                if stop.signal and self.progress.epoch < self.recipe.epochs:
                    stop.leave(f"epoch {self.progress.epoch}")

    def _train_epoch(self, stop: "_StopRequest") -> None:
        now, total = self.progress, len(self.batches.images)
        started = time.perf_counter() - now.seconds
        waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.net.train()
        with tqdm(
            total=total, initial=now.images, unit="img", unit_scale=True,
            desc=f"epoch {now.epoch + 1}/{self.recipe.epochs}",
        ) as bar:  # fmt: skip
            for images, targets in self.batches.epoch(now.epoch, start=now.step):
                with autocast(self.device):
                    outputs = self.net(images)
                    loss = self.loss(images, outputs, targets)
                loss.backward()
                self.optimizer.step()
                self.scheduler.step()
                self.optimizer.zero_grad(set_to_none=True)
                now.step += 1
                now.images += len(targets)
                waiting.append(
                    (loss.detach() * len(targets), self.correct(outputs.detach(), targets).sum())
                )
                stopping = stop.signal and now.step < self.batches.steps
                if len(waiting) == CHECK_EVERY or now.step == self.batches.steps or stopping:
                    self._collect(waiting)
                    bar.set_postfix_str(
                        f"loss {now.loss / now.images:.3f}, top-1 {now.hits / now.images:.1%}",
                        refresh=False,
                    )
                bar.update(len(targets))
                now.seconds = time.perf_counter() - started
                if stopping:
                    bar.close()
                    self._save_state()
                    stop.leave(f"epoch {now.epoch + 1}, step {now.step} of {self.batches.steps}")

    def _collect(self, waiting: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Add the losses and hits of the last steps to the sums, unless one is not finite."""
        now = self.progress
        losses, hits = (torch.stack(column).tolist() for column in zip(*waiting, strict=True))
        for step, loss in enumerate(losses, now.step - len(waiting) + 1):
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss is {loss} in epoch {now.epoch + 1}, step {step}: lower --lr, now "
                    f"{self.recipe.lr}; the files of epoch {now.epoch} are untouched"
                )
            now.loss += loss
        now.hits += sum(hits)
        waiting.clear()

    def _end_epoch(self) -> None:
        now = self.progress
        val_loss, val_accuracy = self.validate(predict(self.net, self.val_images, "validation"))
        improved = val_accuracy > now.best
        now.history.append(
            {
                "epoch": now.epoch + 1,
                "train_loss": now.loss / now.images,
                "train_accuracy": now.hits / now.images,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "lr": self.scheduler.get_last_lr()[0],
                "seconds": round(now.seconds, 1),
                "images_per_second": round(now.images / now.seconds, 1),
            }
        )
        now.epoch += 1
        now.step = now.images = now.hits = 0
        now.loss = now.seconds = 0.0
        if improved:
            if now.epoch == 1 and self.path.exists():
                with replacing(self.path.with_suffix(".previous.pth")) as file:
                    file.write(self.path.read_bytes())
            save_checkpoint(
                self.path, self.net, self.arch, self.stem, self.hyperparameters, now.epoch,
                val_accuracy,
            )  # fmt: skip
        with replacing(self.path.with_suffix(".csv"), binary=False) as file:
            writer = csv.DictWriter(file, now.history[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(now.history)
        self._save_state()
        print(
            f"  validation: loss {val_loss:.3f}, top-1 {val_accuracy:.2%}"
            + (f", the best so far: written to {shown(self.path)}" if improved else "")
        )

    def _save_state(self) -> None:
        state = {
            "progress": asdict(self.progress),
            "hyperparameters": self.hyperparameters,
            "net": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "rng": torch.get_rng_state(),  # of dropout, on the CPU
            "cuda_rng": torch.cuda.get_rng_state() if self.device.type == "cuda" else None,
        }
        write_dict(self.state_path, state)

    def _load_state(self) -> None:
        try:
            state = torch.load(self.state_path, map_location="cpu", weights_only=True)
            saved = state["hyperparameters"]
        except (RuntimeError, EOFError, KeyError, OSError, pickle.UnpicklingError) as error:
            raise UserError(
                f"cannot resume from {self.state_path} ({error}): delete it, or leave --resume out"
            ) from error
        changed = [
            f"{name} was {saved.get(name)}, is {self.hyperparameters.get(name)}"
            for name in sorted(saved | self.hyperparameters)
            if saved.get(name) != self.hyperparameters.get(name)
        ]
        if changed:
            raise UserError(
                f"--resume continues {shown(self.state_path)} with the same hyperparameters only: "
                + "; ".join(changed)
            )
        self.progress = Progress(**state["progress"])
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["rng"])
        if self.device.type == "cuda" and state["cuda_rng"] is not None:
            torch.cuda.set_rng_state(state["cuda_rng"])


def _parameter_groups(net: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    weights = [p for p in net.parameters() if p.ndim > 1]
    biases_and_norms = [p for p in net.parameters() if p.ndim <= 1]
    return [
        {"params": weights, "weight_decay": weight_decay},
        {"params": biases_and_norms, "weight_decay": 0.0},
    ]


class _StopRequest:
    """While entered, Ctrl-C and SIGTERM are noted in `signal`; a second one stops at once."""

    def __enter__(self) -> "_StopRequest":
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
        self.__exit__()

    def leave(self, where: str) -> None:
        words = [word for word in sys.argv if word != "--resume"] + ["--resume"]
        print(f"stopped after {where}; continue with: python {shlex.join(words)}", file=sys.stderr)
        sys.exit(128 + self.signal)
