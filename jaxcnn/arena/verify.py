"""The verification of an entry: a sample of its runs is trained again."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import numpy as np

from jaxcnn.arena import trials
from jaxcnn.arena.description import Protocol, describe, device
from jaxcnn.arena.files import Entry, differing
from jaxcnn.arena.phases import Point, Run, Trainer
from jaxcnn.arena.spaces import RATE, Range, Space, find_space
from jaxcnn.arena.speed import Stopwatch
from jaxcnn.arena.track import Track
from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import UserError
from jaxcnn.recipes import optimizer_defaults
from jaxcnn.study.study import hold_out

_LEAST = 0.01  # of the tolerance in accuracy
# In these another place may differ, and its numbers then do.
_ELSEWHERE = ("code", "versions", "optimizer_code")
_WORDS = ("command", "reference", "space_source")

Verdict = Literal["identical", "within the tolerance", "DIFFERENT"]


@dataclass(frozen=True)
class Finding:
    """What the repetition of a run has shown.

    Attributes:
        run: which one, in words.
        verdict: how it compares.
        expected: what the entry says.
        found: what was computed here.
    """

    run: str
    verdict: Verdict
    expected: Run
    found: Run


def verify(
    entry: Entry,
    track: Track,
    dataset: Dataset,
    *,
    runs: int = 3,
    seed: int = 0,
    mesh: jax.sharding.Mesh | None = None,
    advance: Callable[[int], None] = lambda images: None,
) -> tuple[list[Finding], list[str]]:
    """Repeats a sample of the runs of an entry.

    Args:
        entry: see `jaxcnn.arena.files.load_entry`, which checks its digest.
        track: of the entry, see `Track.prepare`.
        dataset: as `Track.prepare` returns it.
        runs: number of runs to repeat.
        seed: of the random sample.
        mesh: of devices, with the axis "ensemble".
        advance: called with the number of images trained on.

    Returns:
        A finding for each run; and what differs here from the place where the entry was computed
        ("code", "device", ...), without which the numbers have to be identical.

    Raises:
        UserError: the entry is of other settings or data than there are here, or does not follow
            from its own search space.
    """
    own = optimizer_defaults.is_own(entry["optimizer"])
    recipe = track.for_optimizer(entry["optimizer"])
    space = _space(entry) if own else find_space(recipe)
    settings = entry["settings"]
    protocol = Protocol(settings["trials"], settings["seeds"], settings["validation"])
    head = describe(track, entry["optimizer"], space, dataset, protocol)
    names = differing(head, entry)
    elsewhere = [name for name in names if name in _ELSEWHERE]
    if refused := [name for name in names if name not in (*_ELSEWHERE, *_WORDS)]:
        raise UserError(
            f"the entry {entry['optimizer']} on {track.title} cannot be repeated here: its "
            f"{', '.join(refused)} differs"
        )
    check_consistency(entry, space, protocol)
    if entry["device"] != device():
        elsewhere.append("device")
    if entry["members_at_once"] != 1:
        elsewhere.append("number of runs at once")
    tuning, held_out = hold_out(dataset, protocol.validation)
    trainer = Trainer(recipe, {}, 1, mesh, lambda *_: None, advance, Stopwatch())
    findings = []
    sample = _sample(entry, runs, seed)
    for name, data, split in (("trials", tuning, held_out), ("others", dataset, None)):
        chosen = [one for one in sample if (one[0] == "trials") == (name == "trials")]
        points = [_point(entry, *one) for one in chosen]
        for (phase, number), found in zip(
            chosen, trainer.train(name, points, data, split), strict=True
        ):
            expected = {field: entry[phase][number][field] for field in found}
            verdict = _compare(expected, found, exact=not elsewhere)
            seeded = f"{phase}, seed {expected['seed']}"
            which = f"trial {number}" if phase == "trials" else seeded
            findings.append(Finding(which, verdict, expected, found))
    return findings, elsewhere


def check_consistency(entry: Entry, space: Space, protocol: Protocol) -> None:
    """Checks that trials, best and edges of an entry follow from its search space and its scores.

    Args:
        entry: to check.
        space: that its trials are of.
        protocol: its numbers of runs.

    Raises:
        UserError: they do not.
    """
    tried, rates = entry["trials"], space.ranges[RATE]
    first, wanted = tried[: protocol.trials], trials.draw(space, protocol.trials)
    side = trials.edge(rates, wanted[trials.best_first(first)[0]][RATE])
    best = trials.best_first(tried)[0]
    at_edge: list[str] = []
    if side:
        wanted += trials.draw(space, protocol.extension, rates.extension(side))
        widened = trials.widened(rates, side)
        at_edge = [RATE] * (len(wanted) > best and bool(trials.edge(widened, wanted[best][RATE])))
    seeds = list(range(1, protocol.seeds + 1))
    for name, sound in {
        "trials": [one["values"] for one in tried] == wanted,
        "best": entry["best"] == best,
        "extended": entry["extended"] == [RATE] * bool(side),
        "at_edge": entry["at_edge"] == at_edge,
        "final": [run["seed"] for run in entry["final"]] == seeds,
        "untuned": [run["seed"] for run in entry["untuned"]] == seeds,
    }.items():
        if not sound:
            raise UserError(
                f"the entry {entry['optimizer']} on {entry['track']} does not follow the protocol "
                f"(its {name}): compute it anew"
            )


def tolerance(accuracy: float, total: int) -> float:
    """Returns by how much two accuracies of the same run may differ where rounding does.

    Args:
        accuracy: of one of them, 0..1.
        total: number of images that each is of.

    Returns:
        Four standard errors of the difference of two independent accuracies, or 0.01 if that is
        more.
    """
    return max(4 * math.sqrt(2 * accuracy * (1 - accuracy) / total), _LEAST)


def _compare(expected: Run, found: Run, *, exact: bool) -> Verdict:
    """Returns how the repetition of a run compares."""
    if expected == found:
        return "identical"
    if exact or expected["total"] != found["total"]:
        return "DIFFERENT"
    if expected["diverged_at"] and found["diverged_at"]:
        return "within the tolerance"
    both = [run["correct"] / run["total"] for run in (expected, found)]
    near = abs(both[0] - both[1]) <= tolerance(both[0], expected["total"])
    same = bool(expected["diverged_at"]) == bool(found["diverged_at"])
    return "within the tolerance" if near and same else "DIFFERENT"


def _sample(entry: Entry, count: int, seed: int) -> list[tuple[str, int]]:
    """Returns phase and number of runs chosen at random, ordered as they are in the entry."""
    phases = ("trials", "final", "untuned")
    every = [(name, at) for name in phases for at in range(len(entry[name]))]
    chosen = np.random.default_rng(seed).permutation(len(every))[:count]
    return [every[at] for at in sorted(chosen)]


def _point(entry: Entry, phase: str, number: int) -> Point:
    """Returns the hyperparameters and the seed of a run."""
    run = entry[phase][number]
    if phase == "trials":
        return run["values"], run["seed"]
    values = entry["trials"][entry["best"]]["values"] if phase == "final" else entry["default"]
    return values, run["seed"]


def _space(entry: Entry) -> Space:
    """Returns the search space that an entry states."""
    try:
        ranges = {name: Range(*ends) for name, ends in entry["space"].items()}
        positions = [ranges[RATE].at(0.5), *(one.at(0.5) for one in ranges.values())]
        if not all(map(math.isfinite, positions)) or ranges.keys() != entry["default"].keys():
            raise ValueError
    except (TypeError, ValueError, KeyError, ArithmeticError, AttributeError):
        raise UserError(
            f"the entry {entry['optimizer']} on {entry['track']} states no search space: compute "
            "it anew"
        ) from None
    return Space(entry["reference"], entry["space_source"], ranges, entry["default"])
