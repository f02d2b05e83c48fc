"""Logits of networks for many images, their accuracy, and stored logits of a teacher."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from models import STEMS, network
from utils.augment import Batches
from utils.checkpoint import amend_checkpoint, elsewhere, fingerprint_of, load_network
from utils.data import Split, fingerprint, normalize
from utils.device import autocast, enough_memory, for_inference
from utils.distributed import by_first, gather, rank, ranks
from utils.files import UserError, replacing, shown
from utils.method import best_temperature, share
from utils.safe_load import read_arrays


@torch.inference_mode()
def predict(
    net: nn.Module, images: torch.Tensor, title: str | None = None, batch_size: int = 500
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Return the output of `net` in eval mode for all images.

    With several processes, each computes its share of the images, and all return the whole result.

    Args:
        net: on the device of the images.
        images: uint8 (N, 32, 32, 3).
        title: of a progress bar, which disappears at the end. None: no bar.
        batch_size: images per step.

    Returns:
        float32 logits: (N, classes) of a classifier, (N,) of the selector. For a MultiStudent or
        Cascade, a tuple of logits and int64 (N,).

    Raises:
        UserError: a logit is not finite, or memory is too small.
    """
    net.eval()
    mine = images.tensor_split(ranks())[rank()]
    batches = []
    with (
        tqdm(
            total=len(mine),
            desc=title,
            unit="img",
            leave=False,
            disable=title is None or rank() > 0,
        ) as bar,
        enough_memory(images.device, batch_size),
    ):
        for batch in mine.split(batch_size):
            with autocast(images.device):
                outputs = net(normalize(batch))
            batches.append(outputs if isinstance(outputs, tuple) else (outputs,))
            bar.update(len(batch))
    columns = [gather(torch.cat(column), len(images)) for column in zip(*batches, strict=True)]
    columns[0] = columns[0].float()
    if wrong := (~columns[0].isfinite()).reshape(len(images), -1).any(dim=1).sum().item():
        raise UserError(
            f"{title or type(net).__name__}: the logits of {wrong} of {len(images)} images are not "
            "finite; train the network again with a lower --lr"
        )
    return tuple(columns) if len(columns) > 1 else columns[0]


def top1(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Top-1 accuracy in [0, 1] of logits (N, classes) against labels (N,)."""
    return share(logits.argmax(dim=1) == labels)


def score(net: nn.Module, split: Split, batch_size: int = 500) -> tuple[float, float]:
    """Cross-entropy and top-1 accuracy in [0, 1] of a classifier on a split."""
    logits = predict(net, split.images, "validation", batch_size)
    return F.cross_entropy(logits, split.labels).item(), top1(logits, split.labels)


def report_accuracy(path: Path, val: Split, test: Split) -> str:
    """Evaluate the checkpoint at `path` and add the results to it.

    The results are the top-1 accuracy on the test images, and the temperature for calibrated
    probabilities, chosen on the validation images. Returns the fingerprint of the weights.
    """
    net, checkpoint = load_network(path)
    ready = for_inference(net, test.images.device)
    temperature = best_temperature(predict(ready, val.images, "validation"), val.labels)
    accuracy = top1(predict(ready, test.images, "test"), test.labels)
    amend_checkpoint(path, test_accuracy=accuracy, temperature=temperature)
    print(
        f"\nbest epoch {checkpoint['epoch']}: top-1 {checkpoint['val_accuracy']:.2%} on the "
        f"validation images, {accuracy:.2%} on {len(test):,} test images; temperature "
        f"{temperature:.2f}; wrote {shown(path)}"
    )
    return fingerprint_of(net)


def with_its_stem(net: nn.Module, val: Split, path: Path) -> nn.Module:
    """Choose the stem of a ResNet-50 from another project, whose weights `net` has.

    The weights of both stems have the same shapes. The stem with the higher accuracy on `val` is
    used; a line with both accuracies is printed. `path` is named in it.
    """
    nets = {stem: network("resnet50", stem, net.fc.out_features) for stem in STEMS}
    accuracy = {}
    for stem, each in nets.items():
        each.load_state_dict(net.state_dict())
        logits = predict(for_inference(each, val.images.device), val.images, f"teacher, {stem}")
        accuracy[stem] = top1(logits, val.labels)
    found = max(STEMS, key=accuracy.get)
    told = ", ".join(f"{accuracy[stem]:.1%} with {stem}" for stem in STEMS)
    print(f"{elsewhere(path, found)}; top-1 on {len(val)} validation images: {told}")
    return nets[found]


class TeacherLogits:
    """A teacher's logits for each view of the training images, computed once and stored.

    Fast knowledge distillation (Shen and Xing, ECCV 2022). Each view has a file in half precision,
    FOLDER/KEY-NN.npz, written when an epoch first needs it. KEY is a fingerprint of the teacher,
    the images and the augmentation. So students and runs share files, and files that do not match
    are not read. A damaged file is computed again. Files of other teachers are deleted.

    Args:
        teacher: normalized images (B, 3, 32, 32) -> logits (B, classes), from `for_inference`.
        taught_by: the fingerprint of its weights.
        batches: the training images and their views.
        folder: where the files are written.
        pause: called before each part of at most 500 images; it may end the process.
    """

    def __init__(
        self,
        teacher: nn.Module,
        taught_by: str,
        batches: Batches,
        folder: Path,
        pause: Callable[[], None] = lambda: None,
    ) -> None:
        self.teacher, self.taught_by = teacher, taught_by
        self.batches, self.folder, self.pause = batches, folder, pause
        some = torch.arange(min(64, len(batches.images)))
        self.key = f"{taught_by}-{fingerprint([batches.images, batches.view(0, some)])}"

    def epoch(self, epoch: int) -> torch.Tensor:
        """Logits for the view of `epoch`: float16 (N, classes) on the images' device.

        Row i belongs to image i. Raises UserError if a logit is not finite or a file cannot be
        written.
        """
        view = epoch % self.batches.views
        path = self.folder / f"{self.key}-{view:02}.npz"
        logits = self._read(path)
        if logits is None:
            logits = self._ask(view)
            if rank() == 0:
                self._write(path, logits)
        return logits.to(self.batches.images.device)

    @torch.inference_mode()
    def _ask(self, view: int) -> torch.Tensor:
        images, answers = self.batches.images, []
        mine = torch.arange(len(images)).tensor_split(ranks())[rank()]
        # Every process needs the same number of parts, because `pause` waits for all processes.
        parts = mine.tensor_split(math.ceil(len(images) / ranks() / 500))
        with tqdm(
            total=len(images),
            unit="img",
            unit_scale=True,
            leave=False,
            disable=rank() > 0,
            desc=f"teacher, view {view + 1}/{self.batches.views}",
        ) as bar:
            for places in parts:
                self.pause()
                with autocast(images.device):
                    answers.append(self.teacher(self.batches.view(view, places)).half())
                bar.update(len(places) * ranks())
        logits = gather(torch.cat(answers), len(images))
        if not logits.isfinite().all():
            raise UserError("the teacher's logits are not finite in half precision: train it again")
        return logits

    @by_first
    def _read(self, path: Path) -> torch.Tensor | None:
        if not path.exists():
            return None
        try:
            logits = torch.from_numpy(read_arrays(path, ["logits"])["logits"])
            if logits.dtype != torch.float16 or len(logits) != len(self.batches.images):
                raise ValueError("the logits have another shape or type")
            if not logits.isfinite().all():
                raise ValueError("a logit is not finite")
            return logits
        except (UserError, LookupError, TypeError, ValueError) as error:
            print(f"{shown(path)} is damaged ({error}): computing the teacher's logits again")
            return None

    def _write(self, path: Path, logits: torch.Tensor) -> None:
        for stale in path.parent.glob("*.npz*"):
            if not stale.name.startswith(self.taught_by):
                stale.unlink(missing_ok=True)
        with replacing(path) as file:
            np.savez(file, logits=logits.cpu().numpy())
