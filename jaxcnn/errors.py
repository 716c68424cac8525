"""Errors that a user can cause and correct, each one sentence with a remedy."""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# The remedies that `writing` states where a cache or a workdir cannot be written.
CACHE_REMEDY = "set JAXCNN_CACHE_DIR to a folder that can be written and has room"
WORKDIR_REMEDY = "give --workdir a folder that can be written and has room"
OUT_REMEDY = WORKDIR_REMEDY.replace("--workdir", "--out")


class UserError(Exception):
    """A mistake in the user's input, or a condition of the machine that the user can change.

    The message is one sentence that states what is wrong, where, and the remedy. Command lines
    print it without a traceback and exit with status 2.
    """


class DataError(UserError):
    """A data set, an archive or a cache cannot be used in its present state."""


class DataUnavailableError(DataError):
    """The real data is not available: there is no prepared copy, no archive and no network.

    `load_data(source="auto")` falls back to the synthetic data set on this error only. Damaged or
    unexpected files remain an error, so that their owner learns of them.
    """


class DivergedError(UserError):
    """Training diverged: the loss is not finite any more."""


class StoppedError(Exception):
    """A run was stopped by a signal after saving its state; the message says where."""


class ReadError(UserError):
    """The operating system cannot read a file, so its content is unknown and not known damaged."""


class WriteError(UserError):
    """A file or folder cannot be written, for example because the disk is full or read-only."""


def as_path(text: str | os.PathLike[str]) -> Path:
    """Converts a path given by a user, expanding ~ to the home folder.

    Args:
        text: the path.

    Returns:
        The path, absolute only if it was given so; the file need not exist.

    Raises:
        UserError: `text` is an address such as gs://bucket/file, or not a valid file name.
    """
    if address := re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", os.fsdecode(text)):
        raise UserError(
            f"{str(text)!r} is an address ({address[0]}...), not a path on this machine: copy or "
            "mount it, and give the local path"
        )
    try:
        path = Path(text).expanduser()
        if b"\0" in os.fsencode(path):
            raise ValueError("a file name cannot contain the byte 0")
    except (RuntimeError, ValueError) as error:  # no such user, or a name that cannot be encoded
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(f"{str(text)!r} is not a valid path ({reason}): give another") from None
    return path


def describe(error: OSError, path: Path | None = None) -> str:
    """Describes an operating system's error in words.

    Args:
        error: as raised by the operating system.
        path: the path to name if the error names none.

    Returns:
        "<path>: <reason>", or the reason alone if no path is known.
    """
    reason = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EFBIG: "the file would exceed the size limit",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "permission is denied",
        errno.EPERM: "permission is denied",
        errno.ENOTDIR: "a part of the path is a file",
        errno.EEXIST: "a file exists where a folder is needed",
    }.get(error.errno or 0, error.strerror or str(error) or type(error).__name__)
    where = error.filename or path
    return f"{where}: {reason}" if where else reason


@contextmanager
def writing(path: Path, remedy: str) -> Iterator[None]:
    """Converts an OSError of the block into a WriteError.

    Args:
        path: the file or folder that the block writes; named if the error names none.
        remedy: the end of the message, for example `WORKDIR_REMEDY`.

    Raises:
        WriteError: the block raised an OSError.
    """
    try:
        yield
    except OSError as error:
        raise WriteError(f"cannot write {describe(error, path)}; {remedy}") from error
