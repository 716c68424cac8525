"""The training loop. One loop serves a single run and an ensemble.

A `Program` has the compiled computations, a `Monitor` records what they return, and `train` calls
them in order: the pieces of an epoch, the evaluation, and checkpoints in between.
"""

import time
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jaxcnn.errors import StoppedError
from jaxcnn.storage.shared import SharedStore
from jaxcnn.train.state import TrainState
from jaxcnn.train.step_log import Rows
from jaxcnn.train.steps import Metrics

# Metrics on the host: arrays of shape [], or [E] for an ensemble, and pytrees of them.
HostMetrics = Mapping[str, Any]


@dataclass(frozen=True)
class Piece:
    """Consecutive training steps of an epoch, computed or still being computed by the device.

    Attributes:
        state: after the steps.
        sums: metrics of the epoch until then.
        steps: number of optimizer steps.
        images: number of images trained on.
        rows: of the steps that are logged; None without a log.
    """

    state: TrainState
    sums: Metrics
    steps: int
    images: int
    rows: Rows | None = None


class Program(Protocol):
    """The compiled computations of one run, or of E runs at once.

    For E runs every array of the state and of the metrics has a leading axis E.
    """

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch."""
        ...

    def zero_sums(self) -> Metrics:
        """Returns the training metrics of zero steps, on the devices."""
        ...

    def place(self, tree: Any) -> Any:
        """Returns a pytree, as `fetch` returned it, with its arrays on the devices."""
        ...

    def fetch(self, tree: Any) -> Any:
        """Returns a pytree with arrays that a checkpoint can hold."""
        ...

    def to_host(self, sums: Metrics) -> HostMetrics:
        """Waits for metrics and returns them as NumPy arrays."""
        ...

    def epoch(
        self, state: TrainState, sums: Metrics, epoch: int, first: int, cuts: Container[int]
    ) -> Iterator[Piece]:
        """Trains an epoch piece by piece, without waiting for the device.

        Args:
            state: before the first piece, which donates it.
            sums: metrics of the epoch until then.
            epoch: counted from 1.
            first: number of steps of the epoch that were trained before.
            cuts: numbers of steps in the epoch after which a piece ends.
        """
        ...

    def evaluate(self, state: TrainState) -> HostMetrics:
        """Returns the metrics of the evaluation split."""
        ...


class Monitor(Protocol):
    """Follows a loop: records the metrics, notifies observers, and ends a run that has diverged."""

    @property
    def ended(self) -> bool:
        """Whether the run is over although epochs are left."""
        ...

    def tree(self, state: TrainState, sums: Metrics) -> dict[str, Any]:
        """Returns the pytree that a checkpoint holds.

        Args:
            state: of the run or runs; "state" in the pytree.
            sums: metrics of the epoch that has begun; "sums" in the pytree.
        """
        ...

    def progress(self, step: int) -> dict[str, Any]:
        """Returns what a checkpoint holds beside the arrays, as JSON values."""
        ...

    def score(self) -> float | None:
        """Returns the accuracy by which the best checkpoint is chosen, if there is one."""
        ...

    def restore(self, tree: dict[str, Any], progress: dict[str, Any], saved: Path) -> int:
        """Takes over what a checkpoint holds, and returns its step.

        Args:
            tree: as `tree` returned it.
            progress: as `progress` returned it.
            saved: the checkpoint's folder.
        """
        ...

    def check(self, sums: Metrics | HostMetrics) -> None:
        """Waits for the steps of some metrics, and ends a run whose loss is no longer finite.

        Raises:
            DivergedError: it is not.
        """
        ...

    def advance(self, piece: Piece) -> None:
        """A piece was handed to the device."""
        ...

    def trained(self, seconds: float) -> None:
        """Training has taken some more seconds."""
        ...

    def epoch(
        self, epoch: int, step: int, train: HostMetrics, scored: HostMetrics | None, seconds: float
    ) -> None:
        """An epoch has ended.

        Args:
            epoch: counted from 1.
            step: number of optimizer steps since the start.
            train: metrics of the epoch.
            scored: metrics of the evaluation split; None if it was not evaluated.
            seconds: spent on the evaluation.
        """
        ...


@dataclass
class Position:
    """How far a loop has come.

    Attributes:
        state: of the run or runs.
        sums: metrics of the epoch that has begun.
        step: number of optimizer steps taken.
        saved: folder of the latest checkpoint.
    """

    state: TrainState
    sums: Metrics
    step: int = 0
    saved: Path | None = None


def resume(
    store: SharedStore | None, program: Program, monitor: Monitor, start: TrainState
) -> Position:
    """Returns where training begins: at the latest checkpoint, or at the start.

    Args:
        store: the checkpoints, if there are any.
        program: what trains.
        monitor: takes over what the checkpoint holds.
        start: the initial state.
    """
    found = store and store.resume(monitor.tree(start, program.zero_sums()))
    if not found:
        return Position(program.place(start), program.zero_sums())
    tree, progress, saved = found
    step = monitor.restore(tree, progress, saved)
    return Position(program.place(tree["state"]), program.place(tree["sums"]), step, saved)


def train(
    program: Program,
    monitor: Monitor,
    position: Position,
    epochs: int,
    store: SharedStore | None = None,
    *,
    evaluate_once: bool = False,
    interrupted: Callable[[], bool] = lambda: False,
) -> TrainState:
    """Trains from a position to the end of the last epoch, or until the monitor ends the run.

    Args:
        program: what trains.
        monitor: what records it.
        position: where training begins; updated in place.
        epochs: number of epochs of the whole run.
        store: of checkpoints: saved as often as it says, at the end, and when a stop is requested.
        evaluate_once: whether to evaluate after the last epoch only.
        interrupted: polled after every piece: whether to save and stop.

    Returns:
        The state at the end.

    Raises:
        StoppedError: `interrupted` returned True.
        DivergedError: `monitor.check` has ended the run.
        WriteError: a checkpoint cannot be written.
    """
    here, per_epoch = position, program.steps_per_epoch
    total, period = epochs * per_epoch, store.every.steps(per_epoch) if store else 0
    began = time.perf_counter()

    def over() -> bool:
        return here.step == total or monitor.ended

    def pause(can_save: bool = True) -> None:
        """Saves a checkpoint where one is due or a stop is requested, and stops if so."""
        nonlocal began
        stop = interrupted()
        due = stop or over() or (period and here.step % period == 0)
        if store and can_save and due:
            if here.step % per_epoch:
                monitor.check(here.sums)  # waits for the device
                monitor.trained(time.perf_counter() - began)
            tree = program.fetch(monitor.tree(here.state, here.sums))
            score = None if here.step % per_epoch else monitor.score()
            here.saved = store.save(here.step, tree, monitor.progress(here.step), score)
            began = time.perf_counter()
        if stop and not over():
            where = f"saved in {here.saved}" if here.saved else "nothing saved"
            raise StoppedError(f"stopped at step {here.step} of {total}, {where}")

    pause(can_save=False)
    while not over():
        epoch, first = here.step // per_epoch + 1, here.step % per_epoch
        cuts = range(period - (here.step - first) % period, per_epoch, period) if period else ()
        began = time.perf_counter()
        for piece in program.epoch(here.state, here.sums, epoch, first, cuts):
            # The metrics of the piece before are there without keeping the device waiting.
            monitor.check(here.sums)
            here.state, here.sums, here.step = piece.state, piece.sums, here.step + piece.steps
            monitor.advance(piece)
            if here.step % per_epoch:
                pause()
        sums = program.to_host(here.sums)  # waits for the end of the epoch
        monitor.check(sums)
        monitor.trained(time.perf_counter() - began)

        began = time.perf_counter()
        last = here.step == total
        scored = program.evaluate(here.state) if last or not evaluate_once else None
        monitor.epoch(epoch, here.step, sums, scored, time.perf_counter() - began)
        here.sums = program.zero_sums()
        pause()
    return here.state
