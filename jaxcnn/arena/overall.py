"""Comparison over tracks: performance profiles, and critical differences of mean ranks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jaxcnn.arena.scores import TrackScores
from jaxcnn.arena.significance import LEVEL

LARGEST_RATIO = 4.0
"""Up to which profiles are drawn and integrated, as in AlgoPerf."""


@dataclass(frozen=True)
class Profile:
    """How often an optimizer is how much slower than the fastest.

    Attributes:
        optimizer: its name.
        ratios: its steps to the target relative to the fewest of all optimizers, for every track,
            ascending; infinite where it does not reach the target, or has no entry.
        score: the mean share of tracks with a ratio below tau, for tau from 1 to 4; 0..1.
    """

    optimizer: str
    ratios: tuple[float, ...]
    score: float


@dataclass(frozen=True)
class CriticalDifference:
    """Mean ranks of optimizers over tracks, and which of them differ.

    Attributes:
        optimizers: those that all tracks have, ordered by mean rank.
        ranks: their mean ranks by test accuracy.
        tracks: number of tracks.
        p_value: of Friedman's test, that all optimizers are alike.
        difference: of two mean ranks, from which on two optimizers differ by Nemenyi's test at 5 %.
        groups: first and last index of every largest group in which no two differ.
    """

    optimizers: tuple[str, ...]
    ranks: tuple[float, ...]
    tracks: int
    p_value: float
    difference: float
    groups: tuple[tuple[int, int], ...]


def performance_profiles(tracks: Sequence[TrackScores]) -> list[Profile]:
    """Returns the performance profile of every optimizer, that with the highest score first.

    By Dolan and More, Benchmarking Optimization Software with Performance Profiles, 2002, and
    integrated as in AlgoPerf (Dahl et al., 2023, https://arxiv.org/abs/2306.07179). What is
    compared are steps to the target, not seconds, so the machine does not matter.

    Args:
        tracks: those without a target are left out.
    """
    steps = []
    for track in tracks:
        if track.target is not None:
            reached = {one.optimizer: one.steps_to_target or math.inf for one in track.scores}
            steps.append((reached, min(reached.values())))
    names = dict.fromkeys(name for reached, _ in steps for name in reached)
    profiles = []
    for name in names:
        ratios = sorted(
            found / best if math.isfinite(found) else math.inf
            for found, best in ((reached.get(name, math.inf), best) for reached, best in steps)
        )
        # The integral of a step from its ratio on.
        areas = [max(LARGEST_RATIO - ratio, 0) / (LARGEST_RATIO - 1) for ratio in ratios]
        profiles.append(Profile(name, tuple(ratios), sum(areas) / len(areas)))
    return sorted(profiles, key=lambda profile: (-profile.score, profile.optimizer))


def critical_difference(tracks: Sequence[TrackScores]) -> CriticalDifference | None:
    """Compares mean ranks over tracks, by the tests of Friedman and Nemenyi.

    After Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7 (2006).

    Args:
        tracks: any; optimizers that are not on all of them are left out.

    Returns:
        The comparison; None with fewer than two tracks, or three optimizers on all of them.
    """
    from scipy import stats

    accuracies = [{one.optimizer: one.accuracy for one in track.scores} for track in tracks]
    names = (
        [name for name in accuracies[0] if all(name in one for one in accuracies)] if tracks else []
    )
    count = len(names)
    if len(tracks) < 2 or count < 3:
        return None
    table = np.round([[one[name] for name in names] for one in accuracies], 12)
    ranks = stats.rankdata(-table, axis=1).mean(0)
    order = sorted(range(count), key=lambda index: (ranks[index], names[index]))
    ordered = ranks[order]
    quantile = stats.studentized_range.ppf(1 - LEVEL, count, np.inf) / 2**0.5
    difference = float(quantile * (count * (count + 1) / (6 * len(tracks))) ** 0.5)
    return CriticalDifference(
        optimizers=tuple(names[index] for index in order),
        ranks=tuple(ordered.tolist()),
        tracks=len(tracks),
        p_value=_friedman(table),
        difference=difference,
        groups=_groups(ordered, difference),
    )


def _friedman(table: np.ndarray) -> float:
    """Returns the p-value of Friedman's test for accuracies float[tracks, optimizers]."""
    from scipy import stats

    if (np.ptp(table, axis=1) == 0).all():
        return 1.0  # all are equal, where the statistic is 0 / 0
    return float(stats.friedmanchisquare(*table.T).pvalue)


def _groups(ranks: np.ndarray, difference: float) -> tuple[tuple[int, int], ...]:
    """Returns the first and last index of every largest group of ascending ranks that are near."""
    last = np.searchsorted(ranks, ranks + difference, side="left") - 1
    groups: list[tuple[int, int]] = []
    for start, end in enumerate(last.tolist()):
        if end > start and (not groups or end > groups[-1][1]):
            groups.append((start, end))
    return tuple(groups)
