"""A study: many runs of several optimizers, tuned on a part of the training images, then tested.

Every run is written to `runs.jsonl` as soon as it has ended. A study that was killed goes on with
the runs that are missing there.
"""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.devices import environment, processes
from jaxcnn.errors import WORKDIR_REMEDY, UserError, writing
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.storage import atomic, fingerprint
from jaxcnn.study.runs import (
    PHASES,
    RUNS,
    Phase,
    Run,
    Study,
    check_runs,
    differing,
    load_runs,
    load_specification,
    missing_runs,
    run_lines,
    write_specification,
)
from jaxcnn.study.shards import Shard
from jaxcnn.train import ensemble
from jaxcnn.train.identity import code_digest
from jaxcnn.train.members import Members


class StudyObserver:
    """Is told how a study goes on; this one ignores it."""

    def start(self, runs: int, images: int, done: int) -> None:
        """So many runs are there already; of all images to train on, so many are done."""

    def runs(self, phase: Phase, optimizer: str, count: int) -> None:
        """So many runs of an optimizer begin."""

    def advance(self, images: int) -> None:
        """So many images were trained on."""

    def stop(self) -> None:
        """The study has ended, well or not."""


def run_study(
    study: Study,
    dataset: Dataset,
    folder: Path,
    *,
    chunk: int | None = None,
    mesh: Any = None,
    observer: StudyObserver | None = None,
    shard: Shard | None = None,
    command: str = "",
) -> list[Run]:
    """Runs what is missing of a study, or of a shard of it, and returns all of it.

    Of several processes, see `jaxcnn.devices.processes`, all run it on the same arguments; process
    0 alone reads and writes the workdir.

    Args:
        study: what is compared.
        dataset: what to train and test on.
        folder: the workdir, of this study or shard alone; it may hold a part of it.
        chunk: runs at once, see `jaxcnn.train.ensemble.fit_chunks`.
        mesh: of devices, likewise.
        observer: told about progress.
        shard: the optimizers whose runs to do. Default: all.
        command: that goes on with it, to be kept beside the runs.

    Raises:
        UserError: the workdir holds another study or is in use, an optimizer cannot be used,
            there are more shards than optimizers, or the processes were given different arguments.
        WriteError: it cannot be written.
    """
    observer = observer or StudyObserver()
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

            @processes.on_main
            def begin() -> tuple[list[dict[str, Any]], tuple[int, int]]:
                stack.enter_context(atomic.locked(folder))
                done = load_runs(folder / RUNS)
                images = _images(part, dataset, done)
                _claim(asked, folder, command, started=bool(done), ended=images[0] == images[1])
                check_runs(part, done, folder / RUNS)
                return list(map(dataclasses.asdict, done)), images

            fields, images = begin()
            done = list(map(_from_fields, fields))
            observer.start(len(done), *images)
            for fresh in _missing(part, dataset, done, {"chunk": chunk, "mesh": mesh}, observer):
                processes.on_main(_append)(folder / RUNS, fresh)
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


def _missing(
    study: Study, dataset: Dataset, done: list[Run], how: dict[str, Any], observer: StudyObserver
) -> Iterator[list[Run]]:
    """Trains what is missing, and yields it as it ends."""
    runs = list(done)
    tuning, held_out = hold_out(dataset, study.validation)
    for phase in PHASES:
        for optimizer in study.learning_rates:
            pairs = missing_runs(study, runs, phase, optimizer)
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
            members = Members(columns[1].astype(int), {"learning_rate": columns[0]})
            recipe = study.for_optimizer(optimizer)
            first = 0
            for result in ensemble.fit_chunks(recipe, data, members, **options):
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
    result: ensemble.ManyResult,
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
            specification[f"code of {name}"] = code_digest(name)
    specification |= {"dataset": dataset.name, "dataset_version": dataset.version}
    if shard:
        specification |= {"shard": shard.number, "shards": shard.count}
    whole: dict[str, Any] = fingerprint.of(specification | environment.jax_settings())
    return whole


def _from_fields(fields: dict[str, Any]) -> Run:
    """Returns a run from its fields, whose tuples may be the lists of JSON."""
    tuples = {name: tuple(value) for name, value in fields.items() if isinstance(value, list)}
    return Run(**fields | tuples)


def _append(path: Path, runs: list[Run]) -> None:
    with writing(path, WORKDIR_REMEDY), path.open("ab") as file:
        file.write(run_lines(runs))
        file.flush()
        os.fsync(file.fileno())
