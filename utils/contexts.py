"""Contexts: degradations of images (noise, blur, darkness, ...), by torchvision's transforms.

A context is one kind of degradation or a group of kinds. The seed of an image, one random number,
determines its kind, severity (1 to 5) and noise. So the same seed gives the same image in every
batch, process and program. An image that is degraded in "mixed" looks the same in "degraded" and
in the context of its own kind.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from utils.data import Split


def noise(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian noise; sigma in [0, 1]."""
    return F.gaussian_noise(images, sigma=sigma)


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur; sigma in pixels of an image of 32 pixels."""
    scale = images.shape[-1] / 32
    width = 8 * round(scale) + 1
    return F.gaussian_blur(images, [width, width], [scale * sigma, scale * sigma])


def pixelate(images: torch.Tensor, side: int) -> torch.Tensor:
    """Downsample, then upsample. `side` is the smaller size of an image of 32 pixels."""
    side = side * images.shape[-1] // 32
    small = F.resize(images, [side, side], antialias=True)
    return F.resize(small, list(images.shape[-2:]), InterpolationMode.NEAREST)


def tilt(images: torch.Tensor, degrees: float) -> torch.Tensor:
    """Rotate; the corners are filled by reflection."""
    wide = F.pad(images, [images.shape[-1] // 4], padding_mode="reflect")
    return F.center_crop(
        F.rotate(wide, degrees, InterpolationMode.BILINEAR), list(images.shape[-2:])
    )


# Transform: uint8 (N, 3, H, W) and a strength -> uint8 (N, 3, H, W). Strengths of severity 1 to 5.
# A further context is a further row.
KINDS: dict[str, tuple[Callable[..., torch.Tensor], tuple[float, ...]]] = {
    "noise": (noise, (0.04, 0.06, 0.08, 0.1, 0.12)),
    "blur": (blur, (0.7, 0.9, 1.1, 1.3, 1.6)),
    "dark": (F.adjust_brightness, (0.5, 0.4, 0.3, 0.2, 0.1)),
    "pixel": (pixelate, (24, 20, 16, 12, 8)),
    "jpeg": (F.jpeg, (40, 25, 15, 10, 5)),
    "fog": (F.adjust_contrast, (0.5, 0.4, 0.3, 0.2, 0.15)),
    "bright": (F.adjust_brightness, (1.5, 2.0, 2.5, 3.0, 4.0)),
    "tilt": (tilt, (10, -15, 20, -30, 40)),
    "sharp": (F.adjust_sharpness, (3, 5, 8, 12, 16)),
}
RANDOM = ("noise",)  # kinds whose transforms draw random numbers: each image has its own seed
UNSEEN = ("bright", "tilt", "sharp")  # not used for training
DEGRADED = tuple(kind for kind in KINDS if kind not in UNSEEN)
CONTEXTS = {  # kinds in equal shares; a kind listed twice has twice the share
    "clean": ("clean",),
    **{kind: (kind,) for kind in KINDS},
    "degraded": DEGRADED,
    "mixed": ("clean",) * len(DEGRADED) + DEGRADED,
    "unseen": UNSEEN,
}
GROUPS = ("clean", "degraded", "mixed", "unseen")  # keys of CONTEXTS that are not in KINDS


def draw(count: int, generator: torch.Generator) -> torch.Tensor:
    """Draw seeds for `count` images: int64 (count,), on the CPU."""
    return torch.randint(2**62, (count,), generator=generator)


def kinds(context: str, seeds: torch.Tensor) -> list[str]:
    """The kind of each image in `context`: "clean" or a key of KINDS. `seeds`: int64 (N,)."""
    choice = CONTEXTS[context]
    return [choice[seed % len(choice)] for seed in seeds.tolist()]


def context_labels(context: str, seeds: torch.Tensor, trained_on: Sequence[str]) -> torch.Tensor:
    """The first student that was trained on the kind of each image, else the last: int64 (N,).

    `context` is that of the images, `seeds` theirs, int64 (N,); `trained_on` has one context for
    each student.
    """
    last = len(trained_on) - 1
    of = {
        kind: next((k for k in range(last) if kind in CONTEXTS[trained_on[k]]), last)
        for kind in CONTEXTS[context]
    }
    return torch.tensor([of[kind] for kind in kinds(context, seeds)])


def told_apart(trained_on: Sequence[str], context: str) -> bool:
    """Whether the students' contexts differ, and so do the `context_labels` of the images."""
    seeds = torch.arange(len(CONTEXTS[context]))  # one image of each kind
    labels = context_labels(context, seeds, trained_on)
    return len(set(trained_on)) > 1 and len(labels.unique()) > 1


def severities(seeds: torch.Tensor) -> torch.Tensor:
    """The severity of each image if it is degraded: int64 (N,), 1 to 5."""
    return 1 + (seeds >> 32) % 5


def degrade(images: torch.Tensor, context: str, seeds: torch.Tensor) -> torch.Tensor:
    """Apply a context to images, on the CPU, so that they are the same on every device.

    uint8 (N, H, W, 3), on any device, and seeds, int64 (N,), from `draw` -> uint8 (N, H, W, 3);
    `images` itself for the context "clean".
    """
    if context == "clean":
        return images
    groups = defaultdict(list)  # the images of a kind and severity: their places
    for place, (kind, severity) in enumerate(
        zip(kinds(context, seeds), severities(seeds).tolist(), strict=True)
    ):
        groups[kind, severity, place if kind in RANDOM else None].append(place)
    groups = {group: places for group, places in groups.items() if group[0] != "clean"}
    before = images.cpu()
    seen = before.clone()
    with torch.random.fork_rng(devices=[]):  # transforms use the global generator
        for (kind, severity, _), places in groups.items():
            torch.default_generator.manual_seed(seeds[places[0]].item())
            transform, strengths = KINDS[kind]
            # contiguous: gaussian noise is 7 times faster then.
            group = before[places].permute(0, 3, 1, 2).contiguous()
            seen[places] = transform(group, strengths[severity - 1]).permute(0, 2, 3, 1)
    return seen.to(images.device)


def in_context(split: Split, context: str) -> Split:
    """Apply a context to a split. The result is the same in every run and for every subset."""
    images = degrade(split.images, context, image_seeds(split))
    return replace(split, images=images, context=context)


def image_seeds(split: Split) -> torch.Tensor:
    """A fixed seed for each image, from its index in the data set: int64 (N,), on the CPU."""
    seeds = draw(split.indices.max() + 1, torch.Generator().manual_seed(0))
    return seeds[torch.from_numpy(split.indices)]
