"""Logits of networks for many images, their accuracy, and stored logits of a teacher."""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from models import STEMS, network
from utils import checkpoint
from utils.augment import Batches
from utils.checkpoint import amend_checkpoint, check_data, elsewhere, load_network
from utils.data import CIFAR10, Split, fingerprint, normalize
from utils.device import autocast, for_inference, to_device
from utils.distributed import by_first, gather, rank, ranks
from utils.files import UserError, replacing, shown, try_folder
from utils.method import best_temperature, share
from utils.safe_load import read_arrays, read_logits


@torch.inference_mode()
def predict(
    net: nn.Module, images: Split | torch.Tensor, title: str | None = None, batch_size: int = 500
) -> torch.Tensor | tuple[torch.Tensor, ...]:
    """Return the output of `net` in eval mode for all images.

    float32 logits: (N, classes) of a classifier, (N, students) of the selector; for a system such
    as MultiStudent or Cascade, a tuple of logits and int64 (N,). With several processes, each
    computes its share, and all return the whole result. Raises UserError if a logit is not finite.

    Args:
        net: on the device of the images.
        images: a split, or uint8 images (N, H, W, 3) that are normalized like those of CIFAR-10.
        title: of a progress bar, which disappears at the end. None: no bar.
        batch_size: images per step.
    """
    net.eval()
    data = CIFAR10
    if isinstance(images, Split):
        images, data = images.images, images.data
    mine = images.tensor_split(ranks())[rank()]
    batches = []
    with tqdm(
        total=len(mine), desc=title, unit="img", leave=False, disable=title is None or rank() > 0
    ) as bar:
        for batch in mine.split(batch_size):
            with autocast(images.device):
                outputs = net(normalize(batch, data))
            batches.append(outputs if isinstance(outputs, tuple) else (outputs,))
            bar.update(len(batch))
    columns = [gather(torch.cat(column)) for column in zip(*batches, strict=True)]
    columns[0] = columns[0].float()
    if wrong := (~columns[0].isfinite()).any(dim=1).sum().item():
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
    logits = predict(net, split, "validation", batch_size)
    return F.cross_entropy(logits, split.labels).item(), top1(logits, split.labels)


def report_accuracy(path: Path, val: Split, test: Split) -> None:
    """Evaluate the checkpoint at `path` and add the results to it.

    The results are the top-1 accuracy on the test images, and the temperature for calibrated
    probabilities, chosen on the validation images.
    """
    net, facts = load_network(path)
    ready = for_inference(net, test.images.device)
    temperature = best_temperature(predict(ready, val, "validation"), val.labels)
    accuracy = top1(predict(ready, test, "test"), test.labels)
    amend_checkpoint(path, test_accuracy=accuracy, temperature=temperature)
    print(
        f"\nbest epoch {facts['epoch']}: top-1 {facts['val_accuracy']:.2%} on the "
        f"validation images, {accuracy:.2%} on {len(test):,} test images; temperature "
        f"{temperature:.2f}; wrote {shown(path)}"
    )


def ready_teacher(
    net: nn.Module, facts: Mapping[str, Any], path: Path, val: Split, fused: bool = True
) -> nn.Module:
    """A teacher from `load_network` for inference on the device of `val`.

    If it is `fused` (see `for_inference`), it is faster, but its modules give no outputs. For
    weights of another project, the stem with the higher accuracy on up to 500 images of `val` is
    used, and a line says so: the weights of both stems have the same shapes. Raises UserError,
    which names `path`, if the teacher has other classes than `val`.
    """
    check_data(path, facts, val.data)
    device, some = val.images.device, val.take(slice(500))
    if facts["val_accuracy"] is None:
        nets, accuracy = {}, {}
        for stem in STEMS:
            nets[stem] = network(facts["arch"], stem, len(val.classes))
            nets[stem].load_state_dict(net.state_dict())
            ready = for_inference(nets[stem], device)
            accuracy[stem] = top1(predict(ready, some, f"teacher, {stem}"), some.labels)
        best = max(STEMS, key=accuracy.get)
        found = ", ".join(f"{accuracy[stem]:.1%} with {stem}" for stem in STEMS)
        print(f"{elsewhere(path, best)}; top-1 on {len(some)} validation images: {found}")
        net = nets[best]
    return (
        for_inference(net, device) if fused else to_device(net.eval(), device).requires_grad_(False)
    )


def logits_folder(teacher: Path, student: Path, subset: int | None) -> Path:
    """The folder for a teacher's stored logits: beside `teacher`, so that all students share it.

    It is beside `student`, the file of a student, if the teacher's folder cannot be written, and in
    a quick test (with a `subset`) of a teacher in CHECKPOINTS, where quick tests do not write.
    """
    quick = subset is not None and teacher.parent.resolve() == checkpoint.CHECKPOINTS
    beside = student if quick or not os.access(teacher.parent, os.W_OK) else teacher
    return beside.with_name(f"{teacher.stem}.logits")


class TeacherLogits:
    """A teacher's logits for each view of the training images, computed once and stored.

    Fast knowledge distillation (Shen and Xing, ECCV 2022). Each view has a file in half precision,
    written when an epoch first needs it. Its name and its content say what it is: the fingerprints
    of the teacher and of the augmented images, and the view. So students and runs share files. A
    file that is damaged or says something else is replaced. Raises UserError if the folder cannot
    be written.

    Args:
        teacher: normalized images (B, 3, H, W) -> logits (B, classes), from `for_inference`.
        taught_by: the fingerprint of its weights.
        batches: the training images and their views.
        folder: where the files are written.
    """

    def __init__(self, teacher: nn.Module, taught_by: str, batches: Batches, folder: Path) -> None:
        by_first(try_folder)(folder)
        self.teacher, self.batches, self.folder = teacher, batches, folder
        some = torch.arange(min(64, len(batches.images)))
        self.made_of = [taught_by, fingerprint([batches.images, batches.view(0, some)])]

    def epoch(self, epoch: int) -> torch.Tensor:
        """Logits for the view of `epoch`: float16 (N, classes) on the images' device.

        Row i belongs to image i. Raises UserError if a logit is not finite or a file cannot be
        written.
        """
        view = epoch % self.batches.views
        made_of = [*self.made_of, f"{view:02}"]
        path = self.folder / f"{'-'.join(made_of)}.npz"
        logits = self._read(path, made_of)
        if logits is None:
            logits = self._compute(view)
            if rank() == 0:
                with replacing(path) as file:
                    np.savez(file, logits=logits.cpu().numpy(), made_of=made_of)
        return logits.to(self.batches.images.device)

    @torch.inference_mode()
    def _compute(self, view: int) -> torch.Tensor:
        device, logits = self.batches.images.device, []
        mine = torch.arange(len(self.batches.images)).tensor_split(ranks())[rank()]
        what = f"teacher, view {view + 1}/{self.batches.views}"
        with tqdm(total=len(mine), desc=what, unit="img", leave=False, disable=rank() > 0) as bar:
            for places in mine.tensor_split(math.ceil(len(mine) / 500)):
                with autocast(device):
                    logits.append(self.teacher(self.batches.view(view, places)).half())
                bar.update(len(places))
        logits = gather(torch.cat(logits))
        if not logits.isfinite().all():
            raise UserError("the teacher's logits are not finite in half precision: train it again")
        return logits

    @by_first
    def _read(self, path: Path, made_of: list[str]) -> torch.Tensor | None:
        if not path.exists():
            return None
        try:
            if read_arrays(path, ["made_of"])["made_of"].tolist() != made_of:
                raise UserError("it is of another teacher, other images or another view")
            shape = (len(self.batches.images), len(self.batches.data.classes))
            return read_logits(path, {"logits": shape})["logits"].half()
        except (UserError, LookupError) as error:
            print(f"{shown(path)} cannot be used ({error}): computing the teacher's logits again")
            return None
