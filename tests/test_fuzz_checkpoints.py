"""Thousands of damaged and forged checkpoints: each is read whole or refused in one line.

FUZZ=50000 in the environment makes that many of them.
"""

import os
import pickletools
import random
import re
import resource
import signal
import struct
import warnings
import zipfile

import torch

from models import Selector
from utils.checkpoint import load_network, save_checkpoint
from utils.files import UserError

COUNT = int(os.environ.get("FUZZ", 1500))
SECONDS = 10  # for one file
MEMORY = 2**17  # KB that the process may grow by
OPCODES = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
ARGUMENTS = [b"K\0", b"K\1", b"M\xff\xff", b"J\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"\x8a\xff"]
NUMBERS = [0, 1, 8, 127, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1]


def instructions(pickle):
    starts = [at for _, _, at in pickletools.genops(pickle)] + [len(pickle)]
    return [pickle[a:b] for a, b in zip(starts, starts[1:], strict=False)]


def plants(folder):
    """Parts of pickles: code that creates `folder`; huge, nested, shared or incomplete objects."""
    name = b"X" + struct.pack("<L", len(folder)) + folder
    return [
        b"cposix\nmkdir\n" + name + b"\x85R",
        b"cos\nmkdir\n" + name + b"\x85R",
        b"\x8c\x05posix\x8c\x05mkdir\x93" + name + b"\x85R",
        b"(" + name + b"iposix\nmkdir\n",
        b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R",
        b"ctorch\nFloatTensor\nJ\xff\xff\xff\x7f\x85R",
        b")" + b"\x85" * 2000,
        b")" + b"q\xffh\xff\x86" * 40,
        b"]q\xffh\xffa",
        b"G\x7f\xf8\0\0\0\0\0\0",
        b"X\5\0\0\0\x1b[2J\n",
        *(op for op in (b"(", b"Q", b"R", b"b", b"u", b"e", b"0", b"2", b")", b"}", b"N")),
    ]


# ------------------------------------------------------------------ ways to damage a file


def flip_bits(content, rng):
    for _ in range(rng.choice((1, 1, 2, 8, 64))):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def cut(content, rng):
    del content[rng.randrange(len(content)) :]


def splice(content, rng):
    start, to = rng.randrange(len(content)), rng.randrange(len(content))
    piece = content[start : start + rng.choice((1, 16, 500, 5000))]
    content[to : to + rng.choice((0, len(piece)))] = piece


def edit_header(content, rng):
    headers = [match.start() for match in re.finditer(rb"PK[\1\3\5\6][\2\4\6\7]", content)]
    at, size = rng.choice(headers) + rng.randrange(4, 46), rng.choice((1, 2, 4))
    content[at : at + size] = (rng.choice(NUMBERS) % 256**size).to_bytes(size, "little")


# ------------------------------------------------------------------ ways to forge one


def edit_pickle(entries, rng, planted):
    code = instructions(entries["archive/data.pkl"])
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(1, len(code) - 1)
        code[at : at + rng.randrange(2)] = rng.choice(
            (
                [],
                [rng.choice(code)],
                [rng.choice(planted)],
                [rng.choice(planted)],
                [rng.choice(ARGUMENTS)],
                [rng.choice(OPCODES) + code[at][1:]],
                code[at : at + rng.randrange(9)] * 2,
                [code[at][:-1] + bytes([rng.randrange(256)])],
            )
        )
    entries["archive/data.pkl"] = b"".join(code)


def edit_records(entries, rng, planted):
    """Swap, empty, flip, drop, add or rename entries."""
    names = [name for name in entries if rng.random() < 0.9 or "/data/" in name]
    one, other = rng.sample(names, 2)
    kind = rng.randrange(5)
    if kind == 0:
        entries[one], entries[other] = entries[other], entries[one]
    elif kind == 1:
        entries[one] = entries[one][: rng.randrange(len(entries[one]) + 1)]
    elif kind == 2:
        content = bytearray(entries[one])
        flip_bits(content, rng)
        entries[one] = bytes(content)
    elif kind == 3:
        del entries[one]
    else:
        entries[rng.choice(("../x", "/x", "x\0y", "x/data.pkl", other + "/"))] = entries.pop(one)


# ------------------------------------------------------------------ the test


def outcome(path):
    """The reason of a refusal; None if a network with finite weights was loaded."""
    signal.alarm(SECONDS)
    try:
        net, _ = load_network(path)
    except UserError as error:
        message = str(error)
        assert str(path) in message and message.isprintable()
        assert len(message) < len(str(path)) + 250
        return message.replace(str(path), "")
    finally:
        signal.alarm(0)
    assert all(tensor.isfinite().all() for tensor in net.state_dict().values())
    return None


def test_damaged_and_forged_checkpoints_are_read_whole_or_refused(tmp_path, capfd, record_property):
    rng = random.Random(0)
    path, folder = tmp_path / "selector.pth", tmp_path / "ran"
    torch.manual_seed(0)
    save_checkpoint(path, Selector(1), "selector", None, {"depth": 1, "batch_norm": True}, 1, 0.5)
    sound, planted = path.read_bytes(), plants(bytes(folder))
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}

    def late(*_):
        raise AssertionError(f"no answer within {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reasons = []
    try:
        with warnings.catch_warnings():
            for _ in range(COUNT):
                forge = rng.choice((edit_pickle, edit_pickle, edit_pickle, edit_records, None))
                if forge:
                    entries = dict(records)
                    forge(entries, rng, planted)
                    with zipfile.ZipFile(path, "w") as archive:
                        for name, content in entries.items():
                            archive.writestr(name, content)
                else:
                    content = bytearray(sound)
                    rng.choice((flip_bits, cut, splice, edit_header, edit_header))(content, rng)
                    path.write_bytes(content)
                warnings.simplefilter("error")
                reasons.append(outcome(path))
    except BaseException:
        (tmp_path / "failed.pth").write_bytes(path.read_bytes())
        raise
    finally:
        signal.signal(signal.SIGALRM, before)
    loaded = reasons.count(None)
    assert capfd.readouterr() == ("", "")
    assert not folder.exists()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - used < MEMORY
    assert 0 < loaded < COUNT / 2
    told = f"{COUNT:,} mutated, {loaded:,} loaded, {COUNT - loaded:,} refused"
    record_property("counted", f"checkpoints: {told}")
