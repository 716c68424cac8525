"""The files that a run leaves in its workdir."""

import contextlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any, TextIO

import jax

import jaxcnn
from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import WORKDIR_REMEDY, UserError, writing
from jaxcnn.recipes import Recipe
from jaxcnn.steps import Metrics
from jaxcnn.training import EpochRecord, Result

RESULT = "result.json"
METRICS = "metrics.jsonl"

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "tensorflow-datasets")


def check_workdir(workdir: Path) -> None:
    """Refuses a workdir that already holds a run, before any work is done.

    Raises:
        UserError: it holds a run, or is a file.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file: give a folder that is new or empty")
    for name in (RESULT, METRICS):
        if (workdir / name).exists():
            raise UserError(
                f"--workdir {workdir} already holds a run ({name}): give another folder, or remove "
                "that one"
            )


class Records:
    """Writes `metrics.jsonl` (a line an epoch) and TensorBoard events while a run goes on."""

    def __init__(self, workdir: Path) -> None:
        self._workdir = workdir
        self._open = contextlib.ExitStack()
        self._metrics: TextIO
        self._events: Any

    def start(self, *, epochs: int, images: int) -> None:
        """Creates the workdir and its files.

        Raises:
            WriteError: the workdir cannot be written.
        """
        # Imported here: only a run with a workdir needs it.
        from tensorboardX import SummaryWriter

        with writing(self._workdir, WORKDIR_REMEDY):
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._metrics = self._open.enter_context((self._workdir / METRICS).open("x"))
            self._events = self._open.enter_context(SummaryWriter(str(self._workdir)))

    def advance(self, *, images: int, metrics: Metrics) -> None:
        """A chunk was trained on."""

    def epoch(self, record: EpochRecord) -> None:
        """Writes the record of an epoch."""
        with writing(self._workdir / METRICS, WORKDIR_REMEDY):
            print(json.dumps(record.asdict(), allow_nan=False), file=self._metrics, flush=True)
            for name, value in record.asdict().items():
                if name not in ("epoch", "step") and value is not None:
                    self._events.add_scalar(name, value, record.step)

    def stop(self) -> None:
        """Closes the files."""
        with writing(self._workdir, WORKDIR_REMEDY):
            self._open.close()


def write_result(
    workdir: Path, result: Result, recipe: Recipe, dataset: Dataset, settings: dict[str, Any]
) -> None:
    """Writes `result.json`, whole or not at all.

    Args:
        workdir: of the run.
        result: of `fit`.
        recipe: all hyperparameters; they stand at the top level, the recipe's name as "recipe".
        dataset: what was really trained on.
        settings: of the run beside the recipe, "seed" and "feed" say.

    Raises:
        WriteError: the file cannot be written.
    """
    hyperparameters = dict(vars(recipe))
    content = {
        "dataset": dataset.name,
        "dataset_version": dataset.version,
        "dataset_is_real": dataset.is_real,
        "recipe": hyperparameters.pop("name"),
        **hyperparameters,
        **settings,
        "test_accuracy": result.test_accuracy,
        "test_correct": result.test_correct,
        "test_total": result.test_total,
        "parameters": result.parameters,
        "train_seconds": result.train_seconds,
        "eval_seconds": result.eval_seconds,
        "compile_seconds": result.compile_seconds,
        "images_per_second": result.images_per_second,
        "versions": versions(),
        "device": device(),
    }
    partial = workdir / f".{RESULT}"
    with writing(workdir / RESULT, WORKDIR_REMEDY):
        try:
            partial.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
            os.replace(partial, workdir / RESULT)
        finally:
            partial.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """Returns the versions of Python and of the packages that decide a result, where installed."""
    found = {"python": platform.python_version(), "jaxcnn": jaxcnn.__version__}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def device() -> str:
    """Returns what the run's arrays live on, "cpu (AMD EPYC, 2 cores)" say."""
    first = jax.devices()[0]
    if first.platform != "cpu":
        return f"{first.platform} ({first.device_kind}, {jax.device_count()} devices)"
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        pass  # not Linux
    return f"cpu ({name}, {os.cpu_count()} cores)"
