import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcnn.errors import StoppedError
from jaxcnn.storage import checkpoint
from jaxcnn.train.ensemble import fit_many
from jaxcnn.train.keyboard import saving_on_interrupt
from jaxcnn.train.members import grid
from tests.train.test_fit import DATA, MODEL, RECIPE, Recorder, fit, same

STORE: Any = object()


def press() -> None:
    """Ctrl-C, handled before this returns."""
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def _small_chunks_and_python_s_handler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("jaxcnn.train.feed._CHUNK_STEPS", 2)
    monkeypatch.setattr("jaxcnn.train.feed._CHUNK_BYTES", 1)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


class Pressing(Recorder):
    """Presses Ctrl-C when a number of chunks were handed to the device."""

    def __init__(self, chunk: int) -> None:
        super().__init__()
        self.left = chunk

    def advance(self, **given: Any) -> None:
        super().advance(**given)
        self.left -= 1
        if not self.left:
            press()


def test_saved_before_it_is_raised(tmp_path: Path) -> None:
    policy = checkpoint.Policy(tmp_path, checkpoint.Every(0))
    pressing = Pressing(6)
    with pytest.raises(KeyboardInterrupt, match=r"stopped at step 11 of 14, saved in .*11"):
        fit(checkpoints=policy, observers=[pressing])
    assert pressing.calls[-1] == "stop"
    same(fit(checkpoints=policy), fit())


def test_without_checkpoints_it_is_raised_at_once() -> None:
    pressing = Pressing(2)
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(observers=[pressing])
    assert not caught.value.args
    assert pressing.calls[-1] == "stop"


def test_an_ensemble(tmp_path: Path) -> None:
    policy = checkpoint.Policy(tmp_path, checkpoint.Every(0))
    pressed: list[int] = []

    def report(images: int) -> None:
        if not pressed:
            press()
        pressed.append(images)

    def train(**options: Any) -> np.ndarray:
        result = fit_many(RECIPE, DATA, grid([0, 1]), model=MODEL, **options)
        return result.history["train_loss"]

    with pytest.raises(KeyboardInterrupt, match="saved in"):
        train(checkpoints=policy, report=report)
    np.testing.assert_array_equal(train(checkpoints=policy), train())


def test_pressed_twice() -> None:
    with contextlib.ExitStack() as stack:
        stop = stack.enter_context(saving_on_interrupt(STORE, bool))
        assert not stop()
        press()
        assert stop()
        with pytest.raises(KeyboardInterrupt) as caught:
            press()
        assert not caught.value.args
        with pytest.raises(KeyboardInterrupt, match="had come to its end"):
            stack.close()
    # What is raised within is not replaced.
    with pytest.raises(KeyboardInterrupt, match="at once"), saving_on_interrupt(STORE, bool):
        raise KeyboardInterrupt("at once")


def test_pressed_during_the_last_steps() -> None:
    with pytest.raises(KeyboardInterrupt, match="had come to its end"):  # noqa: SIM117
        with saving_on_interrupt(STORE, bool):
            press()


def test_a_stop_of_another_kind_stays_one() -> None:
    with pytest.raises(StoppedError), saving_on_interrupt(STORE, lambda: True):
        raise StoppedError


def test_a_program_that_handles_the_signal_itself() -> None:
    received: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    with saving_on_interrupt(STORE, bool) as stop:
        press()
        assert not stop()
    assert received == [signal.SIGINT]
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_in_a_thread() -> None:
    polls: list[Callable[[], bool]] = []

    def work() -> None:
        with saving_on_interrupt(STORE, os.getpid) as stop:  # type: ignore[arg-type]
            polls.append(stop)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert polls == [os.getpid]
