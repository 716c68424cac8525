"""The loop, with a program that only counts: a step adds one to the state and to the sums."""

import itertools
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcnn.errors import DivergedError, StoppedError
from jaxcnn.storage.checkpoint import Every
from jaxcnn.train import loop


class Counter:
    """A program with five steps of ten images an epoch, in pieces of two."""

    steps_per_epoch = 5

    def __init__(self) -> None:
        self.pieces: list[tuple[int, int, int]] = []

    def zero_sums(self) -> Any:
        return {"count": 0}

    def place(self, tree: Any) -> Any:
        return tree

    def fetch(self, tree: Any) -> Any:
        return tree

    def to_host(self, sums: Any) -> Any:
        return {"count": np.int32(sums["count"])}

    def epoch(
        self, state: Any, sums: Any, epoch: int, first: int, cuts: Container[int]
    ) -> Iterator[loop.Piece]:
        while first < self.steps_per_epoch:
            last = min(first + 2, self.steps_per_epoch)
            last = first + 1 if first + 1 in cuts else last
            state, sums = state + last - first, {"count": sums["count"] + last - first}
            self.pieces.append((epoch, first, last))
            yield loop.Piece(state, sums, last - first, 10 * (last - first))
            first = last

    def evaluate(self, state: Any) -> Any:
        return {"count": np.int32(100 * state)}


class Listener:
    """A monitor that remembers what it is told; a run diverges with a step of the epoch."""

    def __init__(self, diverges_at: int = 99, ends_after: int = 99) -> None:
        self.images = 0
        self.ends_after = ends_after
        self.epochs: list[tuple[int, int, int, int | None]] = []
        self.diverges_at = diverges_at

    @property
    def ended(self) -> bool:
        return len(self.epochs) >= self.ends_after

    def tree(self, state: Any, sums: Any) -> dict[str, Any]:
        return {"state": state, "sums": sums}

    def progress(self, step: int) -> dict[str, Any]:
        return {"step": step, "epochs": list(self.epochs)}

    def score(self) -> float | None:
        return len(self.epochs) / 10

    def restore(self, tree: dict[str, Any], progress: dict[str, Any], saved: Path) -> int:
        self.epochs = list(progress["epochs"])
        return int(progress["step"])

    def check(self, sums: Any) -> None:
        if sums["count"] >= self.diverges_at:
            raise DivergedError("diverged")

    def advance(self, piece: loop.Piece) -> None:
        self.images += piece.images

    def trained(self, seconds: float) -> None:
        assert seconds >= 0

    def epoch(self, epoch: int, step: int, train: Any, scored: Any, seconds: float) -> None:
        assert seconds >= 0
        evaluated = None if scored is None else int(scored["count"])
        self.epochs.append((epoch, step, int(train["count"]), evaluated))


class Shelf:
    """A store in memory."""

    def __init__(self, every: Every) -> None:
        self.every = every
        self.saved: list[tuple[int, Any, Any, float | None]] = []

    def resume(self, like: Any) -> tuple[Any, dict[str, Any], Path] | None:
        if not self.saved:
            return None
        step, tree, progress, _ = self.saved[-1]
        return tree, progress, Path(f"step-{step}")

    def save(
        self, step: int, tree: Any, progress: Mapping[str, Any], score: float | None = None
    ) -> Path:
        self.saved.append((step, tree, progress, score))
        return Path(f"step-{step}")


STRAIGHT = [(1, 5, 5, 500), (2, 10, 5, 1000)]


def run(
    store: Shelf | None = None, monitor: Listener | None = None, **options: Any
) -> tuple[Counter, Listener, Any]:
    program, monitor = Counter(), monitor or Listener()
    position = loop.resume(store, program, monitor, 0)  # type: ignore[arg-type]
    state = loop.train(program, monitor, position, 2, store, **options)
    return program, monitor, state


def test_every_step_is_taken_once() -> None:
    program, monitor, state = run()
    assert state == 10
    assert monitor.epochs == STRAIGHT
    assert monitor.images == 100
    pieces = [(0, 2), (2, 4), (4, 5)]
    assert program.pieces == [(epoch, *piece) for epoch in (1, 2) for piece in pieces]


def test_evaluated_once() -> None:
    _, monitor, _ = run(evaluate_once=True)
    assert monitor.epochs == [(1, 5, 5, None), (2, 10, 5, 1000)]


@pytest.mark.parametrize(
    ("every", "steps"),
    [
        (Every(1), [5, 10]),
        (Every(2), [10]),
        (Every(0), [10]),
        (Every(3, "steps"), [3, 6, 9, 10]),
        (Every(1, "steps"), list(range(1, 11))),
    ],
)
def test_saved_as_often_as_requested(every: Every, steps: list[int]) -> None:
    store = Shelf(every)
    _, monitor, _ = run(store)
    assert monitor.epochs == STRAIGHT
    assert [step for step, *_ in store.saved] == steps
    # A checkpoint in the middle of an epoch has no score.
    scores = {step: score for step, _, _, score in store.saved}
    assert scores == {step: None if step % 5 else step / 50 for step in steps}
    for step, tree, _, _ in store.saved:
        assert tree == {"state": step, "sums": {"count": step % 5}}


def test_a_run_that_is_stopped_at_every_poll_does_the_same() -> None:
    store, stops = Shelf(Every(0)), 0
    while True:
        polls = itertools.count()
        try:
            _, monitor, state = run(store, interrupted=lambda polls=polls: next(polls) == 1)
        except StoppedError as error:
            stops += 1
            step = store.saved[-1][0]
            assert str(error) == f"stopped at step {step} of 10, saved in step-{step}"
        else:
            break
    assert stops == 5  # after 2, 4, 5, 7 and 9 steps
    assert (state, monitor.epochs) == (10, STRAIGHT)


def test_stopped_before_anything_was_done() -> None:
    store = Shelf(Every(1))
    with pytest.raises(StoppedError, match="stopped at step 0 of 10, nothing saved"):
        run(store, interrupted=lambda: True)
    assert store.saved == []
    with pytest.raises(StoppedError, match="stopped at step 2 of 10, nothing saved"):
        run(interrupted=itertools.chain([False], itertools.repeat(True)).__next__)


def test_a_run_that_has_ended_is_not_trained_again() -> None:
    store = Shelf(Every(1))
    run(store)
    program, monitor, state = run(store, interrupted=lambda: True)
    assert (state, monitor.epochs, program.pieces) == (10, STRAIGHT, [])
    assert len(store.saved) == 2


def test_a_run_that_the_monitor_ends_is_over() -> None:
    store = Shelf(Every(0))
    _, monitor, state = run(store, Listener(ends_after=1))
    assert (state, monitor.epochs) == (5, STRAIGHT[:1])
    assert [step for step, *_ in store.saved] == [5]  # as at the end of any run
    again, monitor, state = run(store, Listener(ends_after=1), interrupted=lambda: True)
    assert (state, monitor.epochs, again.pieces) == (5, STRAIGHT[:1], [])
    assert len(store.saved) == 1


@pytest.mark.parametrize(
    ("diverges_at", "steps"),
    [
        (2, 4),  # seen once the next piece is on its way
        (4, 5),
        (5, 5),  # seen at the end of the epoch
    ],
)
def test_a_run_that_diverges_ends(diverges_at: int, steps: int) -> None:
    monitor = Listener(diverges_at)
    with pytest.raises(DivergedError):
        run(monitor=monitor)
    assert monitor.epochs == []
    store = Shelf(Every(2, "steps"))
    program = Counter()
    position = loop.resume(store, program, monitor, 0)  # type: ignore[arg-type]
    with pytest.raises(DivergedError):
        loop.train(program, monitor, position, 2, store)
    # What has diverged is not saved.
    assert all(step < diverges_at for step, *_ in store.saved)
    assert program.pieces[-1][2] <= steps
