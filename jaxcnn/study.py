"""A study: many runs of several optimizers, tuned on a part of the training images, then tested.

Every run is written to `runs.jsonl` as soon as it has ended. A study that was killed goes on with
the runs that are missing there.
"""

import contextlib
import dataclasses
import functools
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from jaxcnn import (
    document,
    ensemble,
    environment,
    fingerprint,
    optimizers,
    processes,
    recipes,
    workdir,
)
from jaxcnn.data.cache import short_digest
from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.errors import WORKDIR_REMEDY, UserError, writing
from jaxcnn.recipes import Recipe
from jaxcnn.shards import Shard

RUNS = "runs.jsonl"
SPECIFICATION = "study.json"

Phase = Literal["tune", "final"]
PHASES: tuple[Phase, ...] = get_args(Phase)


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

    def part(self, names: Iterable[str]) -> "Study":
        """Returns the study of some of the optimizers."""
        kept = set(names)
        rates = {name: rates for name, rates in self.learning_rates.items() if name in kept}
        return dataclasses.replace(self, learning_rates=rates)


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
    mesh: Any = None,
    observer: Observer | None = None,
    shard: Shard | None = None,
    command: str = "",
) -> list[Run]:
    """Runs what is missing of a study, or of a shard of it, and returns all of it.

    Of several processes, see `jaxcnn.processes`, all run it on the same arguments; process 0 alone
    reads and writes the workdir.

    Args:
        study: what is compared.
        dataset: what to train and test on.
        folder: the workdir, of this study or shard alone; it may hold a part of it.
        chunk: runs at once, see `jaxcnn.ensemble.chunks`.
        mesh: of devices, likewise.
        observer: told about progress.
        shard: the optimizers whose runs to do. Default: all.
        command: that goes on with it, to be kept beside the runs.

    Raises:
        UserError: the workdir holds another study or is in use, an optimizer cannot be used,
            there are more shards than optimizers, or the processes were given different arguments.
        WriteError: it cannot be written.
    """
    observer = observer or Observer()
    if not 0 < study.validation < len(dataset.train):
        raise UserError(
            f"--validation takes 1 to {len(dataset.train) - 1} of the training images, "
            f"got {study.validation}"
        )
    part = study.part(shard.optimizers(study.learning_rates)) if shard else study
    asked = _specification(study, dataset, shard)
    axes = dict(mesh.shape) if mesh else None
    processes.check_same({**asked, "chunk": chunk, "mesh": axes})
    try:
        with contextlib.ExitStack() as stack:

            def begin() -> tuple[list[Run], tuple[int, int]]:
                stack.enter_context(workdir.locked(folder))
                done = load_runs(folder / RUNS)
                images = _images(part, dataset, done)
                _claim(asked, folder, command, started=bool(done), ended=images[0] == images[1])
                check_runs(part, done, folder / RUNS)
                return done, images

            done, images = processes.from_main(begin)
            observer.start(len(done), *images)
            for fresh in _missing(part, dataset, done, {"chunk": chunk, "mesh": mesh}, observer):
                processes.from_main(functools.partial(_append, folder / RUNS, fresh))
                done += fresh
            check_runs(part, done, folder / RUNS)  # the best rates are known now
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


def wanted(study: Study, runs: list[Run], phase: Phase, optimizer: str) -> list[tuple[float, int]]:
    """Returns learning rate and seed of an optimizer's runs that are missing.

    Args:
        study: what is wanted.
        runs: that are there; for "final" all of the optimizer's tuning is among them.
        phase: whose runs are looked for.
        optimizer: likewise.
    """
    rates, seeds = study.learning_rates[optimizer], study.tune_seeds
    if phase == "final":
        rates, seeds = (best_rate(study, runs, optimizer),), study.seeds
    known = {(run.learning_rate, run.seed) for run in select(runs, phase, optimizer)}
    return [pair for pair in itertools.product(rates, range(seeds)) if pair not in known]


def check_runs(study: Study, runs: list[Run], path: Path) -> None:
    """Refuses runs that a study has not asked for: they would change its tables.

    Args:
        study: of an optimizer, or of several.
        runs: of a file.
        path: of that file.

    Raises:
        UserError: one is at another rate, of another seed, length or optimizer.
    """
    tuned = {name for name in study.learning_rates if not wanted(study, runs, "tune", name)}
    best = {name: (best_rate(study, runs, name),) for name in tuned}
    for run in runs:
        rates = study.learning_rates.get(run.optimizer, ())
        if run.phase == "final":
            rates = best.get(run.optimizer, rates)
        seeds = study.tune_seeds if run.phase == "tune" else study.seeds
        whole = len(run.train_loss) == len(run.train_accuracy) == study.recipe.epochs
        if run.learning_rate not in rates or not 0 <= run.seed < seeds or not whole:
            raise UserError(
                f"{path} has a run that this study does not have ({run.phase} {run.optimizer} at "
                f"{run.learning_rate:g} with seed {run.seed}): remove its line"
            )


# The form of a line.
_RUN: dict[str, Any] = {
    **dict.fromkeys("phase optimizer".split(), str),
    **dict.fromkeys("seed steps_an_epoch diverged_at correct total".split(), int),
    "learning_rate": float,
    "train_loss": [(float, None)],
    "train_accuracy": [(float, None)],
    "validation_loss": [(float, None)],
    "validation_accuracy": [(float, None)],
}


def load_runs(path: Path, *, repair: bool = True) -> list[Run]:
    """Reads the runs that have ended; a last line that was cut short is none.

    Args:
        path: of the file; there may be none.
        repair: whether to remove such a line, as only the folder's own process may.

    Raises:
        UserError: another line is none, or the file is no regular one.
        ReadError: the file cannot be read.
    """
    try:
        content = document.content(path)
    except FileNotFoundError:
        return []
    except ValueError as error:
        raise UserError(f"{path} holds no runs of a study ({error}): move it away") from None
    whole = content[: content.rfind(b"\n") + 1]
    if repair and whole != content:
        with writing(path, WORKDIR_REMEDY), path.open("r+b") as file:
            file.truncate(len(whole))
    runs: dict[Any, Run] = {}
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            fields = document.parse(line)
            if fields.pop("digest") != _digest(fields):
                raise ValueError("altered")
            document.check(fields, _RUN, "it")
            lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
            run = Run(**fields | lists)
            if not 0 <= run.correct <= run.total != 0 or run.phase not in PHASES:
                raise ValueError("no score")
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(
                f"{path}, line {number}, is no run of a study, or was altered: remove that line to "
                "have the run done again, or the folder"
            ) from None
        key = (run.phase, run.optimizer, run.learning_rate, run.seed)
        if runs.setdefault(key, run) is not run:
            raise UserError(f"{path}, line {number}, is of a run that is there already: remove it")
    return list(runs.values())


def _missing(
    study: Study, dataset: Dataset, done: list[Run], how: dict[str, Any], observer: Observer
) -> Iterator[list[Run]]:
    """Trains what is missing, and yields it as it ends."""
    runs = list(done)
    tuning, held_out = hold_out(dataset, study.validation)
    for phase in PHASES:
        for optimizer in study.learning_rates:
            pairs = wanted(study, runs, phase, optimizer)
            if not pairs:
                continue
            observer.runs(phase, optimizer, len(pairs))
            options: dict[str, Any] = {**how, "report": observer.advance}
            if phase == "tune":
                options["evaluate_on"] = held_out
            else:
                options["evaluate_once"] = True
            data = tuning if phase == "tune" else dataset
            columns = np.array(pairs).T
            members = ensemble.Members(columns[1].astype(int), {"learning_rate": columns[0]})
            recipe = study.for_optimizer(optimizer)
            first = 0
            for result in ensemble.chunks(recipe, data, members, **options):
                fresh = [
                    _run(phase, optimizer, *pairs[first + index], recipe, data, result, index)
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


_STUDY: dict[str, Any] = {
    **dict.fromkeys("dataset dataset_version".split(), str),
    "base_recipe": {},
    "learning_rates": {str: [float]},
    **dict.fromkeys("tune_seeds seeds validation".split(), int),
    "target": float,
}


def load(folder: Path) -> Study:
    """Returns the study that a folder's runs belong to.

    Raises:
        UserError: what they belong to cannot be read.
    """
    specification = load_specification(folder)
    try:
        document.check(specification, _STUDY, "it")
        recipe = recipes.from_dict(specification["base_recipe"])
        rates = {name: tuple(rates) for name, rates in specification["learning_rates"].items()}
        names = ("tune_seeds", "seeds", "validation", "target")
        return Study(recipe, rates, **{name: specification[name] for name in names})
    except (KeyError, TypeError, ValueError, AttributeError):
        raise unknown(folder) from None


def load_specification(folder: Path) -> dict[str, Any]:
    """Reads what the runs of a folder belong to, and what did them.

    Returns:
        What decides what the runs are; "shard" and "shards", its number and how many there are, if
        it is one; "machines", each as a text; and "command", which began the study.

    Raises:
        UserError: it cannot be read.
    """
    try:
        there = document.read(folder / SPECIFICATION)
        document.check(there, {}, "it")
        document.check(there.get("machines", []), [str], "machines")
        if "digest" in there and there.pop("digest") != _digest(there):
            raise ValueError("altered")
    except (FileNotFoundError, ValueError):
        raise unknown(folder) from None
    return dict(there)


def _digest(fields: Mapping[str, Any]) -> str:
    """Returns that of JSON values which stands beside them: it tells of damage."""
    return short_digest(json.dumps(fields))


def unknown(folder: Path) -> UserError:
    """Returns what is wrong with a folder whose specification cannot be read."""
    return UserError(
        f"{folder / SPECIFICATION} cannot be read, so what its runs belong to is not known: remove "
        "the folder, or give another"
    )


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Returns the names of what decides the runs and differs between two specifications."""
    names = dict.fromkeys([*one, *other])
    return [name for name in names if name not in _ABOUT and one.get(name) != other.get(name)]


def write_specification(folder: Path, specification: dict[str, Any]) -> None:
    """Writes what the runs of a folder belong to.

    Raises:
        WriteError: it cannot be written.
    """
    content = {**specification, "digest": _digest(specification)}
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    workdir.write(folder / SPECIFICATION, text.encode())


# What a specification says of how it came about, which does not decide what the runs are.
_ABOUT = ("machines", "command")


def _claim(
    asked: dict[str, Any], folder: Path, command: str, *, started: bool, ended: bool
) -> None:
    """Writes what the study is, or compares it with what the runs that are there belong to."""
    there = load_specification(folder) if started else asked
    if different := differing(there, asked):
        raise UserError(
            f"--workdir {folder} holds another study (its {', '.join(different)} differs): give "
            "another folder, or the flags of that study to go on with it"
        )
    machines, here = there.get("machines", []), environment.machine()
    if not started or not machines or not (ended or here in machines):
        about = {"machines": [*machines, here], "command": there.get("command", command)}
        write_specification(folder, there | about)


def _specification(study: Study, dataset: Dataset, shard: Shard | None) -> dict[str, Any]:
    """Returns all that decides what the runs are, the code of optimizers of one's own included."""
    recipe = dataclasses.asdict(study.recipe)
    specification = {name: recipe[name] for name in ("network", "epochs", "batch_size")}
    specification |= dataclasses.asdict(study)
    specification["recipe"] = {
        name: dataclasses.asdict(study.for_optimizer(name)) for name in study.learning_rates
    }
    specification["base_recipe"] = study.recipe.asdict()
    for name in study.learning_rates:
        if ":" in name:
            specification[f"code of {name}"] = optimizers.code_digest(name)
    specification |= {"dataset": dataset.name, "dataset_version": dataset.version}
    if shard:
        specification |= {"shard": shard.number, "shards": shard.count}
    whole: dict[str, Any] = fingerprint.of(specification | environment.jax_settings())
    return whole


def _append(path: Path, runs: list[Run]) -> None:
    with writing(path, WORKDIR_REMEDY), path.open("ab") as file:
        file.write(lines(runs))
        file.flush()
        os.fsync(file.fileno())


def lines(runs: list[Run]) -> bytes:
    """Returns runs as lines of JSON, each with a digest of the rest: `load_runs` notices damage."""

    def line(run: Run) -> str:
        fields = json.loads(json.dumps(dataclasses.asdict(run), allow_nan=False))
        return json.dumps({**fields, "digest": _digest(fields)}) + "\n"

    return "".join(map(line, runs)).encode()
