"""An entry of the arena: one optimizer on one track, by the protocol of docs/arena.md."""

import contextlib
import itertools
from pathlib import Path
from typing import Any

import jax

from jaxcnn.arena import trials
from jaxcnn.arena.description import USUAL, Protocol, describe, device
from jaxcnn.arena.files import Entry, Journal, differing, file_name, load_entry, write_entry
from jaxcnn.arena.phases import Point, Run, Trainer
from jaxcnn.arena.spaces import RATE, Space
from jaxcnn.arena.speed import Stopwatch, add_speeds, state_bytes
from jaxcnn.arena.track import Track
from jaxcnn.data.dataset import Dataset
from jaxcnn.devices import processes
from jaxcnn.errors import UserError
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.storage import atomic
from jaxcnn.study.study import StudyObserver, check_held_out, hold_out

_TRIAL_SEED = 0


def count_images(track: Track, dataset: Dataset, protocol: Protocol) -> int:
    """Returns the number of images that the runs of an entry train on, an extension not counted.

    Args:
        track: of the entry.
        dataset: of the track.
        protocol: the numbers of runs.
    """
    size = len(dataset.train)
    runs = protocol.trials * (size - protocol.validation) + 2 * protocol.seeds * size
    return track.recipe.epochs * runs


def run_entry(
    track: Track,
    optimizer: str,
    space: Space,
    dataset: Dataset,
    folder: Path,
    *,
    protocol: Protocol = USUAL,
    chunk: int = 0,
    mesh: jax.sharding.Mesh | None = None,
    observer: StudyObserver | None = None,
) -> Entry:
    """Computes an entry, or what is missing of it.

    Several processes, see `jaxcnn.devices.processes`, call it with the same arguments; process 0
    alone reads and writes files.

    Args:
        track: see `Track.prepare`.
        optimizer: its name.
        space: its search space.
        dataset: as `Track.prepare` returns it.
        folder: of the entries of this track and variant.
        protocol: the numbers of runs.
        chunk: number of runs at once; 0 for one on each device on CPU, elsewhere all of a phase.
        mesh: of devices, with the axis "ensemble".
        observer: notified of the progress.

    Returns:
        The entry, as `jaxcnn.arena.files.load_entry` returns it.

    Raises:
        UserError: the folder has the entry with other settings, or another process computes it; or
            the optimizer cannot be used.
        WriteError: the folder cannot be written.
    """
    observer = observer or StudyObserver()
    check_held_out(dataset, protocol.validation)
    spread = mesh.shape["ensemble"] if mesh else 1
    at_once = -(-chunk // spread) if chunk else int(jax.default_backend() == "cpu")
    head = describe(track, optimizer, space, dataset, protocol) | {"members_at_once": at_once}
    processes.check_same(head)
    name = file_name(optimizer)
    path, begun, journals = folder / f"{name}.json", folder / f"{name}.jsonl", []
    with contextlib.ExitStack() as stack:

        @processes.on_main
        def begin() -> list[Any]:
            stack.enter_context(atomic.locked(folder, f".{name}.lock"))
            if path.exists():
                entry = _load_same(path, head)
                begun.unlink(missing_ok=True)  # killed before it was removed
                return [entry, []]
            journals.append(Journal(begun, head))
            return [None, [[*key, runs] for key, runs in journals[0].chunks.items()]]

        entry, chunks = begin()
        if entry is not None:
            observer.advance(_trained_images(entry, track, dataset, protocol, observer))
            return dict(entry)
        record = processes.on_main(
            lambda phase, first, runs: journals[0].add(phase, first, runs, device())
        )
        done = {(phase, first): runs for phase, first, runs in chunks}
        recipe, watch = track.for_optimizer(optimizer), Stopwatch()
        trainer = Trainer(recipe, done, at_once, mesh, record, observer.advance, watch)
        results = _compute(trainer, space, dataset, protocol, track.title, observer)

        finish = processes.on_main(lambda: _finish(path, journals[0], head | results))
        entry = finish()
        processes.on_main(_measure)(folder, recipe, dataset, watch)
        return dict(entry)


def _finish(path: Path, journal: Journal, entry: Entry) -> Entry:
    """Writes an entry that has ended, and returns it as it is read."""
    write_entry(path, entry | {"device": "; ".join(journal.devices)})
    journal.remove()
    return load_entry(path)


def _measure(folder: Path, recipe: Recipe, dataset: Dataset, watch: Stopwatch) -> None:
    """Records speed and memory, if there were runs to measure."""
    if watch.images_per_second:
        measured = {"images_per_second": round(watch.images_per_second, 1)}
        measured["state_bytes"] = state_bytes(recipe, dataset)
        add_speeds(folder, device(), {recipe.optimizer: measured})


def _compute(
    trainer: Trainer,
    space: Space,
    dataset: Dataset,
    protocol: Protocol,
    title: str,
    observer: StudyObserver,
) -> dict[str, Any]:
    """Returns the fields of an entry that are results."""
    tuning, held_out = hold_out(dataset, protocol.validation)
    name, epochs = f"{trainer.recipe.optimizer} on {title}", trainer.recipe.epochs

    def tune(phase: str, drawn: list[trials.Values]) -> list[Run]:
        observer.runs("tune", name, len(drawn))
        points: list[Point] = [(values, _TRIAL_SEED) for values in drawn]
        runs = trainer.train(phase, points, tuning, held_out)
        return [{"values": values, **run} for values, run in zip(drawn, runs, strict=True)]

    def best_rate() -> float:
        return float(tried[trials.best_first(tried)[0]]["values"][RATE])

    rates = space.ranges[RATE]
    tried = tune("trials", trials.draw(space, protocol.trials))
    side, at_edge = trials.edge(rates, best_rate()), False
    if side:
        observer.more(protocol.extension * epochs * len(tuning.train))
        tried += tune("extension", trials.draw(space, protocol.extension, rates.extension(side)))
        at_edge = bool(trials.edge(trials.widened(rates, side), best_rate()))
    best = trials.best_first(tried)[0]
    seeds = range(_TRIAL_SEED + 1, _TRIAL_SEED + 1 + protocol.seeds)
    points = list(itertools.product((tried[best]["values"], dict(space.default)), seeds))
    observer.runs("final", name, len(points))
    runs = trainer.train("final", points, dataset)
    return {
        "extended": [RATE] if side else [],
        "at_edge": [RATE] if at_edge else [],
        "trials": tried,
        "best": best,
        "final": runs[: protocol.seeds],
        "untuned": runs[protocol.seeds :],
    }


def _load_same(path: Path, head: dict[str, Any]) -> Entry:
    """Reads an entry that has ended, and refuses one of other settings."""
    entry = load_entry(path)
    if names := differing(head, entry):
        raise UserError(
            f"{path} is another entry (its {', '.join(names)} differs): give another --workdir, or "
            "remove the file to have the entry computed anew"
        )
    return entry


def _trained_images(
    entry: Entry, track: Track, dataset: Dataset, protocol: Protocol, observer: StudyObserver
) -> int:
    """Returns the images of an entry that has ended, and counts those of an extension first."""
    size = track.recipe.epochs * (len(dataset.train) - protocol.validation)
    beyond = (len(entry["trials"]) - protocol.trials) * size
    observer.more(beyond)
    return count_images(track, dataset, protocol) + beyond
