"""Runs of the experiments within this process, of a small network on few images."""

import contextlib
import io
import itertools
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from experiments import cifar10, mnist
from jaxcnn.cli import interrupts
from jaxcnn.data.dataset import Dataset
from jaxcnn.recipes.recipe import NetworkName
from jaxcnn.storage import checkpoint
from jaxcnn.train import records
from jaxcnn.train.result import Result


def load_tiny(tiny: Dataset, asked: list[dict[str, Any]]) -> Callable[..., Dataset]:
    """Returns a substitute for `load_data` that loads a tiny data set, and keeps the arguments."""

    def load(name: str, **options: Any) -> Dataset:
        asked.append({"name": name, **options})
        if options["source"] != "synthetic":
            return tiny
        fields = dict(vars(tiny)) | {"name": "synthetic-mnist", "notice": "of a reason"}
        return Dataset(**fields)

    return load


@dataclass(frozen=True)
class Ended:
    """How a command ended: its status and what it printed."""

    status: object
    out: str
    err: str


MAINS = {"mnist": mnist.main, "cifar10": cifar10.main}


def start(*argv: object, network: NetworkName = "mnist") -> Ended:
    """Runs an experiment in this process."""
    out, err = io.StringIO(), io.StringIO()
    status: object = 0
    handler = signal.getsignal(signal.SIGTERM)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            MAINS[network]([str(argument) for argument in argv])
        except SystemExit as stop:
            status = stop.code
        finally:
            signal.signal(signal.SIGTERM, handler)
    return Ended(status, out.getvalue(), err.getvalue())


# Three steps an epoch, and checkpoints within and at the end of epochs.
ARGV = (
    "--recipe reference --epochs 2 --batch-size 110 --learning-rate 0.01 --seed 5 --data mnist "
    "--tta --checkpoint-every 2steps --keep 1 --no-compilation-cache --workdir"
).split()
# Leaves out what takes long and is no concern of most tests.
QUICK = ["--no-tta", "--report", "never"]


@dataclass(frozen=True)
class Run:
    """A run that has ended, and how the functions that do its work were called.

    Attributes:
        workdir: of the run.
        ended: how it ended.
        calls: arguments of `load_data` and `evaluate` by name, those of `write_report`.
        fitted: what `fit` returned.
    """

    workdir: Path
    ended: Ended
    calls: dict[str, list[Any]] = field(default_factory=dict)
    fitted: list[Result] = field(default_factory=list)

    @property
    def result(self) -> dict[str, Any]:
        return json.loads((self.workdir / "result.json").read_text())


def stop_at(monkeypatch: pytest.MonkeyPatch, number: signal.Signals, chunk: int) -> None:
    """Sends this process a signal after a number of chunks of a run, and waits for its arrival."""
    watching: list[interrupts.Interrupts] = []
    watched = interrupts.watched

    @contextlib.contextmanager
    def watch() -> Iterator[interrupts.Interrupts]:
        with watched() as interrupted:
            watching.append(interrupted)
            yield interrupted

    chunks = itertools.count(1)

    def advance(*_: object, **__: object) -> None:
        if next(chunks) == chunk:
            os.kill(os.getpid(), number)
            while not watching[-1]():
                time.sleep(0.001)

    monkeypatch.setattr("jaxcnn.cli.interrupts.watched", watch)
    monkeypatch.setattr(records.Records, "advance", advance)


def outcome(folder: Path) -> dict[str, Any]:
    """Returns all of a run that does not depend on its speed, with the digests of its arrays."""
    times = {"seconds", "images_per_second"}
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    result = json.loads((folder / "result.json").read_text())
    return {
        "metrics": [
            {name: value for name, value in json.loads(line).items() if name not in times}
            for line in lines
        ],
        "correct": (result["test_correct"], result["tta_test_correct"]),
        "arrays": checkpoint.list_checkpoints(folder / "checkpoints")[-1].verify()["files"],
    }


def raising(error: BaseException) -> Callable[..., None]:
    """Returns a substitute for a function, which raises an error."""

    def fail(*_: object, **__: object) -> None:
        raise error

    return fail
