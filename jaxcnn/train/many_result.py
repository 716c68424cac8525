"""The result of an ensemble."""

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jaxcnn.display import html
from jaxcnn.display.frame import make_frame
from jaxcnn.errors import UserError
from jaxcnn.train.members import Members
from jaxcnn.train.state import TrainState

if TYPE_CHECKING:
    from pandas import DataFrame

    from jaxcnn.display.drawing import Figure

_MOST_ROWS = 20  # of the table that a notebook shows


@dataclass(frozen=True)
class ManyResult:
    """The result of an ensemble.

    Attributes:
        members: the runs, E of them.
        history: "train_loss", "train_accuracy", "eval_loss" and "eval_accuracy" as float32
            [epochs, E], as in `jaxcnn.train.result.EpochRecord`; NaN where nothing was evaluated
            and once a run has diverged.
        correct: int32[E], number of correct predictions in the evaluation after the last epoch.
        total: number of images in it.
        diverged_at: int32[E], the first step, counted from 1, whose loss was not finite; 0 if none.
        states: at the end, every leaf with a leading axis E; None unless `keep_states`.
        metrics: user-defined ones by name, float32[epochs, E]: means over the steps of an epoch;
            NaN where they are not finite and once a run has diverged.
        logged: int32[R], the steps that were logged, counted from 1; none without `log_every`.
        log: their values by name, float32[R, E], see `jaxcnn.train.step_log.StepLog`; NaN where a
            value is not known.
    """

    members: Members
    history: dict[str, np.ndarray]
    correct: np.ndarray
    total: int
    diverged_at: np.ndarray
    states: TrainState | None = dataclasses.field(repr=False)
    metrics: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    logged: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int32))
    log: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def frame(self) -> "DataFrame":
        """Returns the history as a data frame, a row for each member and epoch.

        Its columns are "member", "seed", the hyperparameters, "epoch" and the names of `history`
        and `metrics`.

        Raises:
            UserError: pandas is not installed.
        """
        epochs = np.arange(1, len(self.history["train_loss"]) + 1)
        return self._frame("epoch", epochs, self.history | self.metrics)

    def log_frame(self) -> "DataFrame":
        """Returns the logged steps as a data frame, a row for each member and step.

        Its columns are "member", "seed", the hyperparameters, "step" and the names of `log`, where
        the learning rate of the step is "step_learning_rate": that of the member is its peak.

        Raises:
            UserError: pandas is not installed, or no step was logged.
        """
        if not self.log:
            raise UserError("no step of this ensemble was logged: train it with log_every=10, say")
        names = {"learning_rate": "step_learning_rate"}
        log = {names.get(name, name): values for name, values in self.log.items()}
        return self._frame("step", self.logged, log)

    def _frame(self, name: str, times: np.ndarray, values: dict[str, np.ndarray]) -> "DataFrame":
        """Returns a data frame with a row for each member and time; values are [times, E] each."""
        count = len(self.members)
        each = {"member": np.arange(count), "seed": self.members.seeds}
        each |= dict(self.members.hyperparameters)
        columns = {key: np.repeat(array, len(times)) for key, array in each.items()}
        columns[name] = np.tile(times, count)
        return make_frame(columns | {key: array.T.ravel() for key, array in values.items()})

    def plot(self) -> "Figure":
        """Returns the learning curves of all members as a figure, see `Result.plot`."""
        from jaxcnn.display import curves, drawing  # here: matplotlib delays the start

        with drawing.own_settings():
            return curves.plot_curves(self.history)

    def _repr_html_(self) -> str:
        """Returns what a notebook shows: a row for each combination of hyperparameters, curves."""
        names = list(self.members.hyperparameters)
        accuracy = self.correct / self.total
        groups: dict[tuple[str, ...], list[int]] = {}
        for member in range(len(self.members)):
            group = (f"{self.members.hyperparameters[name][member]:.3g}" for name in names)
            groups.setdefault(tuple(group), []).append(member)
        rows = []
        for values, members in list(groups.items())[:_MOST_ROWS]:
            diverged = int((self.diverged_at[members] > 0).sum())
            mean, spread = accuracy[members].mean(), accuracy[members].std(ddof=len(members) > 1)
            score = f"{mean:.2%} ± {100 * spread:.2f}" if len(members) > 1 else f"{mean:.2%}"
            rows.append((*values, len(members), score, f"{accuracy[members].max():.2%}", diverged))
        if len(groups) > _MOST_ROWS:
            rows.append((f"and {len(groups) - _MOST_ROWS} more",))
        head = (*names, "runs", "accuracy", "best", "diverged")
        return html.render(rows, self.history, head=head)
