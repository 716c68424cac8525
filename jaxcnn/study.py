"""A study: many runs of several optimizers, tuned on a part of the training images, then tested.

Every run is written to `runs.jsonl` as soon as it has ended. A study that was killed goes on with
the runs that are missing there.
"""

import dataclasses
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxcnn import ensemble, optimizers, workdir
from jaxcnn.data.cache import short_digest
from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.errors import WORKDIR_REMEDY, UserError, writing
from jaxcnn.recipes import Recipe

RUNS = "runs.jsonl"
SPECIFICATION = "study.json"


Phase = Literal["tune", "final"]


@dataclass(frozen=True)
class Study:
    """What is compared, and how.

    Attributes:
        recipe: all that the runs have in common. Every optimizer brings its own defaults.
        learning_rates: to be tried, for each optimizer by name.
        tune_seeds: runs at every learning rate, on a part of the training images.
        seeds: runs at the best one, on all training images, scored on the test images once.
        validation: training images held out for tuning.
        target: validation accuracy, 0..1, whose time is reported.
    """

    recipe: Recipe
    learning_rates: dict[str, tuple[float, ...]]
    tune_seeds: int
    seeds: int
    validation: int = 5000
    target: float = 0.97

    def for_optimizer(self, name: str) -> Recipe:
        """Returns the recipe with that optimizer."""
        return self.recipe.replace(optimizer=name)


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        phase: "tune", scored on the held-out images, or "final", scored on the test images.
        optimizer: by name.
        learning_rate: at its peak.
        seed: of everything random.
        steps_an_epoch: optimizer steps.
        diverged_at: the first step whose loss was not finite; 0 if none.
        correct: right answers at the end.
        total: pictures scored.
        train_loss: after every epoch; None once it has diverged.
        train_accuracy: likewise, in training mode.
        validation_loss: likewise, on the held-out images; nothing in the final phase.
        validation_accuracy: likewise.
    """

    phase: Phase
    optimizer: str
    learning_rate: float
    seed: int
    steps_an_epoch: int
    diverged_at: int
    correct: int
    total: int
    train_loss: tuple[float | None, ...]
    train_accuracy: tuple[float | None, ...]
    validation_loss: tuple[float | None, ...] = ()
    validation_accuracy: tuple[float | None, ...] = ()

    @property
    def accuracy(self) -> float:
        """Right answers in 0..1; of a diverged run, those of a network of no numbers."""
        return self.correct / self.total


class Observer:
    """Is told how a study goes on; this one ignores it."""

    def start(self, runs: int, images: int, done: int) -> None:
        """So many runs are there already; of all images to train on, so many are done."""

    def runs(self, phase: Phase, optimizer: str, count: int) -> None:
        """So many runs of an optimizer begin."""

    def advance(self, images: int) -> None:
        """So many images were trained on."""

    def stop(self) -> None:
        """The study has ended, well or not."""


def run(
    study: Study,
    dataset: Dataset,
    folder: Path,
    *,
    chunk: int | None = None,
    observer: Observer | None = None,
) -> list[Run]:
    """Runs what is missing of a study and returns all of it.

    Args:
        study: what is compared.
        dataset: what to train and test on.
        folder: the workdir, of this study alone; it may hold a part of it.
        chunk: runs at once, see `jaxcnn.ensemble.chunks`.
        observer: told about progress.

    Raises:
        UserError: the workdir holds another study or is in use, or an optimizer cannot be used.
        WriteError: it cannot be written.
    """
    observer = observer or Observer()
    if not 0 < study.validation < len(dataset.train):
        raise UserError(
            f"--validation takes 1 to {len(dataset.train) - 1} of the training images, "
            f"got {study.validation}"
        )
    try:
        with workdir.locked(folder):
            done = load_runs(folder / RUNS)
            _claim(study, dataset, folder, started=bool(done))
            observer.start(len(done), *_images(study, dataset, done))
            for fresh in _missing(study, dataset, done, chunk, observer):
                _append(folder / RUNS, fresh)
                done += fresh
            return done
    finally:
        observer.stop()


def hold_out(dataset: Dataset, count: int) -> tuple[Dataset, Split]:
    """Splits the training images into those to tune on and those to score; always the same ones."""
    order = np.random.default_rng(0).permutation(len(dataset.train))

    def take(indices: np.ndarray) -> Split:
        return Split(dataset.train.images[indices], dataset.train.labels[indices])

    rest = dataclasses.replace(dataset, train=take(np.sort(order[count:])))
    return rest, take(np.sort(order[:count]))


def best_rate(study: Study, runs: list[Run], optimizer: str) -> float:
    """Returns the learning rate with the highest mean validation accuracy."""

    def mean(rate: float) -> float:
        return float(np.mean([run.accuracy for run in select(runs, "tune", optimizer, rate)]))

    return max(study.learning_rates[optimizer], key=mean)


def select(
    runs: list[Run], phase: Phase, optimizer: str, learning_rate: float | None = None
) -> list[Run]:
    """Returns the runs of an optimizer, in the order of their seeds."""
    found = [
        run
        for run in runs
        if (run.phase, run.optimizer) == (phase, optimizer)
        and learning_rate in (None, run.learning_rate)
    ]
    return sorted(found, key=lambda run: (run.learning_rate, run.seed))


def load_runs(path: Path) -> list[Run]:
    """Reads the runs that have ended; a last line that was cut short is removed.

    Raises:
        UserError: another line cannot be read.
    """
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with writing(path, WORKDIR_REMEDY), path.open("r+b") as file:
            file.truncate(len(whole))
    runs = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            fields = json.loads(line)
            if fields.pop("digest") != short_digest(json.dumps(fields)):
                raise ValueError("altered")
            lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
            runs.append(Run(**fields | lists))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise UserError(
                f"{path}, line {number}, is no run of a study, or was altered: remove that line to "
                "have the run done again, or the folder"
            ) from None
    return runs


def _missing(
    study: Study, dataset: Dataset, done: list[Run], chunk: int | None, observer: Observer
) -> Iterator[list[Run]]:
    """Trains what is missing, and yields it as it ends."""
    known = {(run.phase, run.optimizer, run.learning_rate, run.seed) for run in done}
    runs = list(done)
    tuning, held_out = hold_out(dataset, study.validation)
    for phase in ("tune", "final"):
        for optimizer, rates in study.learning_rates.items():
            if phase == "final":
                rates = (best_rate(study, runs, optimizer),)
            seeds = study.tune_seeds if phase == "tune" else study.seeds
            wanted = [
                (rate, seed)
                for rate in rates
                for seed in range(seeds)
                if (phase, optimizer, rate, seed) not in known
            ]
            if not wanted:
                continue
            observer.runs(phase, optimizer, len(wanted))
            options: dict[str, Any] = {"chunk": chunk, "report": observer.advance}
            if phase == "tune":
                options["evaluate_on"] = held_out
            else:
                options["evaluate_once"] = True
            data = tuning if phase == "tune" else dataset
            columns = np.array(wanted).T
            members = ensemble.Members(columns[1].astype(int), {"learning_rate": columns[0]})
            recipe = study.for_optimizer(optimizer)
            first = 0
            for result in ensemble.chunks(recipe, data, members, **options):
                fresh = [
                    _run(phase, optimizer, *wanted[first + index], recipe, data, result, index)
                    for index in range(len(result.members))
                ]
                first += len(fresh)
                runs += fresh
                yield fresh


def _run(
    phase: Phase,
    optimizer: str,
    rate: float,
    seed: int,
    recipe: Recipe,
    dataset: Dataset,
    result: ensemble.Result,
    index: int,
) -> Run:
    def curve(name: str) -> tuple[float | None, ...]:
        values = result.history[name][:, index].tolist()
        return tuple(value if np.isfinite(value) else None for value in values)

    tuned = phase == "tune"
    return Run(
        phase=phase,
        optimizer=optimizer,
        learning_rate=rate,
        seed=seed,
        steps_an_epoch=-(-len(dataset.train) // recipe.batch_size),
        diverged_at=int(result.diverged_at[index]),
        correct=int(result.correct[index]),
        total=result.total,
        train_loss=curve("train_loss"),
        train_accuracy=curve("train_accuracy"),
        validation_loss=curve("eval_loss") if tuned else (),
        validation_accuracy=curve("eval_accuracy") if tuned else (),
    )


def _images(study: Study, dataset: Dataset, runs: list[Run]) -> tuple[int, int]:
    """Returns how many images all runs of a study train on, and those that are there."""
    size, epochs = len(dataset.train), study.recipe.epochs
    rates = sum(map(len, study.learning_rates.values()))
    tuning = epochs * (size - study.validation)
    everything = tuning * rates * study.tune_seeds
    everything += epochs * size * len(study.learning_rates) * study.seeds
    return everything, sum(tuning if run.phase == "tune" else epochs * size for run in runs)


def _claim(study: Study, dataset: Dataset, folder: Path, started: bool) -> None:
    """Writes what the study is, or compares it with what the runs that are there belong to."""
    path = folder / SPECIFICATION
    asked = json.loads(json.dumps(_specification(study, dataset)))
    if not started:
        workdir.write(path, (json.dumps(asked, indent=2, allow_nan=False) + "\n").encode())
        return
    try:
        there = json.loads(path.read_text())
        different = [name for name in asked if there.get(name) != asked[name]]
    except (OSError, ValueError, AttributeError):
        raise UserError(
            f"{path} cannot be read, so what its runs belong to is not known: remove the folder, "
            "or give another"
        ) from None
    if different:
        raise UserError(
            f"--workdir {folder} holds another study (its {', '.join(different)} differs): give "
            "another folder, or the flags of that study to go on with it"
        )


def _specification(study: Study, dataset: Dataset) -> dict[str, Any]:
    """Returns all that decides what the runs are, the code of optimizers of one's own included."""
    recipe = dataclasses.asdict(study.recipe)
    specification = {name: recipe[name] for name in ("network", "epochs", "batch_size")}
    specification |= dataclasses.asdict(study)
    specification["recipe"] = {
        name: dataclasses.asdict(study.for_optimizer(name)) for name in study.learning_rates
    }
    for name in study.learning_rates:
        if ":" in name:
            specification[f"code of {name}"] = optimizers.code_digest(name)
    return specification | {"dataset": dataset.name, "dataset_version": dataset.version}


def _append(path: Path, runs: list[Run]) -> None:
    with writing(path, WORKDIR_REMEDY), path.open("ab") as file:
        file.write(b"".join(map(_line, runs)))
        file.flush()
        os.fsync(file.fileno())


def _line(run: Run) -> bytes:
    """Returns a run as a line of JSON, with a digest of the rest: `load_runs` notices damage."""
    fields = json.loads(json.dumps(dataclasses.asdict(run), allow_nan=False))
    return (json.dumps({**fields, "digest": short_digest(json.dumps(fields))}) + "\n").encode()
