"""The runs of a study: their records on disk, which are missing, and the best learning rates."""

import dataclasses
import itertools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from jaxcnn.errors import WORKDIR_REMEDY, UserError, writing
from jaxcnn.recipes.recipe import Recipe, recipe_from_dict
from jaxcnn.storage import atomic, document
from jaxcnn.storage.manifest import short_digest

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


def best_rate(study: Study, runs: list[Run], optimizer: str) -> float:
    """Returns the learning rate with the highest mean validation accuracy."""

    def mean(rate: float) -> float:
        return float(np.mean([run.accuracy for run in select_runs(runs, "tune", optimizer, rate)]))

    return max(study.learning_rates[optimizer], key=mean)


def select_runs(
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


def missing_runs(
    study: Study, runs: list[Run], phase: Phase, optimizer: str
) -> list[tuple[float, int]]:
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
    known = {(run.learning_rate, run.seed) for run in select_runs(runs, phase, optimizer)}
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
    tuned = {name for name in study.learning_rates if not missing_runs(study, runs, "tune", name)}
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
        content = document.read_bytes(path)
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
            fields = document.parse_json(line)
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


_STUDY: dict[str, Any] = {
    **dict.fromkeys("dataset dataset_version".split(), str),
    "base_recipe": {},
    "learning_rates": {str: [float]},
    **dict.fromkeys("tune_seeds seeds validation".split(), int),
    "target": float,
}


def load_study(folder: Path) -> Study:
    """Returns the study that a folder's runs belong to.

    Raises:
        UserError: what they belong to cannot be read.
    """
    specification = load_specification(folder)
    try:
        document.check(specification, _STUDY, "it")
        recipe = recipe_from_dict(specification["base_recipe"])
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
        there = document.read_json(folder / SPECIFICATION)
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
    atomic.write(folder / SPECIFICATION, text.encode())


# What a specification says of how it came about, which does not decide what the runs are.
_ABOUT = ("machines", "command")


def run_lines(runs: list[Run]) -> bytes:
    """Returns runs as lines of JSON, each with a digest of the rest: `load_runs` notices damage."""

    def line(run: Run) -> str:
        fields = json.loads(json.dumps(dataclasses.asdict(run), allow_nan=False))
        return json.dumps({**fields, "digest": _digest(fields)}) + "\n"

    return "".join(map(line, runs)).encode()
