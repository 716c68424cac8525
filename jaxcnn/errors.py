"""Errors that a user can cause and mend."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# What `writing` says of a workdir.
WORKDIR_REMEDY = "give --workdir a folder that can be written and has room"


class UserError(Exception):
    """A mistake in what the user asked for or in what the machine offers.

    The message is one sentence that says what is wrong, where, and the remedy. Command lines print
    it without a traceback and end with status 2.
    """


class DataError(UserError):
    """A data set, an archive or a cache cannot be used as it is."""


class DataUnavailableError(DataError):
    """The real data cannot be had here at all: no prepared copy, no archive and no network.

    `source="auto"` answers this one, and only this one, with the synthetic stand-in: damaged or
    foreign files need their owner's attention and are never papered over.
    """


class DivergedError(UserError):
    """Training went wrong numerically: the loss is no longer finite."""


class StoppedError(Exception):
    """A run was asked to stop and has saved what it can; the message says where."""


class ReadError(UserError):
    """A file cannot be read: the system says why, and nothing is known of what it holds."""


class WriteError(UserError):
    """A file or folder cannot be written: the disk is full, say, or read-only."""


def as_path(text: str | os.PathLike[str]) -> Path:
    """Returns a path that a user has given, with ~ as the home folder that it stands for.

    Raises:
        UserError: no file can be called so.
    """
    if address := re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", os.fsdecode(text)):
        raise UserError(
            f"{str(text)!r} is an address ({address[0]}...), no path on this machine: copy or "
            "mount what is there, and give that path"
        )
    try:
        path = Path(text).expanduser()
        if b"\0" in os.fsencode(path):
            raise ValueError("a file name has no byte 0")
    except (RuntimeError, ValueError) as error:  # no such user, or a name that cannot be encoded
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{str(text)!r} is no path here ({reason}): give another one") from None
    return path


def describe(error: OSError, path: Path | None = None) -> str:
    """Returns which path an error is about, if it says so, and what is wrong with it."""
    reason = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EFBIG: "the file would exceed the size limit",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "there is no permission",
        errno.EPERM: "there is no permission",
        errno.ENOTDIR: "a part of the path is a file",
        errno.EEXIST: "a file stands where a folder is needed",
    }.get(error.errno or 0, error.strerror or str(error) or type(error).__name__)
    where = error.filename or path
    return f"{where}: {reason}" if where else reason


@contextmanager
def writing(path: Path, remedy: str) -> Iterator[None]:
    """Turns the failure of a write below `path` into one sentence that ends with `remedy`."""
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {describe(error, path)}; {remedy}") from error
