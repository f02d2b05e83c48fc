"""Contexts: the pixels of each kind; and the seed of an image alone determines its degradation."""

import pytest
import torch
from torchvision.io import decode_jpeg, encode_jpeg
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from utils.augment import Augmentation, Batches
from utils.contexts import (
    CONTEXTS,
    DEGRADED,
    KINDS,
    context_labels,
    degrade,
    draw,
    in_context,
    kinds,
    severities,
    told_apart,
)


def seeds(count, seed=0):
    return draw(count, torch.Generator().manual_seed(seed))


def pixelated(image, side):
    shrunk = v2.Resize((side, side), antialias=True)(image)
    return F.resize(shrunk, [32, 32], interpolation=F.InterpolationMode.NEAREST)


def tilted(image, degrees):
    wide = v2.Pad(8, padding_mode="reflect")(image)
    return F.rotate(wide, degrees, F.InterpolationMode.BILINEAR)[:, 8:40, 8:40]


@pytest.mark.parametrize(
    "kind, strengths, expected",
    [
        ("noise", (0.04, 0.06, 0.08, 0.1, 0.12), lambda image, s: F.gaussian_noise(image, sigma=s)),
        ("blur", (0.7, 0.9, 1.1, 1.3, 1.6), lambda image, sigma: F.gaussian_blur(image, 9, sigma)),
        ("dark", (0.5, 0.4, 0.3, 0.2, 0.1), F.adjust_brightness),
        ("pixel", (24, 20, 16, 12, 8), pixelated),
        ("jpeg", (40, 25, 15, 10, 5), lambda image, q: decode_jpeg(encode_jpeg(image, q))),
        ("fog", (0.5, 0.4, 0.3, 0.2, 0.15), F.adjust_contrast),
        ("bright", (1.5, 2.0, 2.5, 3.0, 4.0), F.adjust_brightness),
        ("tilt", (10, -15, 20, -30, 40), tilted),
        ("sharp", (3, 5, 8, 12, 16), F.adjust_sharpness),
    ],
)
def test_each_kind_has_the_pixels_of_torchvisions_transform(sample, kind, strengths, expected):
    images, drawn = sample.images[:40], seeds(40)
    seen = degrade(images, kind, drawn)
    assert seen.dtype == torch.uint8 and seen.shape == images.shape
    assert set(severities(drawn).tolist()) == {1, 2, 3, 4, 5}
    for before, after, severity, seed in zip(
        images, seen, severities(drawn).tolist(), drawn.tolist(), strict=True
    ):
        torch.manual_seed(seed)
        wanted = expected(before.permute(2, 0, 1).contiguous(), strengths[severity - 1])
        # Summation order may differ for a batch: pixels may differ by 1 after rounding.
        assert (after.int() - wanted.permute(1, 2, 0).int()).abs().max() <= 1
        assert not torch.equal(after, before)


def test_groups_hold_their_kinds_in_equal_shares_and_mixed_is_half_clean(sample):
    drawn = seeds(60_000)
    for context, shares in {
        "degraded": dict.fromkeys(DEGRADED, 1 / 6),
        "mixed": {"clean": 1 / 2, **dict.fromkeys(DEGRADED, 1 / 12)},
        "unseen": dict.fromkeys(("bright", "tilt", "sharp"), 1 / 3),
    }.items():
        found = kinds(context, drawn)
        assert set(found) == set(shares)
        for kind, share in shares.items():
            assert found.count(kind) / 60_000 == pytest.approx(share, abs=0.01)
            own = severities(drawn)[torch.tensor([each == kind for each in found])]
            assert (own.bincount() / len(own))[1:] == pytest.approx([0.2] * 5, abs=0.02)
    assert set(CONTEXTS) == {"clean", "degraded", "mixed", "unseen", *KINDS}


def test_a_mixed_image_is_the_clean_or_the_degraded_one_and_that_of_its_kind(sample):
    images, drawn = sample.images[:200], seeds(200)
    mixed, degraded = (degrade(images, context, drawn) for context in ("mixed", "degraded"))
    for context in DEGRADED:
        of_kind = torch.tensor([kind == context for kind in kinds("degraded", drawn)])
        assert torch.equal(degrade(images, context, drawn)[of_kind], degraded[of_kind])
    clean = torch.tensor([kind == "clean" for kind in kinds("mixed", drawn)])
    assert torch.equal(mixed[clean], images[clean])
    assert torch.equal(mixed[~clean], degraded[~clean])


def test_an_image_is_the_same_alone_and_in_any_batch_and_no_random_number_is_used_up(sample):
    images, drawn = sample.images[:60], seeds(60)
    state = torch.get_rng_state()
    whole = degrade(images, "degraded", drawn)
    assert torch.equal(torch.get_rng_state(), state)
    alone = torch.cat([degrade(images[k : k + 1], "degraded", drawn[k : k + 1]) for k in range(60)])
    assert (whole.int() - alone.int()).abs().max() <= 1  # a convolution may round otherwise
    assert torch.equal(images, sample.images[:60])
    assert degrade(images, "clean", drawn) is images


def test_the_images_of_a_split_are_the_same_in_any_part_of_it(sample):
    seen = in_context(sample, "mixed")
    part = in_context(sample.take(slice(100, 300)), "mixed")
    assert torch.equal(seen.images[100:300], part.images)
    assert torch.equal(part.labels, sample.labels[100:300])


def test_seed_and_epoch_decide_the_context_whatever_the_number_of_processes(sample):
    def batches(epoch=0, seed=0, share=(0, 1), context="mixed"):
        made = Batches(sample.images[:90], 32, seed, Augmentation(), 0, share, context)
        return [images for (images,) in made.epoch(epoch)]

    whole = batches()
    for each, *parts in zip(whole, *(batches(share=(k, 2)) for k in range(2)), strict=True):
        assert (each - torch.cat(parts)).abs().max() < 0.02  # a level of 256 rounded otherwise
    assert all(map(torch.equal, whole, batches()))
    for other in (batches(epoch=1), batches(seed=1), batches(context="degraded")):
        assert not torch.equal(whole[0], other[0])


@pytest.mark.parametrize("views", [0, 2])
def test_crops_are_those_of_the_clean_context_and_can_be_had_beside_the_degraded(sample, views):
    images, labels = sample.images[:50], sample.labels[:50]
    augmentation = Augmentation(4, True, 8)
    before = Batches(images, 16, 0, augmentation, views).epoch(3, labels)
    degraded = Batches(images, 16, 0, augmentation, views, context="degraded")
    for (clean, label), (seen, same_label, crop) in zip(
        before, degraded.epoch(3, labels, clean=True), strict=True
    ):
        assert torch.equal(crop, clean) and torch.equal(label, same_label)
        cut = clean == 0  # the mean color, in both
        assert torch.equal(seen == 0, cut) and cut.any()
        assert (seen != clean).flatten(1).any(dim=1).all()
    if views:
        places = torch.arange(5)
        clean = Batches(images, 16, 0, augmentation, views)
        assert torch.equal(degraded.view(1, places), clean.view(1, places))


def test_students_of_a_context_each_are_told_apart_on_images_of_both():
    for students, context, apart in (
        (("degraded", "clean"), "mixed", True),
        (("fog", "jpeg"), "degraded", True),
        (("clean", "blur", "noise"), "degraded", True),
        (("degraded", "clean"), "degraded", False),  # student 1 for all
        (("degraded", "clean"), "clean", False),  # student 2 for all
        (("mixed", "clean"), "mixed", False),  # student 1 for all
        (("clean", "clean"), "mixed", False),
    ):
        assert told_apart(students, context) == apart
    seeds = torch.arange(12)  # six clean ones, and one of each kind
    assert context_labels("mixed", seeds, ["degraded", "clean"]).tolist() == 6 * [1] + 6 * [0]
    assert (context_labels("mixed", seeds, ["fog", "clean", "blur"]) == 0).sum() == 1
