"""JSON that a file holds, which anybody may have written: read within bounds, and of one form."""

import errno
import json
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jaxcnn.errors import ReadError, describe

# More than any file of this package has.
_MOST_BYTES = 64 * 2**20
# What may pass: network file systems have moments, and other processes open files too. Seconds.
_PASSING = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT}
_PASSING |= {errno.ENOMEM, errno.EMFILE, errno.ENFILE}
_PAUSES = (0.05, 0.2, 1.0)

# Longer than any device, version or data set is called.
_LONGEST = 500
_LARGEST = 1e300


Got = TypeVar("Got")


def read(path: Path) -> Any:
    """Returns what the JSON in a file says.

    Raises:
        FileNotFoundError: there is no such file.
        ReadError: it cannot be read, which says nothing of what it holds.
        ValueError: it is no regular file, or holds no JSON, or more than any that is ours.
    """
    return parse(content(path))


def content(path: Path) -> bytes:
    """Returns all of a file that may be ours.

    Raises:
        FileNotFoundError: there is no such file.
        ReadError: it cannot be read, which says nothing of what it holds.
        ValueError: it is no regular file, or larger than any that is ours.
    """

    def take() -> bytes:
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe keeps its reader waiting
            raise ValueError("it is no regular file")
        with path.open("rb") as file:
            return file.read(_MOST_BYTES + 1)

    found = patiently(path, take)
    if len(found) > _MOST_BYTES:
        raise ValueError("it is too large")
    return found


def parse(text: bytes) -> Any:
    """Returns what JSON says.

    Raises:
        ValueError: it is none.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"it has {text} as a number")


def patiently(path: Path, call: Callable[[], Got]) -> Got:
    """Calls what reads a file, and again after a moment if the system cannot.

    Raises:
        FileNotFoundError: nothing is there, or no file.
        ReadError: it could not be read in the end either.
    """
    for pause in (*_PAUSES, None):
        try:
            return call()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise FileNotFoundError(*error.args) from None
        except OSError as error:
            if pause is None or error.errno not in _PASSING:
                raise ReadError(
                    f"cannot read {describe(error, path)}; nothing was changed: try again, or give "
                    "another path"
                ) from error
            time.sleep(pause)
    raise AssertionError("unreachable")


def check(value: Any, form: Any, name: str) -> None:
    """Compares a value with a form.

    Args:
        value: as `json.loads` gives it.
        form: a type (`str` is a printable line, `float` any finite number); a form and None as a
            pair, for what may be null; a list of one form, for any number of values; a dictionary
            of the forms that it must have by name, or of `str` and one form for any names.
        name: of the value, for the message.

    Raises:
        ValueError: it has another form; the message names the value within it.
    """
    if isinstance(form, tuple):
        if value is None:
            return
        form, _ = form
    if isinstance(form, list):
        if not isinstance(value, list):
            raise ValueError(f"{name} is no list")
        for index, one in enumerate(value):
            check(one, form[0], f"{name}[{index}]")
    elif isinstance(form, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{name} has no named values")
        if str in form:
            form = dict.fromkeys(value, form[str])
            check(list(value), [str], name)
        if missing := sorted(form.keys() - value.keys()):
            raise ValueError(f"{name} has no {missing[0]}")
        for key, one in form.items():
            check(value[key], one, key)
    elif form is str:
        if not isinstance(value, str) or not value.isprintable() or len(value) > _LONGEST:
            raise ValueError(f"{name} is no line of text")
    elif (
        isinstance(value, bool)
        or not isinstance(value, int | form)
        or not -_LARGEST < value < _LARGEST  # nor is what is not a number
    ):
        raise ValueError(f"{name} is no {'whole ' if form is int else ''}number")
