"""Early stopping: an observer that ends a run once a metric has not improved for some epochs."""

import math
from collections.abc import Sequence

from jaxcnn.errors import UserError
from jaxcnn.train.result import EpochRecord, Observer


class EarlyStopping(Observer):
    """Ends a run once a metric of the epochs' records has not improved for some epochs.

    A resumed run decides as an uninterrupted one, and one object may serve several runs, one after
    the other.
    """

    def __init__(
        self, patience: int, metric: str = "test_loss", *, maximize: bool | None = None
    ) -> None:
        """Takes what is watched.

        Args:
            patience: number of epochs in a row without a new best value after which the run ends.
            metric: of `EpochRecord.asdict`, user-defined ones included. A value of None, one that
                was not finite, is no improvement.
            maximize: whether larger values are better. Default: for accuracies.

        Raises:
            UserError: `patience` is not a whole number from 1.
        """
        if type(patience) is not int or patience < 1:
            raise UserError(f"patience is a whole number of epochs from 1, got {patience!r}")
        self._patience = patience
        self._metric = metric
        larger = metric.endswith("accuracy") if maximize is None else maximize
        self._sign = -1.0 if larger else 1.0
        self._best = math.inf
        self._waited = 0

    def start(
        self, *, epochs: int, images: int, history: Sequence[EpochRecord] = (), step: int = 0
    ) -> None:
        """Begins with what a resumed run has done before, see `Observer.start`."""
        self._best, self._waited = math.inf, 0
        for record in history:
            self._watch(record)

    def epoch(self, record: EpochRecord) -> bool:
        """Returns whether the run ends here.

        Raises:
            UserError: the record has no such metric; the message names those that it has.
        """
        self._watch(record)
        return self._waited >= self._patience

    def _watch(self, record: EpochRecord) -> None:
        """Counts the epochs since the best value."""
        values = record.asdict()
        if self._metric not in values:
            raise UserError(
                f"early stopping watches {self._metric!r}, which is no metric of this run: give "
                f"one of {', '.join(values)}"
            )
        value = values[self._metric]
        if value is not None and self._sign * value < self._best:
            self._best, self._waited = self._sign * value, 0
        else:
            self._waited += 1
