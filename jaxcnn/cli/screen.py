"""The standard streams of a command: what cannot be shown does not stop its work."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcnn.errors import describe


class Screen:
    """A standard stream whose failures are remembered and not raised.

    It may be full, closed by whoever read it, or none at all; its encoding may lack characters,
    which are replaced.

    Attributes:
        failure: the first one, if there was any.
    """

    def __init__(self, stream: Any) -> None:
        """Takes a stream, or None where the process was started without it."""
        self._stream = io.StringIO() if stream is None else stream
        self.failure: OSError | None = None
        with contextlib.suppress(AttributeError, ValueError, OSError):  # a test's stream, say
            stream.reconfigure(errors="replace")

    def write(self, text: str) -> int:
        """Writes what can be written; after a failure nothing any more."""
        if self.failure is None:
            self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flushes, if nothing has failed."""
        if self.failure is None:
            self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, call: Any) -> None:
        try:
            call()
        except OSError as error:
            self.failure = error
            # What it still has would fail once more when Python ends, with words of its own.
            with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


def line(text: str) -> str:
    """Returns a text as one line that a terminal can only show: what it would obey is replaced."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def lost() -> str:
    """Returns what is wrong with standard output; nothing if all could be shown there."""
    sys.stdout.flush()
    failure = getattr(sys.stdout, "failure", None)
    return f"standard output: {describe(failure)}" if failure else ""


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Puts a `Screen` in front of standard output and of standard error."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = own = Screen(sys.stdout), Screen(sys.stderr)
    try:
        yield
    finally:
        for stream in own:
            stream.flush()
        sys.stdout, sys.stderr = before
