"""Signals that end a run: the first asks it to save and stop, the second ends it at once."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Terminated(BaseException):
    """SIGTERM was received. Like `KeyboardInterrupt` no `except Exception` catches it."""


def raise_on_sigterm() -> None:
    """Makes SIGTERM raise `Terminated`, so that clean-up runs as it does after Ctrl-C."""
    if _is_main_thread():
        signal.signal(signal.SIGTERM, _raise_terminated)


@contextlib.contextmanager
def raising_on_sigterm() -> Iterator[None]:
    """Does so within, and restores the previous handler afterwards.

    After a SIGTERM the signal stays ignored, since the process is about to end.
    """
    before = signal.getsignal(signal.SIGTERM)
    raise_on_sigterm()
    try:
        yield
    finally:
        if _is_main_thread() and signal.getsignal(signal.SIGTERM) != signal.SIG_IGN:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _raise_terminated(*_: object) -> None:
    # Some programs, timeout(1) for example, send it twice: the second must not stop the clean-up.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class Interrupts:
    """A flag that a signal sets, see `watched`.

    Attributes:
        received: the first signal, or None.
    """

    received: signal.Signals | None = None

    def __call__(self) -> bool:
        """Returns whether a signal was received."""
        return self.received is not None

    def take(self, number: int) -> None:
        """Sets the flag and prints a notice; for the second signal it ends the process."""
        if self.received is not None:
            os._exit(128 + number)
        self.received = signal.Signals(number)
        again = "Ctrl-C" if number == signal.SIGINT else self.received.name
        notice = f"\nstopping after the current steps; {again} again ends the process at once\n"
        with contextlib.suppress(OSError):  # the terminal is gone
            os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, notice.encode())


@contextlib.contextmanager
def watched() -> Iterator[Interrupts]:
    """Yields a flag that Ctrl-C or SIGTERM sets; it stays unset in another than the main thread.

    Python runs a handler between two bytecodes of the main thread, which may wait for the device
    for seconds. So a thread sets the flag: it reads the pipe to which the C side of every handler
    writes the signal's number at once (`signal.set_wakeup_fd`).
    """
    interrupts = Interrupts()
    if not _is_main_thread():
        yield interrupts
        return
    readable, writable = os.pipe()
    os.set_blocking(writable, False)

    def read() -> None:
        while received := os.read(readable, 1):  # empty once the other end is closed
            if received[0] in _SIGNALS:
                interrupts.take(received[0])

    thread = threading.Thread(target=read, daemon=True)
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
