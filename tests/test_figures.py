"""The pictures of a run, beyond what test_report sees of them on the page."""

from collections.abc import Iterator

import pytest
from matplotlib import pyplot

from jaxcnn import figures
from jaxcnn.training import EpochRecord


@pytest.fixture(autouse=True)
def nothing_stays_open() -> Iterator[None]:
    yield
    pyplot.close("all")


def _record(epoch: int, accuracy: float) -> EpochRecord:
    fields = dict.fromkeys(EpochRecord.__dataclass_fields__, 0.5)
    return EpochRecord(
        **fields | {"epoch": epoch, "train_accuracy": accuracy, "test_accuracy": accuracy}
    )


def _places(accuracies: list[float]) -> list[float]:
    """How high the test accuracies lie, as shares of the picture's height."""
    figure = figures.learning_curves([_record(i, a) for i, a in enumerate(accuracies, start=1)])
    figure.canvas.draw()
    axes = figure.axes[1]
    heights = [axes.transData.transform((1, 100 * accuracy))[1] for accuracy in accuracies]
    return [float(height - axes.bbox.y0) / axes.bbox.height for height in heights]


def test_a_tenth_of_the_errors_is_as_far_up_each_time() -> None:
    places = _places([0.1, 0.9, 0.99, 0.999])
    assert places[3] - places[2] == pytest.approx(places[2] - places[1], rel=0.2)


def test_few_per_cent_are_even() -> None:
    places = _places([0.6, 0.7, 0.8])
    assert places[2] - places[1] == pytest.approx(places[1] - places[0])


def test_no_error_at_all_is_on_the_picture() -> None:
    assert all(-0.01 <= place <= 1.01 for place in _places([0.5, 1.0, 1.0]))


def test_a_single_epoch_has_a_single_tick() -> None:
    figure = figures.learning_curves([_record(1, 0.5)])
    low, high = figure.axes[0].get_xlim()
    assert [tick for tick in figure.axes[0].get_xticks() if low <= tick <= high] == [1]
