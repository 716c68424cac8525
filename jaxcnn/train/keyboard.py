"""Ctrl-C, and the stop button of a notebook, while a run trains."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from jaxcnn.devices import processes
from jaxcnn.errors import StoppedError
from jaxcnn.storage.shared import SharedStore


@contextlib.contextmanager
def saving_on_interrupt(
    store: SharedStore | None, interrupted: Callable[[], bool]
) -> Iterator[Callable[[], bool]]:
    """Saves a checkpoint before Ctrl-C raises `KeyboardInterrupt`; a second one raises at once.

    Raised between two steps of Python, it would find the state of the run given away to the device.
    Nothing changes without checkpoints, outside the main thread, and where the program handles the
    signal itself.

    Args:
        store: the checkpoints, if there are any.
        interrupted: whether a stop is requested otherwise.

    Yields:
        What the training loop is to poll: whether to save and stop, in any process.

    Raises:
        KeyboardInterrupt: SIGINT was received; the message says where the run was saved.
    """
    main = threading.current_thread() is threading.main_thread()
    if not (store and main and signal.getsignal(signal.SIGINT) is signal.default_int_handler):
        yield processes.any_process(interrupted)
        return
    received = False

    def take(number: int, frame: object) -> None:
        nonlocal received
        if received:
            raise KeyboardInterrupt
        received = True

    signal.signal(signal.SIGINT, take)
    message = "the run had come to its end, which is saved"
    try:
        yield processes.any_process(lambda: received or interrupted())
    except StoppedError as error:
        if not received:
            raise
        message = str(error)
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if received:
        raise KeyboardInterrupt(message)
