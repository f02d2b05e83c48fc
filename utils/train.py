"""The one training loop: a step, an epoch, a checkpoint, and back to where a run was stopped."""

import csv
import math
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from utils.checkpoint import amend_checkpoint, load_network, save_checkpoint, write_dict
from utils.data import Augmentation, Batches, Split, fingerprint, normalize
from utils.device import autocast, enough_memory, for_inference, keep_freed_memory, precision
from utils.distributed import from_first, gather, gather_objects, rank, ranks, total
from utils.files import UserError, replacing, shown
from utils.muon import Muon
from utils.safe_load import brief, read_dict

START_ANEW = "delete it, or leave --resume out"
OPTIMIZERS = ("muon", "adamw", "sgd")
CHECK_EVERY = 20  # steps between looks at the loss: each look makes a GPU wait


@dataclass
class Recipe:
    """The hyperparameters of a run that the loop itself reads.

    epochs: passes over the training images.
    batch_size: images a step.
    lr: highest learning rate, reached after `warmup` of the steps and left along a cosine.
    optimizer: one of OPTIMIZERS; "muon" is for the weights of convolutions but the first, with
        "adamw" for all else.
    momentum: Nesterov's for "sgd" and "muon", the first of the betas for "adamw".
    weight_decay: on the weights of convolutions and linear layers, not on biases and norms.
    warmup: share of all steps, in [0, 1).
    seed: of the initial weights, the order of the images and their augmentation.
    augmentation: crop, flip and cutout.
    """

    epochs: int
    batch_size: int
    lr: float
    optimizer: str
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
    MultiStudent. `title` names a progress bar, gone when it is done. Of several processes each
    answers for its share of the images, and all get the whole. Raises UserError where a logit is
    not finite.
    """
    net.eval()
    share = images.tensor_split(ranks())[rank()]
    batches = []
    with (
        tqdm(
            total=len(share), desc=title, unit="img", leave=False,
            disable=title is None or rank() > 0,
        ) as bar,
        enough_memory(images.device, batch_size),
    ):  # fmt: skip
        for batch in share.split(batch_size):
            with autocast(images.device):
                outputs = net(normalize(batch))
            batches.append(outputs if isinstance(outputs, tuple) else (outputs,))
            bar.update(len(batch))
    columns = [gather(torch.cat(column), len(images)) for column in zip(*batches, strict=True)]
    columns[0] = columns[0].float()
    if wrong := (~columns[0].isfinite()).reshape(len(images), -1).any(dim=1).sum().item():
        raise UserError(
            f"{title or type(net).__name__}: the logits of {wrong} of {len(images)} images are not "
            "finite; train the network anew, with a lower --lr"
        )
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
    net, checkpoint = from_first(lambda: load_network(path))
    logits = predict(for_inference(net, test.images.device), test.images, "test")
    accuracy = top1(logits, test.labels)
    if rank() == 0:
        amend_checkpoint(path, test_accuracy=accuracy)
    print(
        f"\nthe best epoch, {checkpoint['epoch']}: top-1 {checkpoint['val_accuracy']:.2%} on the "
        f"validation images, {accuracy:.2%} on {len(test):,} test images; wrote {shown(path)}"
    )


# ------------------------------------------------------------------ the loop


def data_facts(images: torch.Tensor, targets: torch.Tensor) -> str:
    """What a checkpoint says of the images that it was trained on."""
    return f"{len(images)} images, SHA-256 {fingerprint([images, targets])}"


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
    earlier run left is kept as NAME.previous.pth and NAME.previous.state.pth.

    Of several processes each computes its share of every batch; their gradients are averaged, and
    batch norm keeps the statistics of the first one's share.

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
        self.hyperparameters = {**asdict(recipe), "data": data_facts(images, targets), **extra}
        self.device = images.device
        if self.device.type == "cpu":
            keep_freed_memory()
        self.batches = Batches(
            images, targets, recipe.batch_size, recipe.seed, recipe.augmentation, (rank(), ranks())
        )
        if self.batches.size(self.batches.steps - 1) < ranks():
            raise UserError(
                f"--batch-size {recipe.batch_size}: a batch has fewer images than the {ranks()} "
                "processes that share it"
            )
        self.model = net
        if ranks() > 1:
            torch.manual_seed(recipe.seed + rank())  # each its own dropout, from the same weights
            self.model = DistributedDataParallel(net)
        self.optimizers = _optimizers(net, recipe)
        self.schedulers = self._schedules(steps_done=0)
        self.progress = Progress()
        self.state_path = path.with_suffix(".state.pth")

    def _schedules(self, steps_done: int) -> list[torch.optim.lr_scheduler.OneCycleLR]:
        total_steps = self.recipe.epochs * self.batches.steps + 1  # stepped after the last, too
        return [
            torch.optim.lr_scheduler.OneCycleLR(
                optimizer,
                max_lr=self.recipe.lr,
                total_steps=total_steps,
                pct_start=max(self.recipe.warmup, 1.5 / total_steps),  # not 0: it divides by them
                cycle_momentum=False,
                last_epoch=steps_done - 1,
            )
            for optimizer in self.optimizers
        ]

    def fit(self, resume: bool = False) -> None:
        """Run all epochs, or with `resume` those that the last run left.

        Raises UserError where the loss is not finite, where memory is short, where a file cannot be
        written, or where `resume` meets a state that cannot be continued.
        """
        with StopRequest() as stop:
            if not (resume and self._continue()):
                self._begin()
            while self.progress.epoch < self.recipe.epochs:
                with enough_memory(self.device, self.recipe.batch_size):
                    self._train_epoch(stop)
                self._end_epoch()
                if stop.agreed() and self.progress.epoch < self.recipe.epochs:
                    stop.leave(f"epoch {self.progress.epoch}")

    def _continue(self) -> bool:
        """Go to where the last run stopped, if there was one."""
        state = from_first(self._read_state)
        if state is None:
            print(f"nothing to resume at {shown(self.state_path)}: starting with epoch 1")
            return False
        try:
            self._load_state(state)
        except (RuntimeError, LookupError, TypeError, ValueError) as error:
            reason = brief(str(error))
            raise UserError(
                f"cannot resume: {self.state_path} does not fit, {reason}; {START_ANEW}"
            ) from error
        if self.progress.epoch == self.recipe.epochs:
            print("the run is finished: no epoch is left")
        else:
            print(f"resuming after epoch {self.progress.epoch}, step {self.progress.step}")
        return True

    def _begin(self) -> None:
        """Keep what an earlier run left, and see that a state can be written, before epoch 1."""
        for path in (self.path, self.state_path):
            if rank() == 0 and path.exists():
                kept = path.with_name(path.name.replace(".", ".previous.", 1))
                with replacing(kept) as file:
                    file.write(path.read_bytes())
                print(f"what an earlier run left is kept: {shown(kept)}")
        self._save_state()

    def _train_epoch(self, stop: "StopRequest") -> None:
        now = self.progress
        started = time.perf_counter() - now.seconds
        waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.net.train()
        with tqdm(
            total=len(self.batches.images), initial=now.images, unit="img", unit_scale=True,
            desc=f"epoch {now.epoch + 1}/{self.recipe.epochs}", disable=rank() > 0,
        ) as bar:  # fmt: skip
            for images, targets in self.batches.epoch(now.epoch, start=now.step):
                size = self.batches.size(now.step)
                waiting.append(self.step(images, targets, size))
                now.step += 1
                now.images += size
                stopping = stop.agreed() and now.step < self.batches.steps
                if len(waiting) == CHECK_EVERY or now.step == self.batches.steps or stopping:
                    self._collect(waiting)
                    bar.set_postfix_str(
                        f"loss {now.loss / now.images:.3f}, top-1 {now.hits / now.images:.1%}",
                        refresh=False,
                    )
                bar.update(size)
                now.seconds = time.perf_counter() - started
                if stopping:
                    bar.close()
                    self._save_state()
                    stop.leave(f"epoch {now.epoch + 1}, step {now.step} of {self.batches.steps}")

    def step(
        self, images: torch.Tensor, targets: torch.Tensor, size: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step of the optimizer; the sum of the losses and the number of hits, as tensors.

        Args:
            images, targets: this process's share of a batch, as `Batches` yields it.
            size: images in the batch of all processes.
        """
        with autocast(self.device):
            outputs = self.model(images)
            loss = self.loss(images, outputs, targets)
        # Processes are averaged alike, though one may have an image more than another.
        (loss * (ranks() * len(targets) / size)).backward()
        for optimizer, scheduler in zip(self.optimizers, self.schedulers, strict=True):
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach() * len(targets), self.correct(outputs.detach(), targets).sum()

    def _collect(self, waiting: list[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Add the losses and hits of the last steps to the sums, unless one is not finite."""
        now = self.progress
        losses, hits = (
            total(torch.stack(column)).tolist() for column in zip(*waiting, strict=True)
        )
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
        if ranks() > 1:
            for statistics in self.net.buffers():
                dist.broadcast(statistics, src=0)
        outputs = predict(self.net, self.val_images, "validation", self.recipe.batch_size)
        val_loss, val_accuracy = self.validate(outputs)
        improved = val_accuracy > now.best
        now.history.append(
            {
                "epoch": now.epoch + 1,
                "train_loss": now.loss / now.images,
                "train_accuracy": now.hits / now.images,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "lr": self.schedulers[0].get_last_lr()[0],
                "seconds": round(now.seconds, 1),
                "images_per_second": round(now.images / now.seconds, 1),
            }
        )
        now.epoch += 1
        now.step = now.images = now.hits = 0
        now.loss = now.seconds = 0.0
        if improved and rank() == 0:
            save_checkpoint(
                self.path, self.net, self.arch, self.stem, self.hyperparameters, now.epoch,
                val_accuracy,
            )  # fmt: skip
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
        return {"arch": self.arch, "stem": self.stem, **self.hyperparameters}

    @property
    def _place(self) -> str:
        """Where a run computes: another place rounds differently."""
        processes = f"{ranks()} process{'es' if ranks() > 1 else ''}"
        return f"{self.device.type}, {precision(self.device)}, {processes}"

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

    def _read_state(self) -> dict[str, Any] | None:
        """The state beside `path`, None where there is none. UserError if it is another run's."""
        if not self.state_path.exists():
            return None
        try:
            state = read_dict(self.state_path)
            before, now = dict(state["identity"]), self._identity
            progress = Progress(**state["progress"])
            done = progress.epoch + (progress.step > 0)
        except UserError as error:
            raise UserError(f"cannot resume: {error}; {START_ANEW}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"cannot resume: {self.state_path} is no state of this version; {START_ANEW}"
            ) from error
        changed = [
            f"{name} was {brief(before.get(name))}, is {brief(now.get(name))}"
            for name in sorted(before | now)
            if before.get(name) != now.get(name) and name != "epochs"
        ]
        if done > self.recipe.epochs:
            changed.append(f"epochs is {self.recipe.epochs}, {done} are done or under way")
        if changed:
            raise UserError(
                f"--resume continues {shown(self.state_path)} with the same hyperparameters only: "
                + "; ".join(changed)
            )
        return state

    def _load_state(self, state: dict[str, Any]) -> None:
        if state["place"] != self._place:
            print(
                f"begun on {state['place']}, going on on {self._place}: "
                "the weights will not be the same bit for bit"
            )
        if (epochs := state["identity"]["epochs"]) != self.recipe.epochs:
            print(
                f"begun for {epochs} epochs, now {self.recipe.epochs}: "
                "the learning rate goes on along the new schedule"
            )
        self.progress = Progress(**state["progress"])
        self.net.load_state_dict(state["net"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.schedulers = self._schedules(
            self.progress.epoch * self.batches.steps + self.progress.step
        )
        if rank() < len(state["rng"]):
            torch.set_rng_state(state["rng"][rank()])
            if self.device.type == "cuda" and state["cuda_rng"][rank()] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"][rank()])


def _optimizers(net: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    weights = [p for p in net.parameters() if p.ndim > 1]
    others = [p for p in net.parameters() if p.ndim <= 1]  # biases and norms, which do not decay
    optimizers: list[torch.optim.Optimizer] = []
    if recipe.optimizer == "muon":
        inner = [p for p in weights if p.ndim == 4][1:]
        optimizers.append(Muon(inner, recipe.lr, recipe.momentum, recipe.weight_decay))
        chosen = {id(p) for p in inner}
        weights = [p for p in weights if id(p) not in chosen]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    if recipe.optimizer == "sgd":
        return [
            torch.optim.SGD(
                groups, recipe.lr, recipe.momentum, nesterov=recipe.momentum > 0, fused=True
            )
        ]
    for group in groups:  # each its own betas: read_dict refuses what stands in a state twice
        group["betas"] = (recipe.momentum, 0.999)
    return [*optimizers, torch.optim.AdamW(groups, recipe.lr, fused=True)]


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
