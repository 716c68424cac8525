"""The training of a study's runs: tuning on a part of the training images, then the final runs.

Every run is written to `runs.jsonl` as soon as it has ended. A study that was stopped resumes with
the runs that are missing there.
"""

import contextlib
import dataclasses
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.devices import environment, processes
from jaxcnn.errors import WORKDIR_REMEDY, UserError, writing
from jaxcnn.optim.named import find_factory
from jaxcnn.storage import atomic, fingerprint
from jaxcnn.study.runs import (
    PHASES,
    RUNS,
    Phase,
    Run,
    check_runs,
    load_runs,
    missing_runs,
    run_from_fields,
    run_lines,
)
from jaxcnn.study.specification import (
    Study,
    differing_settings,
    load_specification,
    write_specification,
)
from jaxcnn.train import ensemble
from jaxcnn.train.identity import code_digest
from jaxcnn.train.many_result import ManyResult
from jaxcnn.train.members import Members


class StudyObserver:
    """Is notified of a study's progress. This one ignores it."""

    def start(self, runs: int, images: int, done: int) -> None:
        """The study starts or resumes.

        Args:
            runs: number of runs that have ended already.
            images: number of images that all runs train on, every epoch counted.
            done: how many of these belong to runs that have ended already.
        """

    def runs(self, phase: Phase, optimizer: str, count: int) -> None:
        """Runs of an optimizer start.

        Args:
            phase: "tune" or "final".
            optimizer: its name.
            count: number of runs.
        """

    def more(self, images: int) -> None:
        """There are runs that were not counted at the start, on that number of images."""

    def advance(self, images: int) -> None:
        """Runs have trained on that number of images since the last call."""

    def stop(self) -> None:
        """The study has ended, with or without an error."""


def run_study(
    study: Study,
    dataset: Dataset,
    folder: Path,
    *,
    chunk: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    model: nn.Module | None = None,
    observer: StudyObserver | None = None,
    command: str = "",
) -> list[Run]:
    """Trains the missing runs of a study.

    Several processes, see `jaxcnn.devices.processes`, call it with the same arguments; process 0
    alone reads and writes the workdir.

    Args:
        study: what is compared.
        dataset: to train and test on.
        folder: the workdir, of this study alone. If it holds some runs, the study resumes.
        chunk: number of runs at once, see `jaxcnn.train.ensemble.fit_chunks`.
        mesh: of devices, see `jaxcnn.train.ensemble.fit_chunks`.
        model: another network than the recipe's.
        observer: notified of the progress.
        command: that resumes the study, to be kept beside the runs.

    Returns:
        All runs of the study, those of the workdir first.

    Raises:
        UserError: the workdir holds another study or is in use, an optimizer cannot be used, or the
            processes have different arguments.
        WriteError: the workdir cannot be written.
    """
    observer = observer or StudyObserver()
    check_held_out(dataset, study.validation)
    specification = _specify(study, dataset, model)
    axes = dict(mesh.shape) if mesh else None
    processes.check_same({**specification, "chunk": chunk, "mesh": axes})
    try:
        with contextlib.ExitStack() as stack:

            @processes.on_main
            def begin() -> tuple[list[dict[str, Any]], tuple[int, int]]:
                stack.enter_context(atomic.locked(folder))
                done = load_runs(folder / RUNS)
                images = _count_images(study, dataset, done)
                _claim(folder, specification, command, done, ended=images[0] == images[1])
                check_runs(study, done, folder / RUNS)
                return list(map(dataclasses.asdict, done)), images

            fields, images = begin()
            done = list(map(run_from_fields, fields))
            observer.start(len(done), *images)
            options = {"chunk": chunk, "mesh": mesh, "model": model, "report": observer.advance}
            for fresh in _train_missing(study, dataset, done, options, observer):
                processes.on_main(_append)(folder / RUNS, fresh)
                done += fresh
            check_runs(study, done, folder / RUNS)  # the best rates are known now
            return done
    finally:
        observer.stop()


def check_held_out(dataset: Dataset, count: int) -> None:
    """Refuses a number of images to hold out, see `hold_out`, that leaves none for either part.

    Args:
        dataset: to split.
        count: number of images to hold out.

    Raises:
        UserError: it does.
    """
    most = len(dataset.train) - 1
    if not 0 < count <= most:
        raise UserError(f"--validation takes 1 to {most} of the training images, got {count}")


def hold_out(dataset: Dataset, count: int) -> tuple[Dataset, Split]:
    """Splits the training images at random, always in the same way.

    Args:
        dataset: to split.
        count: number of images to hold out.

    Returns:
        The data set without the held-out images, and the held-out images.
    """
    order = np.random.default_rng(0).permutation(len(dataset.train))

    def take(indices: np.ndarray) -> Split:
        return Split(dataset.train.images[indices], dataset.train.labels[indices])

    rest = dataclasses.replace(dataset, train=take(np.sort(order[count:])))
    return rest, take(np.sort(order[:count]))


def _train_missing(
    study: Study,
    dataset: Dataset,
    done: list[Run],
    options: dict[str, Any],
    observer: StudyObserver,
) -> Iterator[list[Run]]:
    """Trains the missing runs and yields those that have ended, chunk by chunk.

    Each optimizer has ensembles of its own, with the seeds 0, 1, ...; the automatic size of a chunk
    follows from their number of members and the device's free memory. So an optimizer has the same
    runs whichever others are in the study, on which `jaxcnn.study.join` relies.
    """
    runs = list(done)
    tuning, held_out = hold_out(dataset, study.validation)
    for phase in PHASES:
        data = tuning if phase == "tune" else dataset
        scored = {"evaluate_on": held_out} if phase == "tune" else {"evaluate_once": True}
        for optimizer in study.learning_rates:
            pairs = missing_runs(study, runs, phase, optimizer)
            if not pairs:
                continue
            observer.runs(phase, optimizer, len(pairs))
            rates, seeds = np.array(pairs).T
            members = Members(seeds.astype(int), {"learning_rate": rates})
            recipe = study.for_optimizer(optimizer)
            steps = -(-len(data.train) // recipe.batch_size)
            remaining = iter(pairs)
            for result in ensemble.fit_chunks(recipe, data, members, **scored, **options):
                own = list(itertools.islice(remaining, len(result.members)))
                fresh = _make_runs(result, phase, optimizer, own, steps)
                runs += fresh
                yield fresh


def _make_runs(
    result: ManyResult,
    phase: Phase,
    optimizer: str,
    pairs: list[tuple[float, int]],
    steps_an_epoch: int,
) -> list[Run]:
    """Returns the runs of an ensemble; `pairs` are learning rate and seed of each member."""

    def curve(name: str, member: int) -> tuple[float | None, ...]:
        values = result.history[name][:, member].tolist()
        return tuple(value if np.isfinite(value) else None for value in values)

    tuned = phase == "tune"
    return [
        Run(
            phase=phase,
            optimizer=optimizer,
            learning_rate=rate,
            seed=seed,
            steps_an_epoch=steps_an_epoch,
            diverged_at=int(result.diverged_at[member]),
            correct=int(result.correct[member]),
            total=result.total,
            train_loss=curve("train_loss", member),
            train_accuracy=curve("train_accuracy", member),
            validation_loss=curve("eval_loss", member) if tuned else (),
            validation_accuracy=curve("eval_accuracy", member) if tuned else (),
        )
        for member, (rate, seed) in enumerate(pairs)
    ]


def _count_images(study: Study, dataset: Dataset, runs: list[Run]) -> tuple[int, int]:
    """Returns the number of images that all runs train on, and that of the runs that have ended."""
    epochs, size = study.recipe.epochs, len(dataset.train)
    tune, final = epochs * (size - study.validation), epochs * size
    rates = sum(map(len, study.learning_rates.values()))
    everything = tune * rates * study.tune_seeds + final * len(study.learning_rates) * study.seeds
    return everything, sum(tune if run.phase == "tune" else final for run in runs)


def _claim(
    folder: Path, specification: dict[str, Any], command: str, done: list[Run], *, ended: bool
) -> None:
    """Writes the study into its workdir, or checks that the workdir's runs belong to it."""
    found = load_specification(folder) if done else specification
    if names := differing_settings(found, specification):
        raise UserError(
            f"--workdir {folder} holds another study (its {', '.join(names)} differs): give "
            "another folder, or the flags of that study to resume it"
        )
    machines, here = found.get("machines", []), environment.machine()
    if not done or not machines or not (ended or here in machines):
        provenance = {"machines": [*machines, here], "command": found.get("command", command)}
        write_specification(folder, found | provenance)


def _specify(study: Study, dataset: Dataset, model: nn.Module | None) -> dict[str, Any]:
    """Returns all that decides the results of the runs, the code of user-defined parts too."""
    recipe = dataclasses.asdict(study.recipe)
    specification = {name: recipe[name] for name in ("network", "epochs", "batch_size")}
    specification |= dataclasses.asdict(study)
    specification["recipe"] = {
        name: dataclasses.asdict(study.for_optimizer(name)) for name in study.learning_rates
    }
    specification["base_recipe"] = study.recipe.asdict()
    for name in study.learning_rates:
        if ":" in name:
            specification[f"code of {name}"] = code_digest(find_factory(name))
    if model is not None:
        specification["model"] = fingerprint.digest([model, code_digest(type(model))])
    specification |= {"dataset": dataset.name, "dataset_version": dataset.version}
    plain: dict[str, Any] = fingerprint.of(specification | environment.jax_settings())
    return plain


def _append(path: Path, runs: list[Run]) -> None:
    with writing(path, WORKDIR_REMEDY), path.open("ab") as file:
        file.write(run_lines(runs))
        file.flush()
        os.fsync(file.fileno())
