"""The files that a run leaves in its workdir."""

import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from jaxcnn.data.dataset import Dataset
from jaxcnn.devices import environment
from jaxcnn.errors import WORKDIR_REMEDY, UserError, as_path, writing
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.storage import atomic, document, fingerprint
from jaxcnn.storage.checkpoint import Resume
from jaxcnn.train.result import EpochRecord, Observer, Result, versions

RESULT = "result.json"
METRICS = "metrics.jsonl"
STEPS = "steps.jsonl"
CHECKPOINTS = "checkpoints"


def check_workdir(folder: Path, resume: Resume = "auto", epochs: int = 0) -> None:
    """Refuses a workdir that a run cannot use, before any work is done.

    Args:
        folder: the workdir.
        resume: see `jaxcnn.storage.checkpoint.Policy`.
        epochs: of the run; one that has ended is gone on with only if it had fewer.

    Raises:
        UserError: it is a file, or holds a run that cannot be gone on with, or none that must be.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--workdir {folder} is a file: give a folder that is new or empty")
    begun = (folder / CHECKPOINTS).is_dir()
    longer = begun and resume != "never" and epochs > _epochs(folder)
    if (folder / RESULT).exists() and not longer:
        raise UserError(
            f"--workdir {folder} already holds a run that has ended ({RESULT}): give another "
            "folder, remove that one, or give more --epochs to go on with it"
        )
    if (folder / METRICS).exists() and (resume == "never" or not begun):
        raise UserError(
            f"--workdir {folder} already holds a run ({METRICS}): give another folder, or remove "
            "that one"
        )
    if resume == "must" and not begun:
        raise UserError(
            f"--workdir {folder} holds no run to go on with: give the folder of one, or --resume "
            "auto"
        )


class Records(Observer):
    """Writes records and TensorBoard events while a run goes on.

    `metrics.jsonl` has a line for each epoch, and `steps.jsonl` for each step that is logged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Takes the workdir; `start` creates it."""
        self._folder = as_path(folder)
        self._open = contextlib.ExitStack()
        self._metrics: TextIO
        self._steps: TextIO | None = None
        self._events: Any

    def start(
        self, *, epochs: int, images: int, history: Sequence[EpochRecord] = (), step: int = 0
    ) -> None:
        """Creates the workdir and its files, see `jaxcnn.train.result.Observer.start`.

        The records of a resumed run begin with those of the epochs and steps that it has done
        before.

        Raises:
            WriteError: the workdir cannot be written.
        """
        # Imported here: only a run with a workdir needs it. Not SummaryWriter: its thread dies of a
        # full disk, and whoever writes after that waits for ever.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        with writing(self._folder, WORKDIR_REMEDY):
            self._folder.mkdir(parents=True, exist_ok=True)
            if len(history) < epochs:  # a run that had ended, and goes on with more epochs
                (self._folder / RESULT).unlink(missing_ok=True)
            # A killed run may have logged epochs that it had not saved yet.
            lines = "".join(map(_line, history))
            atomic.write(self._folder / METRICS, lines.encode())
            _keep_steps(self._folder / STEPS, step)
            self._metrics = self._open.enter_context((self._folder / METRICS).open("a"))
            self._events = EventsWriter(str(self._folder / "events"))
            self._open.callback(self._events.close)
            if step:
                restart = SessionLog(status=SessionLog.START)
                event = Event(session_log=restart, step=step + 1, wall_time=time.time())
                self._events.write_event(event)

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes logged steps; in TensorBoard their values are below "step".

        Args:
            rows: see `jaxcnn.train.result.Observer.log`.

        Raises:
            WriteError: the files cannot be written.
        """
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary

        with writing(self._folder / STEPS, WORKDIR_REMEDY):
            if self._steps is None:
                self._steps = self._open.enter_context((self._folder / STEPS).open("a"))
            self._steps.writelines(json.dumps(row, allow_nan=False) + "\n" for row in rows)
            self._steps.flush()
            # A checkpoint, which may follow, is not to survive a power failure without its rows.
            os.fsync(self._steps.fileno())
            now = time.time()
            for row in rows:
                values = [
                    Summary.Value(tag=f"step/{name}", simple_value=value)
                    for name, value in row.items()
                    if name != "step" and value is not None
                ]
                event = Event(summary=Summary(value=values), step=row["step"], wall_time=now)
                self._events.write_event(event)

    def epoch(self, record: EpochRecord) -> None:
        """Writes the record of an epoch."""
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.summary import scalar

        with writing(self._folder / METRICS, WORKDIR_REMEDY):
            self._metrics.write(_line(record))
            self._metrics.flush()
            for name, value in record.asdict().items():
                if name not in ("epoch", "step") and value is not None:
                    summary = scalar(name, value)
                    event = Event(summary=summary, step=record.step, wall_time=time.time())
                    self._events.write_event(event)
            self._events.flush()

    def stop(self) -> None:
        """Closes the files."""
        with writing(self._folder, WORKDIR_REMEDY):
            self._open.close()


def _epochs(folder: Path) -> float:
    """Returns the number of epochs of a run that has ended; infinity where it is not known."""
    epochs = read_result(folder).get("epochs")
    return epochs if type(epochs) is int else math.inf


def _keep_steps(path: Path, step: int) -> None:
    """Removes what a killed run had logged after the step that it is resumed from."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return
    kept = itertools.takewhile(lambda line: _is_until(line, step), lines)
    atomic.write(path, b"".join(kept))


def _is_until(line: bytes, step: int) -> bool:
    """Whether a line of `steps.jsonl` is complete and of one of the first `step` steps."""
    try:
        return line.endswith(b"\n") and int(document.parse_json(line)["step"]) <= step
    except (ValueError, TypeError, KeyError):
        return False


def _line(record: EpochRecord) -> str:
    return json.dumps(record.asdict(), allow_nan=False) + "\n"


def make_result(
    result: Result, recipe: Recipe, dataset: Dataset, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what `result.json` says of a run that has ended, as JSON values.

    Args:
        result: of `fit`.
        recipe: all hyperparameters; they stand at the top level, the recipe's name as "recipe".
        dataset: what was really trained on.
        settings: of the run beside the recipe, "seed" and "feed" say.
    """
    return {
        "dataset": dataset.name,
        "dataset_version": dataset.version,
        "dataset_is_real": dataset.is_real,
        **fingerprint.of(recipe.asdict()),
        **fingerprint.of(dict(settings)),
        "epochs_trained": len(result.history),
        "test_accuracy": result.test_accuracy,
        "test_correct": result.test_correct,
        "test_total": result.test_total,
        "parameters": result.parameters,
        "train_seconds": result.train_seconds,
        "eval_seconds": result.eval_seconds,
        "compile_seconds": result.compile_seconds,
        "images_per_second": result.images_per_second,
        "versions": versions(),
        "device": environment.device(),
    }


def write_result(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes `result.json`, whole or not at all; with it the run has ended.

    Args:
        folder: the run's workdir.
        content: of `make_result`.

    Raises:
        WriteError: the file cannot be written.
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    atomic.write(folder / RESULT, text.encode())


def read_result(folder: Path) -> dict[str, Any]:
    """Returns what a run wrote at its end; nothing where it has not come to it.

    Raises:
        UserError: a figure there is none that a run writes.
    """
    path = folder / RESULT
    try:
        content = document.read_json(path)
        document.check(content, {}, "it")
    except (FileNotFoundError, ValueError):
        return {}
    try:
        ratio = content.get("tta_test_accuracy", 0.0)
        document.check(ratio, float, "tta_test_accuracy")
        if not 0 <= ratio <= 1:
            raise ValueError(f"tta_test_accuracy is {ratio}")
    except ValueError as error:
        raise UserError(
            f"{path} is not what the run wrote ({error}): put that back, or move the file away"
        ) from None
    return dict(content)
