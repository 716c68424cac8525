"""The standard streams of a command: a command completes its work even if nobody can read them."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxcnn.errors import describe


class Screen:
    """A standard stream that records its first failure instead of raising it.

    The stream may be on a full disk, closed by its reader, or missing. Characters that its encoding
    lacks are replaced.

    Attributes:
        failure: the first error of a write, or None.
    """

    def __init__(self, stream: Any) -> None:
        """Wraps a stream, or None where the process was started without it."""
        self._stream = io.StringIO() if stream is None else stream
        self.failure: OSError | None = None
        with contextlib.suppress(AttributeError, ValueError, OSError):  # not every stream can
            stream.reconfigure(errors="replace")

    def write(self, text: str) -> int:
        """Writes a text; after a failure does nothing."""
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream; after a failure does nothing."""
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, call: Callable[[], object]) -> None:
        if self.failure is not None:
            return
        try:
            call()
        except OSError as error:
            self.failure = error
            # Else Python would fail to flush the buffer at its exit and print an error of its own.
            with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())


def line(text: str) -> str:
    """Returns a text as one line without control characters, which a terminal would obey."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def output_failure() -> str:
    """Returns the failure of standard output in words, or "" if everything was written."""
    sys.stdout.flush()
    error = getattr(sys.stdout, "failure", None)
    return f"standard output: {describe(error)}" if error else ""


@contextlib.contextmanager
def guarded() -> Iterator[None]:
    """Wraps standard output and standard error in a `Screen` each, and unwraps them afterwards."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = screens = Screen(sys.stdout), Screen(sys.stderr)
    try:
        yield
    finally:
        for stream in screens:
            stream.flush()
        sys.stdout, sys.stderr = before
