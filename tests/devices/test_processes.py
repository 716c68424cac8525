"""Real processes over loopback."""

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import types
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcnn.devices import processes
from jaxcnn.errors import UserError
from jaxcnn.storage import checkpoint
from jaxcnn.study.runs import RUNS
from jaxcnn.study.specification import SPECIFICATION
from jaxcnn.study.study import run_study
from tests import meeting, scores
from tests.conformance import dataset
from tests.several import PATIENCE, end, start


@pytest.fixture(scope="module")
def met(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """What two processes share with each other, see `tests.meeting`."""
    folder = tmp_path_factory.mktemp("met")
    for status, text in end(start(folder, 2, 1, "meet")):
        assert status == 0, text
    return folder, [json.loads((folder / f"{process}.json").read_text()) for process in (0, 1)]


def test_process_0_speaks_for_all(met: tuple[Path, list[dict[str, Any]]]) -> None:
    zero, one = met[1]
    assert zero["pid"] != one["pid"]
    assert (zero["count"], one["count"]) == ([2, True], [2, False])
    assert zero["on_main"] == one["on_main"] == [0, "said", None]
    assert zero["on_main error"] == one["on_main error"] == "UserError: wrong at 0"
    assert zero["on_main other error"] == "ValueError: 0"
    assert one["on_main other error"] == "UserError: process 0 failed: 0"


def test_process_0_goes_first(met: tuple[Path, list[dict[str, Any]]]) -> None:
    zero, one = met[1]
    assert (zero["main_first"], one["main_first"]) == ([0, False], [1, True])
    for found in met[1]:  # an error of either is one of both
        assert found["main_first error 0"] == "UserError: wrong at 0"
        assert found["main_first error 1"] == "UserError: wrong at 1"


def test_all_know_what_each_has(met: tuple[Path, list[dict[str, Any]]]) -> None:
    for found in met[1]:
        assert found["gather"] == [
            {"number": 0, "text": "", "size": 2**40},
            {"number": 1, "text": "é", "size": 2**40},
        ]
        assert found["same"] == "nothing"
        assert found["other"].startswith("UserError: process 1 has another chunk than process 0: ")
        # The result is that of the call before; once it is true, nothing is polled any more.
        assert found["any_process"] == [[False, True, True, True], 2]


def test_arrays_of_process_0_are_bit_identical_in_all(
    met: tuple[Path, list[dict[str, Any]]],
) -> None:
    expected = {
        "float32": ["float32", [3], "000000800100a07f01000000"],
        "bfloat16": ["bfloat16", [3], "0080817f0100"],
        "bool": ["bool", [2], "0100"],
        "scalar": ["int32", [], "f9ffffff"],
        "empty": ["float32", [0, 2], ""],
        "key": ["key<fry>", [], "0000000005000000"],
    }
    for found in met[1]:
        assert found["broadcast"] == expected


def test_sigterm_ends_one_of_several_processes_as_it_ends_one(
    met: tuple[Path, list[dict[str, Any]]],
) -> None:
    """Jax would put a handler of its own in the place of Python's."""
    for found in met[1]:
        assert found["sigterm"] == "Terminated"


def test_checkpoints_are_read_and_written_by_process_0(
    met: tuple[Path, list[dict[str, Any]]],
) -> None:
    for found in met[1]:
        assert found["checkpoints"] == [None, True, 4, [0, 7], [0, 1, 2]]
    (saved,) = checkpoint.list_checkpoints(met[0] / "checkpoints")
    assert saved.step == 4
    assert saved.verify()["progress"] == {"step": 4}


def test_each_process_has_its_part_of_the_arrays(met: tuple[Path, list[dict[str, Any]]]) -> None:
    for found, rows, part, members in zip(
        met[1],
        ([0, 2, 3], [2, 4, 3]),
        ([[[0, 1], [2, 3]]], [[[4, 5], [6, 7]]]),
        ([0, 1], [2, 3]),
        strict=True,
    ):
        assert found["arrays"] == [
            rows,
            [[1, 4, 2], part],
            True,
            [0, 1, 2],
            members,
            True,
            [0, 1, 2, 3],
            [*meeting.DELICATE["float32"][1], 2],
            "mesh data=2 of 2 processes",
        ]
        assert found["ensemble"].startswith("UserError: several processes have the states")


def test_a_study_of_two_processes_is_that_of_one(
    met: tuple[Path, list[dict[str, Any]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.train.ensemble.fit_chunks", scores.chunks)
    runs = run_study(meeting.STUDY, dataset(), tmp_path)
    for found in met[1]:
        assert found["study"] == [run.correct for run in runs]
        assert found["other study"].startswith("UserError: process 1 has another seeds than")
    for name in (RUNS, SPECIFICATION):
        assert (met[0] / "study" / name).read_bytes() == (tmp_path / name).read_bytes()


def test_one_process_needs_no_other(tmp_path: Path) -> None:
    """Without `join` everything happens here and now."""
    asked = iter([True, False])
    poll = processes.any_process(lambda: next(asked))
    assert [poll(), poll()] == [True, False]
    for run in (processes.on_main, processes.main_first):
        assert run(pow)(2, exp=3) == 8
        with pytest.raises(ZeroDivisionError):
            run(divmod)(1, 0)
    assert processes.gather(value := object()) == [value]
    assert processes.broadcast(value) is value
    assert processes.main_only("main", otherwise="other") == "main"
    assert processes.default_axes("data") == {}
    processes.require_one("not raised")
    processes.check_same({"seed": 1})
    processes.leave(3)  # does nothing


def test_what_only_one_process_may_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxcnn.devices.processes.count", lambda: 2)
    with pytest.raises(UserError, match=r"^two of them$"):
        processes.require_one("two of them")
    assert processes.default_axes("data") == {"data": jax.device_count()}
    for main, expected in ((True, "main"), (False, "other")):
        monkeypatch.setattr("jaxcnn.devices.processes.is_main", lambda main=main: main)
        assert processes.main_only("main", otherwise="other") == expected


def test_several_processes_agree_a_call_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxcnn.devices.processes.count", lambda: 2)
    asked = iter([False, True, False, False])
    poll = processes.any_process(lambda: next(asked))
    assert [poll() for _ in range(5)] == [False, False, True, True, True]


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError, ValueError])
def test_a_lost_process_is_one_sentence(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(text: str) -> None:
        with processes.noticing_losses():
            raise error(text)

    lost = "UNAVAILABLE: connection closed"
    with pytest.raises(error):
        failing(lost)  # of this process alone
    monkeypatch.setattr("jaxcnn.devices.processes.count", lambda: 2)
    with pytest.raises(UserError, match="another process of this run is gone"):
        failing(lost)
    for other in ("RESOURCE_EXHAUSTED: out of memory", "INVALID_ARGUMENT: x", "Shapes: (3,)"):
        with pytest.raises(error, match=re.escape(other)):
            failing(other)


def test_leaving_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[object] = []
    for name in ("stdout", "stderr"):
        stream = types.SimpleNamespace(flush=lambda name=name: left.append(name))
        monkeypatch.setattr(sys, name, stream)
    monkeypatch.setattr(os, "_exit", left.append)
    monkeypatch.setattr(time, "sleep", lambda seconds: left.append(f"{seconds} s"))
    monkeypatch.setattr("jaxcnn.devices.processes.count", lambda: 2)
    for main, expected in ((False, [2]), (True, ["1 s", 2])):
        monkeypatch.setattr("jaxcnn.devices.processes.is_main", lambda main=main: main)
        left.clear()
        processes.leave(2)
        assert left == ["stdout", "stderr", *expected]


def train(folder: Path, count: int, devices: int, *action: str) -> dict[str, np.ndarray]:
    """Runs to the end and returns parameters and losses."""
    for status, text in end(start(folder, count, devices, *action)):
        assert status == 0, text
    return dict(np.load(folder / "end.npz"))


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(one["numbers"], other["numbers"], atol=1e-4)
    np.testing.assert_allclose(one["losses"], other["losses"], rtol=1e-4)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What one process with four devices makes of the run."""
    return train(tmp_path_factory.mktemp("alone"), 1, 4)


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_two_processes_stop_together_and_one_or_four_go_on(
    alone: dict[str, np.ndarray], tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    stopped = end(start(begun, 2, 2, "stop", "1"))  # only one of them is asked to
    for _, text in stopped:
        assert "stopped at step" in text
    steps = [saved.step for saved in checkpoint.list_checkpoints(begun / "checkpoints")]
    assert 5 in steps
    assert steps[-1] % 5  # saved once more when they stopped
    for count in (1, 4):
        folder = tmp_path / f"{count}"
        shutil.copytree(begun, folder)
        assert_same(train(folder, count, 4 // count), alone)


GONE = (("kill", "0"), ("kill", "1"), ("hang", "1"))


@pytest.fixture(scope="module")
def bereft(
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[tuple[str, str], tuple[Path, int, str]]:
    """How the other of two processes ends where one is gone, and the folder of the run.

    All cases at once: most of the time they wait for a sign of life.
    """
    started = {}
    for case in GONE:
        folder = tmp_path_factory.mktemp("-".join(case))
        started[case] = folder, start(folder, 2, 2, *case)
    found = {}
    for (action, victim), (folder, running) in started.items():
        survivor = running[1 - int(victim)]
        _, text = survivor.communicate(timeout=PATIENCE)
        for process in running:
            process.kill()
            process.communicate()
        found[action, victim] = folder, survivor.returncode, text
    return found


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.parametrize("case", GONE, ids="-".join)
def test_a_process_that_is_gone_ends_the_other(
    case: tuple[str, str], bereft: dict[tuple[str, str], tuple[Path, int, str]]
) -> None:
    _, status, text = bereft[case]
    if case == ("kill", "1"):
        assert status == 2
        assert text.strip().splitlines()[-1].endswith(f"error: {processes.LOST}")
    else:  # jax can be faster, which aborts a process that misses process 0 or one that hangs
        assert status in (2, -signal.SIGABRT)
        assert processes.LOST in text or "another task died" in text


@pytest.mark.slow
@pytest.mark.lightly_compiled
def test_a_run_of_which_a_process_was_gone_goes_on(
    alone: dict[str, np.ndarray], bereft: dict[tuple[str, str], tuple[Path, int, str]]
) -> None:
    folder, *_ = bereft["kill", "0"]
    assert_same(train(folder, 2, 2), alone)


@pytest.fixture
def initialized(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options that jax is given, which finds no other process then."""
    given: list[dict[str, Any]] = []

    def initialize(**options: Any) -> None:
        given.append(options)
        raise [RuntimeError("DEADLINE\n EXCEEDED"), ValueError("no cluster")][len(given) - 1]

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return given


def test_joining(initialized: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"do not find each other \(DEADLINE EXCEEDED\): check"):
        processes.join("3", "host:9000", 2)
    with pytest.raises(UserError, match=r"jax recognizes no cluster here \(no cluster\): give"):
        processes.join("auto", "", -1)
    waits = {"heartbeat_timeout_seconds": 30, "shutdown_timeout_seconds": 30}
    assert initialized == [
        {
            "coordinator_address": "host:9000",
            "num_processes": 3,
            "process_id": 2,
            "cluster_detection_method": "deactivate",
            **waits,
        },
        waits,
    ]


def test_waiting_for_the_others_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    explained = threading.Event()

    def write(text: str) -> None:
        said.append(text)
        explained.set()

    monkeypatch.setattr(sys, "stderr", types.SimpleNamespace(write=write))
    monkeypatch.setattr(processes, "_PATIENCE", 0)
    monkeypatch.setattr(jax.distributed, "initialize", lambda **_: explained.wait(PATIENCE))
    processes.join("2", "host:9000", 0)
    (line,) = said
    assert line.startswith("waiting up to five minutes for the other processes of this run: check")


def test_flags(initialized: list[dict[str, Any]]) -> None:
    processes.join("1", "", -1)  # this process alone
    assert (processes.count(), processes.is_main()) == (1, True)
    for values, named in (
        (("none", "", -1), "--processes takes a number from 1, or auto, got 'none'"),
        (("0", "", -1), "--processes takes a number from 1, or auto, got '0'"),
        (("2", "", -1), "--processes 2 takes --coordinator HOST:PORT"),
        (("2", "", 0), "--processes 2 takes --coordinator HOST:PORT"),
        (("2", "host", 0), "--processes 2 takes --coordinator HOST:PORT"),
        (("2", "host:65536", 0), "--processes 2 takes --coordinator HOST:PORT"),
        (("2", "host:0", 0), "--processes 2 takes --coordinator HOST:PORT"),
        (("2", "host:1", -1), "--process-id from 0 to 1, got 'host:1' and -1"),
        (("2", "host:1", 2), "--process-id from 0 to 1, got 'host:1' and 2"),
        (("1", "host:1", -1), "--process-id from 0 to 0, got 'host:1' and -1"),
        (("1", "", 0), "--processes 1 takes --coordinator HOST:PORT"),
        (("auto", "host:1", -1), "--processes auto finds --coordinator"),
        (("auto", "", 0), "--processes auto finds --coordinator"),
    ):
        with pytest.raises(UserError, match=named):
            processes.join(*values)
    assert not initialized
