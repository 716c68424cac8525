import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxcnn.cli import interrupts

# Ends a test that hangs, in seconds; no signal is late because the machine is busy.
HANG = 300.0

# Runs no Python, as a run does that waits for the device: a lock that is taken twice is waited for
# for ever, and no signal ends that. The alternative is to wait for the signal, and end.
WAIT = """
import ctypes, sys
from jaxcnn.cli import interrupts
with interrupts.watched() as interrupted:
    print("ready", flush=True)
    if sys.argv[1:] == ["stubborn"]:
        libc, lock = ctypes.CDLL(None), ctypes.create_string_buffer(256)
        libc.pthread_mutex_init(lock, None)
        while True:
            libc.pthread_mutex_lock(lock)
    while not interrupted():
        sys.stdin.readline()
    print(interrupted.received.name, flush=True)
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def wait_for_notice(process: subprocess.Popen[str]) -> str:
    """Returns what the first signal made a process say."""
    assert process.stderr is not None
    assert process.stderr.readline() == "\n"
    return process.stderr.readline()


SIGNALS = [("SIGINT", 130, "Ctrl-C"), ("SIGTERM", 143, "SIGTERM")]


@pytest.mark.parametrize(("name", "status", "again"), SIGNALS)
def test_the_first_signal_is_remembered(name: str, status: int, again: str) -> None:
    process = start()
    process.send_signal(signal.Signals[name])
    said = wait_for_notice(process)
    assert said == f"stopping after the current steps; {again} again ends the process at once\n"
    assert process.communicate(input="\n", timeout=HANG) == (f"{name}\n", "")
    assert process.returncode == 0


@pytest.mark.parametrize(("name", "status", "again"), SIGNALS)
def test_the_second_one_ends_the_process_at_once(name: str, status: int, again: str) -> None:
    process = start("stubborn")
    process.send_signal(signal.Signals[name])
    assert again in wait_for_notice(process)
    assert process.poll() is None
    process.send_signal(signal.Signals[name])
    process.communicate(timeout=HANG)  # or it would wait for ever
    assert process.returncode == status


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_everything_is_as_before_afterwards(number: signal.Signals) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    wakeup = signal.set_wakeup_fd(writable)
    try:
        threads = set(threading.enumerate())  # those of other tests may end meanwhile
        with interrupts.watched() as interrupted:
            assert not interrupted()
            assert interrupted.received is None
            os.kill(os.getpid(), number)
            while not interrupted():
                time.sleep(0.001)
            assert interrupted.received == number
        assert set(threading.enumerate()) <= threads
    finally:
        assert signal.set_wakeup_fd(wakeup) == writable
        os.close(readable)
        os.close(writable)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_other_signals_are_none_of_ours() -> None:
    with interrupts.watched() as interrupted:
        before = signal.signal(signal.SIGUSR1, lambda *_: None)
        os.kill(os.getpid(), signal.SIGUSR1)
        # The signals come one after the other.
        os.kill(os.getpid(), signal.SIGTERM)
        while not interrupted():
            time.sleep(0.001)
        signal.signal(signal.SIGUSR1, before)
    assert interrupted.received == signal.SIGTERM


def test_nothing_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    closed: list[int] = []
    pipe, close = os.pipe, os.close

    def noted_pipe() -> tuple[int, int]:
        opened.extend(pipe())
        return opened[0], opened[1]

    def noted_close(descriptor: int) -> None:
        closed.append(descriptor)
        close(descriptor)

    monkeypatch.setattr(os, "pipe", noted_pipe)
    monkeypatch.setattr(os, "close", noted_close)
    with interrupts.watched():
        assert len(opened) == 2
        assert not set(opened) & set(closed)
    assert set(opened) <= set(closed)


def test_a_process_without_stderr_speaks_as_well(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "__stderr__", None)
    interrupts.Interrupts().take(signal.SIGINT)
    assert "Ctrl-C again ends the process at once" in capfd.readouterr().err


def test_other_threads_only_look_on() -> None:
    seen: list[bool] = []

    def look() -> None:
        with interrupts.watched() as interrupted:
            seen.append(interrupted())
        interrupts.raise_on_sigterm()  # only the main thread can

    handler = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [False]
    assert signal.getsignal(signal.SIGTERM) == handler


def test_sigterm_ends_a_command_as_ctrl_c_does() -> None:
    closed: list[bool] = []

    def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            while True:
                time.sleep(0.001)
        finally:
            closed.append(True)

    handler = signal.getsignal(signal.SIGTERM)
    try:
        interrupts.raise_on_sigterm()
        with pytest.raises(interrupts.Terminated):
            work()
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert closed == [True]
    assert not issubclass(interrupts.Terminated, Exception)  # what catches errors lets it pass


def test_a_second_sigterm_does_not_stop_the_first() -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        interrupts.raise_on_sigterm()
        with pytest.raises(interrupts.Terminated):
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)  # would end this process
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_handler_of_the_caller_comes_back() -> None:
    def mine(*_: object) -> None:
        """Somebody's own."""

    before = signal.signal(signal.SIGTERM, mine)
    try:
        with interrupts.raising_on_sigterm():
            assert signal.getsignal(signal.SIGTERM) is not mine
        assert signal.getsignal(signal.SIGTERM) is mine
        with pytest.raises(interrupts.Terminated), interrupts.raising_on_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN  # the process is ending
    finally:
        signal.signal(signal.SIGTERM, before)
