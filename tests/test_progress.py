import dataclasses
import io

import jax.numpy as jnp
import pytest
from rich.console import Console

from jaxcnn import progress
from jaxcnn.steps import Metrics
from tests.test_records import RECORD


def metrics() -> Metrics:
    return {"loss_sum": jnp.array(50.0), "correct": jnp.array(75), "count": jnp.array(100)}


def drive(terminal: bool) -> str:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=120, highlight=False)
    shown = progress.make_progress(console)
    assert isinstance(shown, progress.BarProgress) == terminal
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


def test_remaining_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 90.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    out = io.StringIO()
    lines = progress.LineProgress(Console(file=out, width=200, highlight=False))
    lines.start(epochs=41, images=10)
    lines.epoch(RECORD)
    assert "1:00:00 left" in out.getvalue()


def test_a_resumed_run_is_timed_by_what_it_has_done_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = iter([0.0, 90.0])
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    out = io.StringIO()
    lines = progress.LineProgress(Console(file=out, width=200, highlight=False))
    lines.start(epochs=41, images=10, history=[RECORD] * 20)
    lines.epoch(dataclasses.replace(RECORD, epoch=21))
    assert "0:30:00 left" in out.getvalue()


def test_the_bar_of_a_resumed_run_starts_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = io.StringIO()
    bar = progress.BarProgress(Console(file=out, force_terminal=True, width=120, highlight=False))
    bar.start(epochs=4, images=200, history=[RECORD])
    bar.advance(images=100, metrics=metrics())
    bar.advance(images=100, metrics=metrics())
    bar.stop()
    assert "epoch 2/4" in out.getvalue()
    assert " 38 %" in out.getvalue()
