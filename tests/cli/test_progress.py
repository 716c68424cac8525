import dataclasses
import io
from types import SimpleNamespace

import jax.numpy as jnp
import pytest
from rich.console import Console

from jaxcnn.cli import progress
from jaxcnn.train.steps import Metrics
from tests.train.test_records import RECORD


def metrics() -> Metrics:
    return {"loss_sum": jnp.array(50.0), "correct": jnp.array(75), "count": jnp.array(100)}


def drive(terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, highlight=False)
    shown = progress.TrainProgress(console)
    shown.start(epochs=2, images=200)
    for _ in range(2):
        shown.advance(images=100, metrics=metrics())
    shown.epoch(RECORD)
    shown.stop()
    return out.getvalue()


def test_plain_lines() -> None:
    text = drive(terminal=False)
    assert "\x1b" not in text
    (line,) = text.splitlines()
    for part in ("epoch 1/2", "loss 0.5000", "accuracy 75.00%", "test accuracy 87.50%"):
        assert part in line
    assert "30,000 images/s" in line
    assert line.endswith("left")


def test_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    text = drive(terminal=True)
    for part in ("epoch 2/2", "50 %", "loss 0.5000", "accuracy 75.00%", "images/s", "left"):
        assert part in text
    assert "test accuracy 87.50%" in text
    assert text.endswith("\x1b[1A\x1b[2K")  # up, and the bar's line is empty


def set_clock(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Sets what the clock shows in turn; rich has another one."""
    clock = iter(seconds)
    monkeypatch.setattr(
        "jaxcnn.cli.progress.time", SimpleNamespace(perf_counter=lambda: next(clock))
    )


def test_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    set_clock(monkeypatch, 10.0, 100.0)
    out = io.StringIO()
    # However narrow, a line is a line.
    lines = progress.TrainProgress(Console(file=out, width=20, highlight=False))
    lines.start(epochs=41, images=10)
    lines.epoch(RECORD)
    assert out.getvalue().endswith(" 1:00:00 left\n")
    assert out.getvalue().count("\n") == 1


def test_a_resumed_run_is_timed_by_what_it_has_done_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_clock(monkeypatch, 10.0, 100.0)
    out = io.StringIO()
    lines = progress.TrainProgress(Console(file=out, width=200, highlight=False))
    lines.start(epochs=41, images=10, history=[RECORD] * 20)
    lines.epoch(dataclasses.replace(RECORD, epoch=22))
    assert "0:14:15 left" in out.getvalue()  # 19 epochs of 45 seconds


def test_the_bar_of_a_resumed_run_starts_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    set_clock(monkeypatch, 10.0, 12.0)
    out = io.StringIO()
    bar = progress.TrainProgress(Console(file=out, force_terminal=True, width=120, highlight=False))
    bar.start(epochs=4, images=200, history=[RECORD] * 2)
    bar.advance(images=100, metrics=metrics())
    bar.advance(images=100, metrics=metrics())
    bar.stop()
    # 100 images in two seconds, and 300 are left.
    for part in ("epoch 3/4", " 62 %", " 50 images/s  0:00:06 left"):
        assert part in out.getvalue()


def test_a_study_has_a_bar_on_a_terminal() -> None:
    file = io.StringIO()
    bar = progress.StudyProgress(
        Console(file=file, force_terminal=True, no_color=True, width=80, highlight=False)
    )
    bar.start(3, 200, 50)
    bar.runs("tune", "sgd", 2)
    bar.advance(100)
    (task,) = bar._progress.tasks
    assert (task.description, task.completed, task.total) == ("tune sgd: 2 runs", 150, 200)
    assert bar._progress.live.is_started
    bar.stop()
    assert not bar._progress.live.is_started
    assert "3 runs have ended already" in file.getvalue()


def test_a_study_has_lines_elsewhere() -> None:
    file = io.StringIO()
    bar = progress.StudyProgress(Console(file=file, width=80))
    bar.start(0, 200, 50)
    bar.runs("tune", "sgd", 2)
    bar.advance(100)
    bar.runs("final", "sgd", 1)
    bar.stop()
    assert file.getvalue().strip().splitlines() == [
        "tune sgd: 2 runs (25% of the study done)",
        "final sgd: 1 runs (75% of the study done)",
    ]
