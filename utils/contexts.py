"""Contexts: what a picture went through before a network sees it, by torchvision's transforms.

A context is one kind of picture or a group of kinds. An image's seed, one random number, decides
its kind, its severity (1 to 5) and its noise, so that an image of the same seed is the same in
every batch, process and program. An image that is degraded in "mixed" is also that of "degraded"
and of its own kind.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from utils.data import Split


def noise(images: torch.Tensor, sigma: float, seeds: torch.Tensor) -> torch.Tensor:
    """Gaussian noise, as of a small sensor in the evening; sigma in [0, 1], a seed an image."""
    with torch.random.fork_rng(devices=[]):  # torchvision's noise is of the global generator
        noisy = []
        for image, seed in zip(images.cpu(), seeds.tolist(), strict=True):
            torch.default_generator.manual_seed(seed)
            noisy.append(F.gaussian_noise(image, sigma=sigma))
    return torch.stack(noisy).to(images.device)


def blur(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Out of focus; sigma in pixels."""
    return F.gaussian_blur(images, [9, 9], [sigma, sigma])


def pixelate(images: torch.Tensor, side: int) -> torch.Tensor:
    """Taken at `side` x `side` pixels, and enlarged."""
    small = F.resize(images, [side, side], antialias=True)
    return F.resize(small, list(images.shape[-2:]), InterpolationMode.NEAREST)


def jpeg(images: torch.Tensor, quality: int) -> torch.Tensor:
    """Saved as a JPEG file; quality from 1 to 100."""
    return F.jpeg(images.cpu(), quality).to(images.device)


def tilt(images: torch.Tensor, degrees: float) -> torch.Tensor:
    """Held askew; the corners are filled by reflection."""
    wide = F.pad(images, [8], padding_mode="reflect")
    return F.center_crop(
        F.rotate(wide, degrees, InterpolationMode.BILINEAR), list(images.shape[-2:])
    )


# uint8 (N, 3, H, W) and a strength -> uint8 (N, 3, H, W); the strengths of severities 1 to 5
KINDS: dict[str, tuple[Callable[..., torch.Tensor], tuple[float, ...]]] = {
    "noise": (noise, (0.04, 0.06, 0.08, 0.1, 0.12)),
    "blur": (blur, (0.7, 0.9, 1.1, 1.3, 1.6)),
    "dark": (F.adjust_brightness, (0.5, 0.4, 0.3, 0.2, 0.1)),
    "pixel": (pixelate, (24, 20, 16, 12, 8)),
    "jpeg": (jpeg, (40, 25, 15, 10, 5)),
    "fog": (F.adjust_contrast, (0.5, 0.4, 0.3, 0.2, 0.15)),
    "bright": (F.adjust_brightness, (1.5, 2.0, 2.5, 3.0, 4.0)),
    "tilt": (tilt, (10, -15, 20, -30, 40)),
    "sharp": (F.adjust_sharpness, (3, 5, 8, 12, 16)),
}
UNSEEN = ("bright", "tilt", "sharp")  # nothing is trained on these
DEGRADED = tuple(kind for kind in KINDS if kind not in UNSEEN)
CONTEXTS = {  # the kinds of each, in equal shares; a kind that stands twice has twice the share
    "clean": ("clean",),
    **{kind: (kind,) for kind in KINDS},
    "degraded": DEGRADED,
    "mixed": ("clean",) * len(DEGRADED) + DEGRADED,
    "unseen": UNSEEN,
}
GROUPS = ("clean", "degraded", "mixed", "unseen")  # of these, all that are no single kind


def draw(count: int, generator: torch.Generator) -> torch.Tensor:
    """Seeds for `count` images: int64 (N,), on the CPU."""
    return torch.randint(2**62, (count,), generator=generator)


def kinds(context: str, seeds: torch.Tensor) -> list[str]:
    """The kind of each image in `context`, "clean" or a key of KINDS; seeds int64 (N,)."""
    choice = CONTEXTS[context]
    return [choice[seed % len(choice)] for seed in seeds.tolist()]


def severities(seeds: torch.Tensor) -> torch.Tensor:
    """The severity of each image, where it is degraded: int64 (N,) in 1 to 5."""
    return 1 + (seeds >> 32) % 5


def degrade(images: torch.Tensor, context: str, seeds: torch.Tensor) -> torch.Tensor:
    """Images as `context` shows them.

    Args:
        images: uint8 (N, H, W, 3), on any device.
        context: a key of CONTEXTS.
        seeds: int64 (N,), as of `draw`.

    Returns:
        uint8 (N, H, W, 3); `images` themselves in the context "clean".
    """
    if context == "clean":
        return images
    groups = defaultdict(list)  # the places of each kind and severity
    for place, group in enumerate(
        zip(kinds(context, seeds), severities(seeds).tolist(), strict=True)
    ):
        groups[group].append(place)
    seen = images.clone()
    for (kind, severity), places in groups.items():
        if kind == "clean":
            continue
        transform, strengths = KINDS[kind]
        more = (seeds[places],) if transform is noise else ()
        group = images[places].permute(0, 3, 1, 2).contiguous()  # randn is 7 times as fast
        seen[places] = transform(group, strengths[severity - 1], *more).permute(0, 2, 3, 1)
    return seen


def in_context(split: Split, context: str) -> Split:
    """The images of `split` as `context` shows them, the same in every run and subset."""
    return replace(split, images=degrade(split.images, context, image_seeds(split)))


def image_seeds(split: Split) -> torch.Tensor:
    """A fixed seed for each image, by its place in the set: int64 (N,), on the CPU."""
    seeds = draw(split.indices.max() + 1, torch.Generator().manual_seed(0))
    return seeds[torch.from_numpy(split.indices)]
