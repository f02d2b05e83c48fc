"""Files are written and locked on file systems of all kinds."""

import errno
import fcntl
import os
import stat

import pytest

from utils import files
from utils.files import UserError, claim, replacing


def failing(number, function, on):
    """`function`, which raises an OSError with this number for descriptors that fulfil `on`."""

    def call(descriptor, *rest):
        if on(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        return function(descriptor, *rest)

    return call


@pytest.mark.parametrize("name", ["EINVAL", "ENOTSUP", "ENOSYS", "EIO"])
def test_a_folder_that_cannot_be_synced_is_borne_but_not_a_broken_disk(tmp_path, monkeypatch, name):
    """Shares of VirtualBox, WSL, CIFS and FUSE refuse it."""
    number = getattr(errno, name)
    monkeypatch.setattr(os, "fsync", failing(number, os.fsync, stat.S_ISDIR))
    try:
        with replacing(tmp_path / "a.json") as file:
            file.write(b"{}")
    except UserError as error:
        assert name == "EIO" and "a.json" in str(error)
    assert (tmp_path / "a.json").read_bytes() == b"{}"


@pytest.mark.parametrize("name", ["ENOLCK", "EOPNOTSUPP"])
def test_without_locks_a_run_goes_on_with_a_warning(tmp_path, monkeypatch, capsys, name):
    monkeypatch.setattr(fcntl, "flock", failing(getattr(errno, name), fcntl.flock, stat.S_ISREG))
    claim(tmp_path / "teacher.pth")
    err = capsys.readouterr().err
    assert "teacher.lock" in err and len(err.splitlines()) == 1


def test_a_lock_file_of_another_user_is_named(tmp_path, monkeypatch):
    def acquire(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "teacher.lock"))

    monkeypatch.setattr(files.FileLock, "acquire", acquire)
    with pytest.raises(UserError, match="teacher.lock"):
        claim(tmp_path / "teacher.pth")
