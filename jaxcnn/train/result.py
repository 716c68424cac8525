"""The records and the result of a training run, and the observers that are notified of them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from jaxcnn.devices import environment
from jaxcnn.storage import document
from jaxcnn.train import steps
from jaxcnn.train.state import TrainState


@dataclass(frozen=True)
class EpochRecord:
    """What is known after an epoch. Losses are mean cross entropies in nats.

    Attributes:
        epoch: counted from 1.
        step: optimizer steps taken since the start.
        learning_rate: of the last step; None if the optimizer was given from outside.
        train_loss: mean over the epoch, in training mode (with dropout and augmentation).
        train_accuracy: right answers in 0..1, likewise.
        test_loss: in evaluation mode, over the whole test split.
        test_accuracy: in 0..1, likewise.
        seconds: spent on training in this epoch, without evaluation.
        images_per_second: trained on in those seconds.
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

    def asdict(self) -> dict[str, Any]:
        """Returns the record as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Result:
    """What a training run leaves.

    Attributes:
        state: at the end.
        history: a record for each epoch.
        test_correct: right answers on the test split, after the last epoch.
        test_total: pictures in it.
        parameters: of the network.
        train_seconds: of all epochs, without compilation and evaluation.
        eval_seconds: of all evaluations.
        compile_seconds: of compiling every program of the run.
        images_per_second: trained on in `train_seconds`.
    """

    state: TrainState
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
        """Right answers on the test split, in 0..1."""
        return self.test_correct / self.test_total


class Observer(Protocol):
    """Is told how a run goes on. `jaxcnn.cli.progress` and `jaxcnn.train.records` have some."""

    def start(self, *, epochs: int, images: int, history: Sequence[EpochRecord] = ()) -> None:
        """Training begins: so many epochs of so many images; a resumed run has done some."""
        ...

    def advance(self, *, images: int, metrics: steps.Metrics) -> None:
        """So many images were trained on; `metrics` are the epoch's sums, on the device."""
        ...

    def epoch(self, record: EpochRecord) -> None:
        """An epoch has been trained and evaluated."""
        ...

    def stop(self) -> None:
        """Training has ended, well or not, perhaps before it began."""
        ...


@dataclass
class Progress:
    """What a run has done, beside its state.

    Attributes:
        history: of the epochs that have ended.
        test_correct: right answers of the last evaluation.
        test_total: pictures in it.
        train_seconds: of all epochs.
        eval_seconds: of all evaluations.
        compile_seconds: of all processes that the run took.
        epoch_seconds: of the epoch that has not ended.
        versions: of the packages; see `jaxcnn.devices.environment`.
        device: likewise.
    """

    history: list[EpochRecord] = dataclasses.field(default_factory=list)
    test_correct: int = 0
    test_total: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    compile_seconds: float = 0.0
    epoch_seconds: float = 0.0
    versions: dict[str, str] = dataclasses.field(default_factory=environment.versions)
    device: str = dataclasses.field(default_factory=environment.device)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        """Returns the progress that a checkpoint has.

        Raises:
            ValueError: it is none.
        """
        document.check(values, _PROGRESS, "progress")
        history = [{name: record[name] for name in _RECORD} for record in values["history"]]
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
    "versions": {str: str},
    "device": str,
}
