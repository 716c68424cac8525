"""Signals that end a run: the first asks it to save and stop, the second ends it at once."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(BaseException):
    """SIGTERM came."""


def raise_on_sigterm() -> None:
    """Makes SIGTERM end a command as Ctrl-C does: what is open is closed and cleared away."""

    def handler(*_: object) -> None:
        # Some send it twice at once, timeout(1) say: what closes and clears away goes on.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


@contextlib.contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Does so within, and leaves the signal after that as it was; once it has come, for good."""
    before = signal.getsignal(signal.SIGTERM)
    raise_on_sigterm()
    try:
        yield
    finally:
        ended = signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
        if threading.current_thread() is threading.main_thread() and not ended:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


class Interrupts:
    """Remembers the signal that asked to stop. See `watched`."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __call__(self) -> bool:
        """Returns whether a signal has come."""
        return self.received is not None

    def take(self, number: int) -> None:
        """Takes note of a signal; a second one ends the process."""
        if self.received is None:
            self.received = signal.Signals(number)
            again = "Ctrl-C" if number == signal.SIGINT else self.received.name
            _say(f"\nstopping after the present steps; {again} again leaves at once\n")
        else:
            os._exit(128 + number)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # a terminal that is gone
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, line.encode())


@contextlib.contextmanager
def watched() -> Iterator[Interrupts]:
    """Watches for Ctrl-C and SIGTERM; only the main thread can.

    Python runs handlers between two of its own instructions, and the main thread may wait for the
    device for seconds. So a thread reads the signals from a pipe that the operating system's side
    of the handler writes to at once.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    readable, writable = os.pipe()
    os.set_blocking(writable, False)

    def watch() -> None:
        # An empty read: the other end was closed below.
        while received := os.read(readable, 1):
            if received[0] in _SIGNALS:
                interrupts.take(received[0])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
    wakeup = signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
    try:
        yield interrupts
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writable)
        thread.join()
        os.close(readable)
