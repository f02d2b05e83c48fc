"""What networks answer: outputs for many images, their accuracy, and a teacher's stored answers."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from utils.checkpoint import amend_checkpoint, load_network
from utils.data import Split, normalize
from utils.device import autocast, enough_memory, for_inference
from utils.distributed import from_first, gather, rank, ranks
from utils.files import UserError, shown


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


def score(net: nn.Module, split: Split, batch_size: int = 500) -> tuple[float, float]:
    """Cross-entropy and top-1 accuracy in [0, 1] of a classifier on a split."""
    logits = predict(net, split.images, "validation", batch_size)
    return F.cross_entropy(logits, split.labels).item(), top1(logits, split.labels)


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
