"""The progress of a run or a study: a bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import jax
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from jaxcnn.cli.notebook import NotebookProgress
from jaxcnn.study.runs import Phase
from jaxcnn.study.study import StudyObserver
from jaxcnn.train.result import EpochRecord, Observer
from jaxcnn.train.steps import Metrics


class StudyProgress(StudyObserver):
    """Shows one bar for a whole study on a terminal, and a line for every optimizer elsewhere."""

    def __init__(self, console: Console, what: str = "study") -> None:
        self._console, self._what = console, what
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f} %"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None
        self._images = self._done = 0

    def start(self, runs: int, images: int, done: int) -> None:
        """Opens the bar.

        Args:
            runs: number of runs that have ended already.
            images: number of images that all runs train on.
            done: number of images of the runs that have ended.
        """
        self._images, self._done = images, done
        if runs:
            self._console.print(f"{runs} runs have ended already", soft_wrap=True)
        if self._console.is_terminal:
            self._task = self._progress.add_task("", total=images, completed=done)
            self._progress.start()

    def runs(self, phase: Phase, optimizer: str, count: int) -> None:
        """Names the runs that start.

        Args:
            phase: "tune" or "final".
            optimizer: its name.
            count: number of runs.
        """
        line = f"{phase} {optimizer}: {count} runs"
        if self._task is None:
            share = self._done / max(self._images, 1)
            self._console.print(f"{line} ({share:.0%} of the {self._what} done)", soft_wrap=True)
        else:
            self._progress.update(self._task, description=line)

    def more(self, images: int) -> None:
        """Makes the bar longer by a number of images."""
        self._images += images
        if self._task is not None:
            self._progress.update(self._task, total=self._images)

    def advance(self, images: int) -> None:
        """Moves the bar on by a number of images."""
        self._done += images
        if self._task is not None:
            self._progress.advance(self._task, images)

    def stop(self) -> None:
        """Removes the bar."""
        self._progress.stop()


def progress_bar() -> Observer:
    """Returns an observer of `fit` that shows its progress, in a notebook or on a terminal."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    if hasattr(shell, "kernel"):
        return NotebookProgress()
    return TrainProgress(Console(highlight=False))


class TrainProgress(Observer):
    """An observer of `fit`: a line per epoch, on a terminal also a bar with current metrics."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.fields[metrics]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._pending: tuple[int, Metrics] | None = None

    def start(
        self, *, epochs: int, images: int, history: Sequence[EpochRecord] = (), step: int = 0
    ) -> None:
        """Starts the clock and the bar.

        Args:
            epochs: of the whole run.
            images: per epoch.
            history: epochs that a resumed run has behind it.
            step: number of optimizer steps that it has behind it.
        """
        self._epochs, self._images, self._resumed = epochs, images, len(history)
        self._done = len(history) * images
        self._began = time.perf_counter()
        self._task = self._bar.add_task(
            "",
            total=epochs * images,
            completed=self._done,
            epoch=f"{min(len(history) + 1, epochs)}/{epochs}",
            metrics="",
        )
        self._bar.start()

    def advance(self, *, images: int, metrics: Metrics) -> None:
        """Shows the metrics of the previous call, which the device has computed by now.

        Args:
            images: trained on since the previous call.
            metrics: the epoch's sums so far, on the device.
        """
        self._show_pending()
        self._pending = images, metrics

    def epoch(self, record: EpochRecord) -> None:
        """Prints the epoch's metrics."""
        self._show_pending()
        each = (time.perf_counter() - self._began) / (record.epoch - self._resumed)
        left = each * (self._epochs - record.epoch)
        self._console.print(_epoch_line(record, self._epochs, left), soft_wrap=True)

    def stop(self) -> None:
        """Removes the bar."""
        if not self._bar.disable:
            self._bar.stop()

    def _show_pending(self) -> None:
        """Moves the bar on by the previous call of `advance`, if there was one."""
        pending, self._pending = self._pending, None
        if pending is None or self._bar.disable:
            return
        images, metrics = pending
        sums: dict[str, Any] = jax.device_get(metrics)
        self._done += images
        trained = self._done - self._resumed * self._images
        rate = trained / (time.perf_counter() - self._began)
        left = (self._epochs * self._images - self._done) / rate
        self._bar.update(
            self._task,
            completed=self._done,
            epoch=f"{min(self._done // self._images + 1, self._epochs)}/{self._epochs}",
            metrics=(
                f"loss {sums['loss_sum'] / sums['count']:.4f}  "
                f"accuracy {sums['correct'] / sums['count']:.2%}  "
                f"{rate:,.0f} images/s  {_duration(left)} left"
            ),
        )


def _epoch_line(record: EpochRecord, epochs: int, left: float) -> str:
    return (
        f"epoch {record.epoch:>{len(str(epochs))}}/{epochs}  "
        f"loss {record.train_loss:.4f}  accuracy {record.train_accuracy:.2%}  "
        f"test loss {record.test_loss:.4f}  test accuracy {record.test_accuracy:.2%}  "
        f"{record.images_per_second:,.0f} images/s  {_duration(left)} left"
    )


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
