"""JSON and TOML files that anyone may have written: read within bounds, checked for structure."""

import errno
import json
import stat
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jaxcnn.errors import ReadError, describe

# Larger than any JSON file that this package writes.
_MAX_BYTES = 64 * 2**20
# Errors that may pass: network file systems have moments, and other processes open files too.
_PASSING = {errno.EIO, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.ETIMEDOUT}
_PASSING |= {errno.ENOMEM, errno.EMFILE, errno.ENFILE}
_PAUSES = (0.05, 0.2, 1.0)  # seconds

# Longer than the name of any device, version or data set.
_MAX_LENGTH = 500
_MAX_NUMBER = 1e300

Got = TypeVar("Got")


def read_json(path: Path) -> Any:
    """Returns the value of a JSON file.

    Raises:
        FileNotFoundError: there is no such file.
        ReadError: the file cannot be read, which says nothing about its content.
        ValueError: it is not a regular file, not JSON, or larger than any that this package writes.
    """
    return parse_json(read_bytes(path))


def read_toml(path: Path) -> dict[str, Any]:
    """Returns the content of a TOML file.

    Raises:
        FileNotFoundError: there is no such file.
        ReadError: the file cannot be read, which says nothing about its content.
        ValueError: it is not a regular file, not TOML, or too large.
    """
    content = read_bytes(path)
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or "nested too deeply"
        raise ValueError(f"it is no TOML file: {reason}") from None


def read_bytes(path: Path) -> bytes:
    """Returns the content of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ReadError: the file cannot be read, which says nothing about its content.
        ValueError: it is not a regular file, or larger than any file of the kind should be.
    """

    def read() -> bytes:
        if not stat.S_ISREG(path.stat().st_mode):  # the reader of a pipe would wait for ever
            raise ValueError("it is not a regular file")
        with path.open("rb") as file:
            return file.read(_MAX_BYTES + 1)

    found = with_retries(path, read)
    if len(found) > _MAX_BYTES:
        raise ValueError("it is too large")
    return found


def parse_json(text: bytes) -> Any:
    """Returns the value of a JSON text.

    Raises:
        ValueError: it is not JSON, or has a number that is not finite.
    """
    try:
        return json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"it has {text} as a number")


def with_retries(path: Path, read: Callable[[], Got]) -> Got:
    """Calls a function that reads a file, and again after a moment if the system cannot read.

    Args:
        path: of the file, for error messages.
        read: the function.

    Returns:
        What the function returns.

    Raises:
        FileNotFoundError: there is no file of that name.
        ReadError: the last call failed too.
    """
    for pause in (*_PAUSES, None):
        try:
            return read()
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
    """Checks that a JSON value has a form.

    Args:
        value: as `parse_json` returns it.
        form: a type (`str` is a printable line, `float` any finite number); a pair of a form and
            None, for a value that may be null; a list with one form, for a list of any length; a
            dictionary of required names and the forms of their values, or of `str` and one form,
            for any names.
        name: of the value, for the message.

    Raises:
        ValueError: the value has another form; the message names the part of it that differs.
    """
    if isinstance(form, tuple):
        if value is None:
            return
        form, _ = form
    if isinstance(form, list):
        if not isinstance(value, list):
            raise ValueError(f"{name} is not a list")
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
    elif form is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{name} is neither true nor false")
    elif form is str:
        if not isinstance(value, str) or not value.isprintable() or len(value) > _MAX_LENGTH:
            raise ValueError(f"{name} is not a line of text")
    elif (
        isinstance(value, bool)
        or not isinstance(value, int | form)
        or not -_MAX_NUMBER < value < _MAX_NUMBER  # nor is NaN
    ):
        raise ValueError(f"{name} is not a {'whole ' if form is int else ''}number")
