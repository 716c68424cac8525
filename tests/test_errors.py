import errno
import os
from pathlib import Path

import pytest

from jaxcnn.errors import UserError, WriteError, as_path, writing


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EFBIG, "the file would exceed the size limit"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "permission is denied"),
        (errno.EPERM, "permission is denied"),
        (errno.ENOTDIR, "a part of the path is a file"),
        (errno.EEXIST, "a file exists where a folder is needed"),
        (errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_a_failed_write_is_one_sentence(number: int, reason: str) -> None:
    with (
        pytest.raises(WriteError, match=f"^cannot write /a/b: {reason}; buy a disk$") as caught,
        writing(Path("/a"), "buy a disk"),
    ):
        raise OSError(number, os.strerror(number), "/a/b")
    assert isinstance(caught.value, UserError)


def test_an_error_without_number() -> None:
    with (
        pytest.raises(WriteError, match=r"^cannot write /a: something odd; buy a disk$"),
        writing(Path("/a"), "buy a disk"),
    ):
        raise OSError("something odd")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_real_full_disk() -> None:
    with (
        pytest.raises(WriteError, match="the disk is full"),
        writing(Path("/dev/full"), "buy a disk"),
        Path("/dev/full").open("w") as file,
    ):
        file.write("x" * 100_000)


def test_other_errors_pass() -> None:
    with pytest.raises(KeyError), writing(Path("/a"), "buy a disk"):
        raise KeyError


def test_a_path_as_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/of/mine")
    assert as_path("~/x") == Path("/home/of/mine/x")
    assert as_path(Path("a/~b")) == Path("a/~b")


@pytest.mark.parametrize("text", ["~nosuchuser/x", "a\0b", "\0", "a/\ud800"])
def test_an_invalid_path(text: str) -> None:
    with pytest.raises(UserError, match=r"is not a valid path \(.*\): give another$") as caught:
        as_path(text)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("text", ["gs://bucket/data", "s3://x", "https://host/x", "file:///x"])
def test_an_address_is_no_path(text: str) -> None:
    """It would be a folder called "gs:", with all that is written in it."""
    with pytest.raises(
        UserError, match=r"is an address \(.*://\.\.\.\), not a path on this machine"
    ):
        as_path(text)
    assert as_path("gs:/x") == Path("gs:/x")
