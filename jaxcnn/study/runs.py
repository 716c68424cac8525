"""The runs of a study: their file `runs.jsonl`, which are missing, and the best learning rates."""

import dataclasses
import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

import numpy as np

from jaxcnn.errors import WORKDIR_REMEDY, UserError, writing
from jaxcnn.storage import document
from jaxcnn.study.specification import Study, with_digest, without_digest

RUNS = "runs.jsonl"

Phase = Literal["tune", "final"]
PHASES: tuple[Phase, ...] = get_args(Phase)

# A value after every epoch; None once the run has diverged.
Curve = tuple[float | None, ...]


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        phase: "tune", scored on the held-out images, or "final", scored on the test images.
        optimizer: its name.
        learning_rate: the peak of its schedule, per step.
        seed: of everything random.
        steps_an_epoch: number of optimizer steps in an epoch.
        diverged_at: the first step whose loss was not finite; 0 if there was none.
        correct: number of correct predictions at the end.
        total: number of images scored.
        train_loss: mean over each epoch, in training mode.
        train_accuracy: mean over each epoch, in training mode, 0..1.
        validation_loss: on the held-out images after each epoch; empty if "final".
        validation_accuracy: on the held-out images after each epoch, 0..1; empty if "final".
    """

    phase: Phase
    optimizer: str
    learning_rate: float
    seed: int
    steps_an_epoch: int
    diverged_at: int
    correct: int
    total: int
    train_loss: Curve
    train_accuracy: Curve
    validation_loss: Curve = ()
    validation_accuracy: Curve = ()

    @property
    def accuracy(self) -> float:
        """Share of correct predictions, 0..1; of a diverged run, those of NaN parameters."""
        return self.correct / self.total

    @property
    def key(self) -> tuple[Phase, str, float, int]:
        """What tells a run from the others of its study."""
        return self.phase, self.optimizer, self.learning_rate, self.seed

    def __str__(self) -> str:
        return f"{self.phase} {self.optimizer} at {self.learning_rate:g} with seed {self.seed}"


# The form of a line of the file, see `document.check`.
_JSON_FORMS: dict[Any, Any] = {Phase: str, Curve: [(float, None)]}
_FORM = {name: _JSON_FORMS.get(kind, kind) for name, kind in get_type_hints(Run).items()}


def select_runs(
    runs: list[Run], phase: Phase, optimizer: str, learning_rate: float | None = None
) -> list[Run]:
    """Returns the runs of an optimizer in a phase, ordered by learning rate and seed.

    Args:
        runs: to choose from.
        phase: "tune" or "final".
        optimizer: its name.
        learning_rate: to choose as well. Default: any.
    """
    found = [
        run
        for run in runs
        if (run.phase, run.optimizer) == (phase, optimizer)
        and learning_rate in (None, run.learning_rate)
    ]
    return sorted(found, key=lambda run: (run.learning_rate, run.seed))


def best_rate(study: Study, runs: list[Run], optimizer: str) -> float:
    """Returns the learning rate with the highest mean validation accuracy.

    Args:
        study: that the runs belong to.
        runs: with at least one tuning run at every learning rate of the optimizer.
        optimizer: its name.
    """

    def mean(rate: float) -> float:
        return float(np.mean([run.accuracy for run in select_runs(runs, "tune", optimizer, rate)]))

    return max(study.learning_rates[optimizer], key=mean)


def missing_runs(
    study: Study, runs: list[Run], phase: Phase, optimizer: str
) -> list[tuple[float, int]]:
    """Returns learning rate and seed of each missing run of an optimizer in a phase.

    Args:
        study: that the runs belong to.
        runs: those that have ended; for "final", all tuning runs of the optimizer are among them.
        phase: "tune" or "final".
        optimizer: its name.
    """
    rates, seeds = study.learning_rates[optimizer], study.tune_seeds
    if phase == "final":
        rates, seeds = (best_rate(study, runs, optimizer),), study.seeds
    known = {(run.learning_rate, run.seed) for run in select_runs(runs, phase, optimizer)}
    return [pair for pair in itertools.product(rates, range(seeds)) if pair not in known]


def count_missing(study: Study, runs: list[Run]) -> int:
    """Returns the number of missing runs.

    Args:
        study: that the runs belong to.
        runs: those that have ended. Where an optimizer's tuning lacks a run, its best learning
            rate is unknown, and all its final runs count as missing.
    """
    count = 0
    for name in study.learning_rates:
        tuning = len(missing_runs(study, runs, "tune", name))
        final = study.seeds if tuning else len(missing_runs(study, runs, "final", name))
        count += tuning + final
    return count


def check_runs(study: Study, runs: list[Run], path: Path) -> None:
    """Refuses runs that do not belong to a study: they would change its tables.

    Args:
        study: that the runs should belong to.
        runs: those of a file.
        path: of the file, for the message.

    Raises:
        UserError: a run has a learning rate, seed, length or optimizer that the study has not.
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
                f"{path} has a run that does not belong to this study ({run}): remove its line"
            )


def load_runs(path: Path, *, repair: bool = True) -> list[Run]:
    """Reads the runs that have ended. An incomplete last line is ignored.

    Args:
        path: of the file; if there is none, there are no runs.
        repair: whether to remove an incomplete last line, which only the process that holds the
            folder's lock may do.

    Raises:
        UserError: another line is damaged or repeats a run, or the file is not a regular one.
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
            run = _parse_line(line)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(
                f"{path}, line {number}, is not a run of a study, or was altered: remove the line "
                "to have the run repeated, or remove the folder"
            ) from None
        if runs.setdefault(run.key, run) is not run:
            raise UserError(f"{path}, line {number}, repeats a run of an earlier line: remove it")
    return list(runs.values())


def run_lines(runs: list[Run]) -> bytes:
    """Returns runs as lines of JSON, each with a digest by which `load_runs` notices damage."""

    def line(run: Run) -> str:
        fields = json.loads(json.dumps(dataclasses.asdict(run), allow_nan=False))
        return json.dumps(with_digest(fields)) + "\n"

    return "".join(map(line, runs)).encode()


def run_from_fields(fields: dict[str, Any]) -> Run:
    """Returns a run from its fields by name, whose tuples may be the lists of JSON."""
    tuples = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Run(**fields | tuples)


def _parse_line(line: bytes) -> Run:
    """Returns the run of a line.

    Raises:
        ValueError, TypeError, KeyError or AttributeError: the line is damaged.
    """
    fields = without_digest(document.parse_json(line))
    document.check(fields, _FORM, "it")
    run = run_from_fields(fields)
    if not 0 <= run.correct <= run.total != 0 or run.phase not in PHASES:
        raise ValueError("no score")
    return run
