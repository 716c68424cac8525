import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxcnn import interrupts

# Waits without running any Python, as a run does that waits for the device.
WAIT = """
import ctypes, sys
from jaxcnn import interrupts
wait = ctypes.CDLL(None).sleep
with interrupts.watched() as interrupted:
    print("ready", flush=True)
    for _ in range(30):
        wait(1)
        if interrupted() and not sys.argv[1:]:
            break
    print(interrupted.received.name, flush=True)
"""


def start(*arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WAIT, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_first_signal_is_remembered(name: str) -> None:
    process = start()
    process.send_signal(signal.Signals[name])
    out, err = process.communicate(timeout=40)
    assert (out, process.returncode) == (f"{name}\n", 0)
    assert "again leaves at once" in err


@pytest.mark.parametrize(("name", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_the_second_one_ends_the_process_at_once(name: str, status: int) -> None:
    process = start("stubborn")
    process.send_signal(signal.Signals[name])
    assert process.stderr is not None
    while "again" not in process.stderr.readline():
        pass
    assert process.poll() is None
    began = time.perf_counter()
    process.send_signal(signal.Signals[name])
    process.communicate(timeout=40)
    assert process.returncode == status
    assert time.perf_counter() - began < 5


def test_everything_is_as_before_afterwards() -> None:
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    threads = threading.active_count()
    with interrupts.watched() as interrupted:
        assert not interrupted()
        os.kill(os.getpid(), signal.SIGTERM)
        while not interrupted():
            pass
        assert interrupted.received == signal.SIGTERM
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert threading.active_count() == threads


def test_other_threads_only_look_on() -> None:
    seen: list[bool] = []

    def look() -> None:
        with interrupts.watched() as interrupted:
            seen.append(interrupted())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert seen == [False]
