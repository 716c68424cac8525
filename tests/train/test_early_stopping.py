from collections.abc import Sequence
from pathlib import Path

import pytest

from jaxcnn.errors import StoppedError, UserError
from jaxcnn.storage import checkpoint
from jaxcnn.train.early_stopping import EarlyStopping
from jaxcnn.train.result import EpochRecord
from tests.train import test_fit
from tests.train.test_fit import RECIPE, Recorder, same, stop_after
from tests.train.test_records import RECORD

pytestmark = pytest.mark.usefixtures("small_chunks")


def records(values: Sequence[float | None], name: str = "test_loss") -> list[EpochRecord]:
    """A record for each value of a metric."""
    if name == "own":
        return [EpochRecord(**vars(RECORD) | {"metrics": {name: value}}) for value in values]
    return [EpochRecord(**vars(RECORD) | {name: value}) for value in values]


def last(stopping: EarlyStopping, history: Sequence[EpochRecord], done: int = 0) -> int:
    """The number of epochs of a run that would have had these records, resumed after `done`."""
    stopping.start(epochs=len(history), images=1, history=history[:done])
    rest = enumerate(history[done:], start=done + 1)
    return next((epoch for epoch, record in rest if stopping.epoch(record)), len(history))


@pytest.mark.parametrize("done", [0, 1, 3, 4])
def test_it_ends_after_epochs_without_improvement(done: int) -> None:
    falling = records([0.5, 0.4, 0.45, 0.4, 0.41, 0.3])  # an equal value is no improvement
    assert last(EarlyStopping(3), falling, done) == 5
    assert last(EarlyStopping(2), falling) == 4
    assert last(EarlyStopping(4), falling, done) == 6
    rising = records([0.5, 0.6, 0.55, 0.6, 0.59, 0.7], "test_accuracy")
    assert last(EarlyStopping(3, "test_accuracy"), rising, done) == 5


def test_user_defined_metrics() -> None:
    history = records([1.0, 2.0, None, None, 3.0], "own")
    assert last(EarlyStopping(2, "own", maximize=True), history) == 4
    assert last(EarlyStopping(2, "own"), history) == 3
    with pytest.raises(UserError, match=r"watches 'other', which is no metric .* test_loss, .*own"):
        last(EarlyStopping(2, "other"), history)


def test_one_object_for_two_runs() -> None:
    stopping = EarlyStopping(1)
    assert last(stopping, records([0.1, 0.2])) == 2
    assert last(stopping, records([0.5, 0.4, 0.3])) == 3


@pytest.mark.parametrize("patience", [0, -1, 1.5, True, "3"])
def test_patience_is_a_number_of_epochs(patience: object) -> None:
    with pytest.raises(UserError, match="patience is a whole number"):
        EarlyStopping(patience)  # type: ignore[arg-type]


def test_a_run(tmp_path: Path) -> None:
    """Resumed in the middle of its last epoch; it waits for the falling learning rate to rise."""
    recipe = RECIPE.replace(epochs=9)
    policy, recorder = checkpoint.Policy(tmp_path), Recorder()

    def fit(**options: object) -> test_fit.Result:
        stopping = EarlyStopping(2, "learning_rate", maximize=True)
        return test_fit.fit(recipe, observers=[stopping, recorder], **options)

    whole = fit()
    assert len(whole.history) == 3
    assert recorder.calls[-2:] == [("epoch", 3), "stop"]
    with pytest.raises(StoppedError):
        fit(checkpoints=policy, interrupted=stop_after(9))
    same(fit(checkpoints=policy), whole)
