"""The records of a chunk of an ensemble: metrics of every epoch, logged steps, divergence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcnn.train import loop, steps
from jaxcnn.train.ensemble_program import EnsembleProgram
from jaxcnn.train.loop import HostMetrics
from jaxcnn.train.many_result import ManyResult
from jaxcnn.train.members import Members
from jaxcnn.train.state import TrainState
from jaxcnn.train.step_log import NO_LOG, Rows, StepLog


class EnsembleMonitor:
    """Records the metrics of a chunk, see `jaxcnn.train.loop.Monitor`."""

    ended = False  # the members end together, after the last epoch

    def __init__(
        self,
        members: Members,
        program: EnsembleProgram,
        epochs: int,
        report: Callable[[int], None],
        log: StepLog = NO_LOG,
    ) -> None:
        """Begins with empty records.

        Args:
            members: those of the chunk; the program may have more, as padding.
            program: of the chunk.
            epochs: number of epochs.
            report: called with the number of images trained on, of all members together.
            log: what else is measured in a step.
        """
        self._members = members
        self._report = report
        self._program = program
        self._log = log
        # Metrics of every epoch, [epochs, E] each.
        self._history = jax.tree.map(
            lambda leaf: np.zeros((epochs, program.chunk), leaf.dtype),
            {"train": steps.zero_train_metrics(log.metrics), "eval": steps.zero_metrics()},
        )
        # The logged steps, float32[R, E, C], and those of a piece that may still be computed.
        count = epochs * program.steps_per_epoch // log.every if log.every else 0
        self._logged = np.full((count, program.chunk, len(log.columns)), np.nan, np.float32)
        self._rows: Rows | None = None

    def tree(self, state: TrainState, sums: steps.Metrics) -> dict[str, Any]:
        """Returns states and all metrics, see `jaxcnn.train.loop.Monitor.tree`."""
        tree = {"state": state, "sums": sums, "history": self._history}
        return tree | ({"logged": self._logged} if self._log.every else {})

    def progress(self, step: int) -> dict[str, Any]:
        """Returns the step."""
        return {"step": step}

    def score(self) -> None:
        """Returns None: there is no best checkpoint of several runs."""

    def restore(self, tree: dict[str, Any], progress: dict[str, Any], saved: Path) -> int:
        """Takes over the records of a checkpoint, see `jaxcnn.train.loop.Monitor.restore`."""
        self._history = jax.tree.map(np.array, tree["history"])
        self._logged = np.array(tree.get("logged", self._logged))
        return int(progress["step"])

    def check(self, sums: steps.Metrics | HostMetrics) -> None:
        """Records the rows of a piece that is done.

        A member that diverges is marked at the end, the others go on.
        """
        rows, self._rows = self._rows, None
        if rows is not None and rows.steps:
            values = self._program.to_host({"rows": rows.values})["rows"]
            at = np.array(rows.steps) // self._log.every - 1
            self._logged[at] = values[:, : len(at)].swapaxes(0, 1)

    def advance(self, piece: loop.Piece) -> None:
        """Reports the images of all members, see `jaxcnn.train.loop.Monitor.advance`."""
        self._rows = piece.rows
        self._report(len(self._members) * piece.images)

    def trained(self, seconds: float) -> None:
        """Does nothing: the time is not recorded."""

    def epoch(
        self, epoch: int, step: int, train: HostMetrics, scored: HostMetrics | None, seconds: float
    ) -> None:
        """Records the metrics of an epoch, see `jaxcnn.train.loop.Monitor.epoch`."""
        for split, metrics in (("train", train), ("eval", scored)):
            if metrics is not None:
                arrays = jax.tree.leaves(self._history[split])
                for array, values in zip(arrays, jax.tree.leaves(metrics), strict=True):
                    array[epoch - 1] = values

    def result(self, states: TrainState | None) -> ManyResult:
        """Returns curves from the metrics of every epoch, and which members have diverged.

        Args:
            states: of the program's members at the end, or None.
        """
        count = len(self._members)
        history = jax.tree.map(lambda array: array[:, :count], self._history)
        train, scored = history["train"], history["eval"]
        per_epoch = self._program.steps_per_epoch
        step = per_epoch * np.arange(1, len(train["count"]) + 1)[:, None]
        first = train["nonfinite_step"].min(axis=0)
        # The last update can make the evaluation non-finite although no training loss was.
        spoilt = ~np.isfinite(scored["loss_sum"][-1]) & (first == steps.NEVER)
        first = np.where(spoilt, step[-1], first)
        curves: dict[str, np.ndarray] = {}
        for split, sums in history.items():
            for name, of in (("loss", "loss_sum"), ("accuracy", "correct")):
                ratio = sums[of] / np.maximum(sums["count"], 1)
                known = (sums["count"] > 0) & (step < first)
                curves[f"{split}_{name}"] = np.where(known, ratio, np.nan).astype(np.float32)
        metrics: dict[str, np.ndarray] = {}
        for name, sums in train.get("metrics", {}).items():
            known = np.isfinite(sums) & (step < first)
            metrics[name] = np.where(known, sums / per_epoch, np.nan).astype(np.float32)
        every, logged = self._log.every, self._logged[:, :count]
        return ManyResult(
            self._members,
            curves,
            scored["correct"][-1],
            int(scored["count"][-1, 0]),
            np.where(first == steps.NEVER, 0, first).astype(np.int32),
            jax.tree.map(lambda leaf: leaf[:count], states),
            metrics=metrics,
            logged=every * np.arange(1, len(logged) + 1, dtype=np.int32),
            log={name: logged[:, :, i] for i, name in enumerate(self._log.columns) if every},
        )
