"""Errors that a user can cause and mend."""

import errno
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


class WriteError(UserError):
    """A file or folder cannot be written: the disk is full, say, or read-only."""


@contextmanager
def writing(path: Path, remedy: str) -> Iterator[None]:
    """Turns the failure of a write below `path` into one sentence that ends with `remedy`."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        reason = {
            errno.ENOSPC: "the disk is full",
            errno.EDQUOT: "the disk quota is used up",
            errno.EFBIG: "the file would exceed the size limit",
            errno.EROFS: "the file system is read-only",
            errno.EACCES: "the folder may not be written",
            errno.EPERM: "the folder may not be written",
            errno.ENOTDIR: "a part of the path is a file",
            errno.EEXIST: "a file stands where a folder is needed",
        }.get(error.errno or 0, error.strerror or str(error))
        raise WriteError(f"cannot write {where}: {reason}; {remedy}") from error
