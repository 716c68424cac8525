"""The records and the result of a training run, and the observers that are notified of them."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcnn.devices import environment
from jaxcnn.display import html
from jaxcnn.display.frame import make_frame
from jaxcnn.display.series import Curves
from jaxcnn.networks.cpu import library
from jaxcnn.storage import document
from jaxcnn.train import steps
from jaxcnn.train.state import TrainState

if TYPE_CHECKING:
    from pandas import DataFrame

    from jaxcnn.display.drawing import Figure


@dataclass(frozen=True)
class EpochRecord:
    """The metrics of an epoch. Accuracies are in 0..1.

    Losses are mean cross entropies in nats, without label smoothing, or means of the loss that was
    given to `jaxcnn.train.fit.fit`.

    Attributes:
        epoch: counted from 1.
        step: number of optimizer steps since the start.
        learning_rate: of the last step; None if the optimizer was passed in.
        train_loss: mean over the epoch, in training mode (with dropout and augmentation).
        train_accuracy: over the epoch, in training mode.
        test_loss: over the whole test split, in evaluation mode.
        test_accuracy: over the whole test split, in evaluation mode.
        seconds: training time of the epoch, without evaluation.
        images_per_second: training images per second of training time.
        metrics: user-defined ones by name, means over the steps; None where they are not finite.
    """

    epoch: int
    step: int
    learning_rate: float | None
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float
    images_per_second: float
    metrics: Mapping[str, float | None] = dataclasses.field(default_factory=dict)

    def asdict(self) -> dict[str, Any]:
        """Returns the record as JSON values, the user-defined metrics among the others."""
        values = asdict(self)
        return values | values.pop("metrics")


def make_curves(history: Sequence[EpochRecord]) -> Curves:
    """Returns the losses and accuracies of a run, float64[epochs, 1] each, in the records' order.

    Args:
        history: a record for each epoch.
    """
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    return {name: np.array([[getattr(one, name)] for one in history]) for name in names}


@dataclass(frozen=True)
class Result:
    """The result of a training run.

    Attributes:
        state: at the end.
        history: a record for each epoch; fewer than the recipe has where an observer ended the run.
        test_correct: number of correct predictions on the test split, after the last epoch.
        test_total: number of images in the test split.
        parameters: number of parameters, frozen ones included.
        train_seconds: of all epochs, without compilation and evaluation.
        eval_seconds: of all evaluations.
        compile_seconds: of compiling every program of the run.
        images_per_second: training images per second of training time.
    """

    state: TrainState = dataclasses.field(repr=False)
    history: tuple[EpochRecord, ...]
    test_correct: int
    test_total: int
    parameters: int
    train_seconds: float
    eval_seconds: float
    compile_seconds: float
    images_per_second: float

    @property
    def test_accuracy(self) -> float:
        """Share of correct predictions on the test split, in 0..1."""
        return self.test_correct / self.test_total

    def frame(self) -> "DataFrame":
        """Returns the history as a data frame: a row for each epoch, a column for each value.

        User-defined metrics have columns of their own.

        Raises:
            UserError: pandas is not installed.
        """
        rows = [one.asdict() for one in self.history]
        return make_frame({name: [row[name] for row in rows] for name in rows[0]})

    def plot(self) -> "Figure":
        """Returns the learning curves as a figure of matplotlib, which pyplot does not know."""
        from jaxcnn.display import curves, drawing  # here: matplotlib delays the start

        with drawing.own_settings():
            return curves.plot_curves(make_curves(self.history))

    def _repr_html_(self) -> str:
        """Returns what a notebook shows: scores, times and learning curves."""
        score = f"{self.test_accuracy:.2%} ({self.test_correct:,} of {self.test_total:,})"
        speed = f"{self.train_seconds:.1f} s, {self.images_per_second:,.0f} images/s"
        rows = [
            ("test accuracy", score),
            ("epochs", len(self.history)),
            ("trained in", speed),
            ("compiled in", f"{self.compile_seconds:.1f} s"),
            ("parameters", f"{self.parameters:,}"),
        ]
        return html.render(rows, make_curves(self.history))


class Observer:
    """Is notified of a run's progress; a subclass overrides what it wants to know.

    Examples are `jaxcnn.cli.progress` and `jaxcnn.train.records`.
    """

    def start(
        self, *, epochs: int, images: int, history: Sequence[EpochRecord] = (), step: int = 0
    ) -> None:
        """Training begins.

        Args:
            epochs: number of epochs of the whole run.
            images: number of training images in an epoch.
            history: of the epochs that a resumed run has done before.
            step: number of optimizer steps that it has taken before.
        """

    def advance(self, *, images: int, metrics: steps.Metrics) -> None:
        """A chunk of training steps was handed to the device.

        Args:
            images: number of images in the chunk.
            metrics: of the epoch until then, on the device; looking at them waits for the chunk.
        """

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Some logged steps have been computed; called in a run with a step log only.

        Before a checkpoint is saved, this has been called with all rows until then.

        Args:
            rows: "step", counted from 1, and the values of the step by name, see
                `jaxcnn.train.step_log.StepLog`: float, or None for one that is not finite.
        """

    def epoch(self, record: EpochRecord) -> bool | None:
        """An epoch has been trained and evaluated.

        Returns:
            True to end the run here, as if this epoch had been its last.
        """
        return None

    def stop(self) -> None:
        """Training has ended, successfully or not, perhaps before it began."""


# Is called with the record of each epoch; True ends the run, see `Observer.epoch`.
EpochFunction = Callable[[EpochRecord], Any]


class EachEpoch(Observer):
    """Calls a function with the record of each epoch; `fit` makes one of a plain function."""

    def __init__(self, function: EpochFunction) -> None:
        """Takes the function; the run ends if it returns True."""
        self._function = function

    def epoch(self, record: EpochRecord) -> bool:
        """Calls the function, see `Observer.epoch`."""
        # Not any true value: a function may return whatever it likes, its tracker's answer say.
        return self._function(record) is True


def versions() -> dict[str, str]:
    """Returns what decides the last bits of a run beside its device.

    Returns:
        The versions of the packages, see `jaxcnn.devices.environment.versions`; and as "kernels"
        what computes the convolutional layers, "native" or "xla".
    """
    return {**environment.versions(), "kernels": library.description()}


@dataclass
class Progress:
    """The progress of a run, which a checkpoint holds beside the state.

    Attributes:
        history: of the epochs that have ended.
        test_correct: number of correct predictions in the latest evaluation.
        test_total: number of images in it.
        train_seconds: of all epochs.
        eval_seconds: of all evaluations.
        compile_seconds: of the run, each time that it was started.
        epoch_seconds: training time of the epoch that has not ended.
        ended: whether an observer has ended the run.
        epochs: number of epochs of the whole run; 0 in older checkpoints.
        versions: see `versions`.
        device: see `jaxcnn.devices.environment.device`.
    """

    history: list[EpochRecord] = dataclasses.field(default_factory=list)
    test_correct: int = 0
    test_total: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    compile_seconds: float = 0.0
    epoch_seconds: float = 0.0
    ended: bool = False
    epochs: int = 0
    versions: dict[str, str] = dataclasses.field(default_factory=versions)
    device: str = dataclasses.field(default_factory=environment.device)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        """Returns the progress from a checkpoint's JSON values.

        Raises:
            ValueError: a value is missing or has another type.
        """
        values = {"ended": False, "epochs": 0} | values  # which older checkpoints do not have
        document.check(values, _PROGRESS, "progress")
        history = [
            {name: record[name] for name in _RECORD} | {"metrics": record.get("metrics", {})}
            for record in values["history"]
        ]
        for record in history:
            document.check(record["metrics"], {str: (float, None)}, "metrics")
        if history and not 0 <= values["test_correct"] <= values["test_total"] != 0:
            raise ValueError("test_correct is more than test_total")
        known = {name: values[name] for name in _PROGRESS}
        return cls(**{**known, "history": [EpochRecord(**record) for record in history]})


_RECORD = {"epoch": int, "step": int, "learning_rate": (float, None)} | dict.fromkeys(
    "train_loss train_accuracy test_loss test_accuracy seconds images_per_second".split(), float
)
_PROGRESS: dict[str, Any] = {
    "history": [_RECORD],
    "test_correct": int,
    "test_total": int,
    **dict.fromkeys("train_seconds eval_seconds compile_seconds epoch_seconds".split(), float),
    "ended": bool,
    "epochs": int,
    "versions": {str: str},
    "device": str,
}
