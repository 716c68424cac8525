"""The progress of a run in a notebook."""

import time
from collections.abc import Sequence
from typing import Any

import jax

from jaxcnn.display import html
from jaxcnn.train.result import EpochRecord, Observer, make_curves
from jaxcnn.train.steps import Metrics

_SECONDS = 0.5  # between two updates of the page


class NotebookProgress(Observer):
    """An observer of `fit`: a bar, the latest metrics and the learning curves, in the cell.

    It needs neither widgets nor an event loop, so `fit` may run in a thread.
    """

    def __init__(self) -> None:
        self._display: Any = None
        self._history: list[EpochRecord] = []
        self._text = ""

    def start(
        self, *, epochs: int, images: int, history: Sequence[EpochRecord] = (), step: int = 0
    ) -> None:
        """Shows the bar.

        Args:
            epochs: of the whole run.
            images: per epoch.
            history: epochs that a resumed run has behind it.
            step: number of optimizer steps that it has behind it.
        """
        from IPython.display import display

        self._epochs, self._images, self._history = epochs, images, list(history)
        self._done = len(history) * images
        self._pending: Metrics | None = None
        self._shown = time.monotonic()
        self._display = display(self, display_id=True)

    def advance(self, *, images: int, metrics: Metrics) -> None:
        """Shows the metrics of the previous call, which the device has computed by now.

        Args:
            images: trained on since the previous call.
            metrics: the epoch's sums so far, on the device.
        """
        before, self._pending = self._pending, metrics
        if before is not None and time.monotonic() - self._shown > _SECONDS:
            sums = jax.device_get(before)
            loss, accuracy = (float(sums[name] / sums["count"]) for name in ("loss_sum", "correct"))
            self._update(f"loss {loss:.4f}, accuracy {accuracy:.2%}")
        self._done += images

    def epoch(self, record: EpochRecord) -> None:
        """Adds the epoch to the curves."""
        self._pending = None
        self._history.append(record)
        self._done = len(self._history) * self._images
        self._update(
            f"test loss {record.test_loss:.4f}, test accuracy {record.test_accuracy:.2%}, "
            f"{record.images_per_second:,.0f} images/s"
        )

    def stop(self) -> None:
        """Shows how far the run has come."""
        if self._display is not None:
            self._update(self._text)

    def _update(self, text: str) -> None:
        self._text, self._shown = text, time.monotonic()
        self._display.update(self)

    def _repr_html_(self) -> str:
        """Returns the bar and the curves."""
        share = self._done / (self._epochs * self._images)
        bar = f'<progress value="{share:.4f}" max="1" style="width: 300px"></progress>'
        return bar + html.render([(repr(self),)], make_curves(self._history))

    def __repr__(self) -> str:
        """Returns a line of text."""
        if self._display is None and not self._history:
            return "NotebookProgress()"
        return f"epoch {len(self._history)} of {self._epochs}  {self._text}"
