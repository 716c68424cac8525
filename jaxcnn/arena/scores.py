"""The scores of the entries of a track: one optimizer each, see docs/arena.md."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.arena import significance
from jaxcnn.arena.files import load_entries
from jaxcnn.arena.speed import load_speeds
from jaxcnn.arena.track import track_title
from jaxcnn.arena.trials import best_first
from jaxcnn.errors import UserError

REFERENCE = "sgd"
"""The optimizer that the target, the speed and the memory of the others are relative to."""

Entry = Mapping[str, Any]
"""The content of an entry's file: an optimizer's trials and final runs on a track."""


@dataclass(frozen=True)
class Score:
    """The results of an optimizer on a track.

    Attributes:
        entry: what it is computed from.
        accuracy: mean on the test images, tuned, over the seeds, 0..1.
        standard_error: of `accuracy`; None for a single seed.
        untuned: mean accuracy on the test images with the catalog's defaults; None without runs.
        expected: accuracy on the held-out images of the best of 1, 2, 4, 8, ... trials, see
            `jaxcnn.arena.trials.best_first`, by that number: the mean over all ways to draw so many
            of the trials.
        studies: the median, over three studies of up to five trials each, of the best trial's
            accuracy on the held-out images; None with fewer than three trials. So AlgoPerf tunes
            externally (https://github.com/mlcommons/algorithmic-efficiency, its rules).
        curve: mean training loss of the tuned runs in equal parts of the run, in nats; NaN where
            one has diverged.
        area: mean of `curve`, in nats; None if one has diverged.
        steps_to_target: optimizer steps until `curve` reaches the end of the reference's; None if
            it does not, or without a reference.
        speed: training images per second relative to the reference; None if not measured.
        memory: size of the state relative to the reference; None if not measured.
        diverged: number of its runs that diverged, trials and final ones.
        runs: number of its runs.
        rank: by `accuracy`, 1 the best; the mean rank for equal ones.
        interval: of the rank, see `jaxcnn.arena.significance.rank_intervals`; None with less than
            two seeds that all optimizers have.
        better_than: names of the optimizers whose accuracy is significantly lower.
    """

    entry: Entry
    accuracy: float
    standard_error: float | None
    untuned: float | None
    expected: dict[int, float]
    studies: float | None
    curve: np.ndarray
    area: float | None
    steps_to_target: float | None
    speed: float | None
    memory: float | None
    diverged: int
    runs: int
    rank: float
    interval: tuple[float, float] | None
    better_than: tuple[str, ...]

    @property
    def optimizer(self) -> str:
        """The optimizer's name."""
        return str(self.entry["optimizer"])


@dataclass(frozen=True)
class TrackScores:
    """The scores of all optimizers on a track.

    Attributes:
        name: of the track, and its variant unless that is the standard.
        scores: the best optimizer first.
        target: training loss that `steps_to_target` counts to, in nats; None without a reference.
        seeds: number of seeds that all optimizers have.
    """

    name: str
    scores: tuple[Score, ...]
    target: float | None
    seeds: int


def score_tracks(
    entries: Iterable[Entry], speeds: Mapping[str, Mapping[str, Any]] = {}
) -> list[TrackScores]:
    """Scores the entries of all tracks.

    Args:
        entries: of any optimizers and tracks.
        speeds: the content of `speed.json` by the title of the track, see
            `jaxcnn.arena.track.track_title`.

    Returns:
        The tracks, in the order in which they first occur.

    Raises:
        UserError: a track has two entries of an optimizer.
    """
    groups: dict[str, dict[str, Entry]] = {}
    for entry in entries:
        name = track_title(entry["track"], entry["variant"])
        group = groups.setdefault(name, {})
        if entry["optimizer"] in group:
            raise UserError(f"{name} has two entries of {entry['optimizer']}: give one of them")
        group[entry["optimizer"]] = entry
    return [_score(name, group, speeds.get(name, {})) for name, group in groups.items()]


def load_scores(folder: Path) -> list[TrackScores]:
    """Scores all entries in a workdir of the arena.

    Args:
        folder: the workdir.

    Returns:
        As `score_tracks`, with the speeds and sizes that are recorded beside the entries.

    Raises:
        UserError: an entry, or a record of speeds, is damaged.
    """
    entries = load_entries(folder)
    titles = {path.parent.name for path in entries}
    return score_tracks(entries.values(), {name: load_speeds(folder / name) for name in titles})


def _score(name: str, entries: Mapping[str, Entry], speed: Mapping[str, Any]) -> TrackScores:
    """Returns a track's scores; `entries` are by optimizer, `speed` is its `speed.json`."""
    names = list(entries)
    by_seed = [{run["seed"]: _accuracy(run) for run in e["final"]} for e in entries.values()]
    seeds = sorted(set.intersection(*map(set, by_seed)))
    means = np.array([[np.mean(list(runs.values()))] for runs in by_seed])
    paired = np.array([[runs[seed] for seed in seeds] for runs in by_seed])
    better: list[tuple[str, ...]] = [()] * len(names)
    intervals: list[tuple[float, float] | None] = [None] * len(names)
    ranks, _, _ = significance.rank_intervals(means)
    if len(seeds) > 1:
        _, low, high = significance.rank_intervals(paired)
        intervals = list(zip(low.tolist(), high.tolist(), strict=True))
        lower = paired.mean(1)[:, None] > paired.mean(1)
        found = (significance.paired_p_values(paired) < significance.LEVEL) & lower
        better = [tuple(np.array(names)[row].tolist()) for row in found]
    curves = {optimizer: _curve(entry["final"]) for optimizer, entry in entries.items()}
    target = float(curves[REFERENCE][-1]) if REFERENCE in curves else math.nan
    measured = speed.get("optimizers", {})
    scores = []
    for index, (optimizer, entry) in enumerate(entries.items()):
        accuracies = list(by_seed[index].values())
        # Without those beyond an edge of the space, which not all have.
        trials = entry["trials"][: entry["settings"].get("trials")]
        runs = [*entry["trials"], *entry["final"], *entry["untuned"]]
        curve = curves[optimizer]
        scores.append(
            Score(
                entry=entry,
                accuracy=float(means[index, 0]),
                standard_error=_standard_error(accuracies),
                untuned=_mean([_accuracy(run) for run in entry["untuned"]]),
                expected=expected_best(trials),
                studies=median_of_studies(trials),
                curve=curve,
                area=float(curve.mean()) if np.isfinite(curve).all() else None,
                steps_to_target=steps_to(target, curve, entry["settings"]["steps"]),
                speed=_relative(measured, optimizer, "images_per_second"),
                memory=_relative(measured, optimizer, "state_bytes"),
                diverged=sum(run["diverged_at"] > 0 for run in runs),
                runs=len(runs),
                rank=float(ranks[index]),
                interval=intervals[index],
                better_than=better[index],
            )
        )
    scores.sort(key=lambda score: (score.rank, score.optimizer))
    return TrackScores(name, tuple(scores), target if math.isfinite(target) else None, len(seeds))


def expected_best(trials: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Returns the expected accuracy of the best of n of T trials, for n = 1, 2, 4, ...

    Args:
        trials: as an entry has them, of which n are drawn without replacement.

    Returns:
        The means by n, the last of all T: of the trials from the worst to the best, the i-th from 0
        is the best in (i choose n - 1) of the (T choose n) draws.
    """
    ordered = [_accuracy(trials[index]) for index in reversed(best_first(trials))]
    total = len(ordered)
    counts = [2**power for power in range(total.bit_length()) if 2**power < total]
    return {
        n: sum(math.comb(i, n - 1) * value for i, value in enumerate(ordered)) / math.comb(total, n)
        for n in [*counts, total]
        if n > 0
    }


def median_of_studies(trials: Sequence[Mapping[str, Any]]) -> float | None:
    """Returns the median accuracy of the best of three studies of up to five trials each.

    Args:
        trials: as an entry has them, in the order of their quasi-random sequence.
    """
    size = min(5, len(trials) // 3)
    studies = [trials[size * index : size * (index + 1)] for index in range(3)]
    bests = [_accuracy(study[best_first(study)[0]]) for study in studies if study]
    return float(np.median(bests)) if size else None


def steps_to(target: float, curve: np.ndarray, steps: int) -> float | None:
    """Returns the number of optimizer steps until a curve reaches a target, or None.

    Args:
        target: training loss.
        curve: float[W], mean training losses in W equal parts of the run, each taken as that of its
            middle; between these it is interpolated linearly.
        steps: of the run.
    """
    reached = np.flatnonzero(curve <= target)
    if not len(reached):
        return None
    last = int(reached[0])
    part = 0.0
    if last and np.isfinite(curve[last - 1]):
        part = (curve[last] - target) / (curve[last] - curve[last - 1])
    return float((last + 0.5 - part) * steps / len(curve))


def _accuracy(run: Mapping[str, Any]) -> float:
    """Returns the share of correct predictions; that of a diverged run is of NaN parameters."""
    return (run["correct"] or 0) / run["total"]


def _curve(runs: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Returns the mean progress of runs, NaN where that of one is not finite."""
    return np.array([run["progress"] for run in runs], float).mean(0)


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _standard_error(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None


def _relative(measured: Mapping[str, Any], optimizer: str, quantity: str) -> float | None:
    """Returns a measured quantity relative to that of the reference; None if one is missing."""
    ours, reference = measured.get(optimizer), measured.get(REFERENCE)
    return float(ours[quantity] / reference[quantity]) if ours and reference else None
