"""The records of a single run: metrics of every epoch, times, observers, divergence."""

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import optax

from jaxcnn.data.dataset import Dataset
from jaxcnn.devices import environment, processes
from jaxcnn.errors import DivergedError, UserError
from jaxcnn.networks.inspect import count_parameters
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.storage import checkpoint
from jaxcnn.train import steps
from jaxcnn.train.loop import HostMetrics, Piece
from jaxcnn.train.result import (
    EachEpoch,
    EpochFunction,
    EpochRecord,
    Observer,
    Progress,
    Result,
    versions,
)
from jaxcnn.train.state import TrainState
from jaxcnn.train.step_log import Rows


class RunMonitor:
    """Records one run, see `jaxcnn.train.loop.Monitor`.

    Attributes:
        done: everything that was recorded until now.
    """

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        schedule: optax.Schedule | None,
        observers: Sequence[Observer | EpochFunction] = (),
        checkpoints: checkpoint.Policy | None = None,
        own_schedule: optax.Schedule | None = None,
    ) -> None:
        """Begins the records of a run.

        Args:
            recipe: of the run.
            dataset: that the run trains on.
            schedule: the learning rate by step; None for an optimizer that was passed in.
            observers: notified of progress, in process 0.
            checkpoints: where a resumed run is reported.
            own_schedule: the user-defined schedule, if there is one.
        """
        if callable(observers) or isinstance(observers, Observer):
            raise UserError("observers takes a list of observers: put this one into [ ]")
        self.done = Progress(epochs=recipe.epochs)
        self._recipe = recipe
        self._images = len(dataset.train)
        self._schedule = schedule
        self._observers: Sequence[Observer] = processes.main_only(
            [EachEpoch(one) if callable(one) else one for one in observers], []
        )
        self._checkpoints = checkpoints
        self._own_schedule = own_schedule
        self._step = 0
        self._rows: Rows | None = None

    @property
    def ended(self) -> bool:
        """Whether an observer has ended the run."""
        return self.done.ended

    @contextlib.contextmanager
    def observing(self) -> Iterator[None]:
        """Notifies the observers of the start and, however the run ends, of its end."""
        with contextlib.ExitStack() as stack:
            for observer in self._observers:
                stack.callback(observer.stop)
            for observer in self._observers:
                observer.start(
                    epochs=self._recipe.epochs,
                    images=self._images,
                    history=self.done.history,
                    step=self._step,
                )
            yield

    def tree(self, state: TrainState, sums: steps.Metrics) -> dict[str, Any]:
        """Returns the pytree that a checkpoint holds, see `checkpoint_tree`."""
        return checkpoint_tree(state, sums)

    def progress(self, step: int) -> dict[str, Any]:
        """Returns `Progress` as JSON values."""
        return asdict(self.done)

    def score(self) -> float | None:
        """Returns the accuracy on the test split after the last epoch."""
        return self.done.history[-1].test_accuracy

    def restore(self, tree: dict[str, Any], progress: dict[str, Any], saved: Path) -> int:
        """Takes over the progress of a checkpoint, and reports what has changed.

        Args:
            tree: of the checkpoint.
            progress: of the checkpoint, see `progress`.
            saved: the checkpoint's folder.

        Returns:
            The step of the checkpoint.

        Raises:
            UserError: the checkpoint holds no progress of a run.
        """
        try:
            self.done = Progress.from_json(progress)
        except ValueError as error:
            raise UserError(
                f"{saved} does not say how far its run had come ({error}): give another --workdir"
            ) from None
        assert self._checkpoints is not None
        report = self._checkpoints.report
        report(f"resuming from {saved}")
        here = {**versions(), "device": environment.device()}
        there = {**self.done.versions, "device": self.done.device}
        changed = [
            f"{name} {there.get(name)} then and {here.get(name)} now"
            for name in here
            if there.get(name) != here.get(name)
        ]
        if changed:
            report(
                "the resumed run may not be bit-identical to an uninterrupted one: "
                + ", ".join(changed)
            )
        self._step = int(tree["state"].step)
        if 0 < self.done.epochs < (epochs := self._recipe.epochs):
            self.done.ended = False
            line = f"going on to {epochs} epochs instead of {self.done.epochs}"
            if self._schedule is not None:
                line += f": from step {self._step} on with the learning rates of a run of {epochs}"
            report(line)
        self.done.epochs = self._recipe.epochs
        return self._step

    def check(self, sums: steps.Metrics | HostMetrics) -> None:
        """Hands on the rows of a chunk that is done; ends the run if a loss was not finite.

        Raises:
            DivergedError: it was not; the message names the step and the remedy.
        """
        step = int(sums["nonfinite_step"])  # waits for the chunk that has the rows
        rows, self._rows = self._rows, None
        if rows is not None and rows.steps:
            records = rows.records()
            for observer in self._observers:
                observer.log(records)
        if step != steps.NEVER:
            raise self._diverged(step)

    def advance(self, piece: Piece) -> None:
        """Notifies the observers of a chunk, see `jaxcnn.train.loop.Monitor.advance`."""
        self._rows = piece.rows
        for observer in self._observers:
            observer.advance(images=piece.images, metrics=piece.sums)

    def trained(self, seconds: float) -> None:
        """Adds to the training time of the epoch."""
        self.done.epoch_seconds += seconds

    def epoch(
        self, epoch: int, step: int, train: HostMetrics, scored: HostMetrics | None, seconds: float
    ) -> None:
        """Records an epoch, see `jaxcnn.train.loop.Monitor.epoch`.

        Raises:
            DivergedError: the last update has made the network's outputs non-finite.
        """
        assert scored is not None
        if not np.isfinite(scored["loss_sum"]):
            raise self._diverged(step)
        done, schedule = self.done, self._schedule
        record = EpochRecord(
            epoch=epoch,
            step=step,
            learning_rate=None if schedule is None else float(schedule(step - 1)),
            train_loss=float(train["loss_sum"] / train["count"]),
            train_accuracy=float(train["correct"] / train["count"]),
            test_loss=float(scored["loss_sum"] / scored["count"]),
            test_accuracy=float(scored["correct"] / scored["count"]),
            seconds=done.epoch_seconds,
            images_per_second=self._images / done.epoch_seconds,
            metrics=_means(train.get("metrics", {}), step // epoch),
        )
        done.history.append(record)
        done.test_correct, done.test_total = int(scored["correct"]), int(scored["count"])
        done.train_seconds += done.epoch_seconds
        done.eval_seconds += seconds
        done.epoch_seconds = 0.0
        # All are notified before one may end the run, and it ends in all processes.
        notify = processes.on_main(lambda: [bool(one.epoch(record)) for one in self._observers])
        done.ended = any(notify())

    def result(self, state: TrainState) -> Result:
        """Returns the result of the run that has ended with a state."""
        done = self.done
        return Result(
            state=state,
            history=tuple(done.history),
            test_correct=done.test_correct,
            test_total=done.test_total,
            parameters=count_parameters(state.params),
            train_seconds=done.train_seconds,
            eval_seconds=done.eval_seconds,
            compile_seconds=done.compile_seconds,
            images_per_second=len(done.history) * self._images / done.train_seconds,
        )

    def _diverged(self, step: int) -> DivergedError:
        """Returns the error of a run whose loss is not finite at a step."""
        where = f"the training loss is not finite any more at step {step}"
        if self._schedule is None:
            return DivergedError(f"{where}: give the optimizer a smaller learning rate")
        where += f", where the learning rate is {float(self._schedule(step - 1)):.3g}"
        if self._own_schedule is not None:
            return DivergedError(f"{where}: let the schedule return smaller ones")
        return DivergedError(
            f"{where}: give --learning-rate a smaller value than {self._recipe.learning_rate:g}"
        )


def _means(sums: Mapping[str, Any], count: int) -> dict[str, float | None]:
    """Returns the means of an epoch of `count` steps; None for one that is not finite."""
    means = {name: float(value) / count for name, value in sums.items()}
    return {name: mean if math.isfinite(mean) else None for name, mean in means.items()}


def checkpoint_tree(state: TrainState, sums: steps.Metrics) -> dict[str, Any]:
    """Returns the pytree that a checkpoint of a run holds.

    Args:
        state: of the run.
        sums: metrics of the epoch that has begun.

    Returns:
        "network", the variables to evaluate, for whoever only uses the network; "state" and "sums",
        from which training resumes.
    """
    return {"network": state.eval_variables, "state": state, "sums": sums}
