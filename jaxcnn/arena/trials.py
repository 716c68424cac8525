"""The trials of a search space: the points that are drawn, the best one, and the edges."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxcnn.arena.spaces import RATE, Range, Space

_SEED = 0  # of the scrambling of Sobol's sequence, a part of the protocol
_EDGE = 1 / 8  # of a range, on each side

# Hyperparameters of a trial, by name.
Values = dict[str, float]


def unit_points(count: int, dimensions: int) -> np.ndarray:
    """Returns the first points of a scrambled Sobol sequence.

    Args:
        count: of points.
        dimensions: of the cube.

    Returns:
        float64[count, dimensions], each from 0 to below 1.
    """
    from scipy.stats import qmc  # here: it takes long to import

    sequence = qmc.Sobol(dimensions, scramble=True, rng=_SEED)
    points: np.ndarray = sequence.random_base2(max(count - 1, 1).bit_length())[:count]
    return points


def draw(space: Space, count: int, rates: Range | None = None) -> list[Values]:
    """Returns trials of a space.

    Args:
        space: to draw from.
        count: number of trials.
        rates: of the learning rate, in place of the space's.
    """
    ranges = dict(space.ranges) | ({RATE: rates} if rates else {})
    return [
        {name: one.at(float(at)) for (name, one), at in zip(ranges.items(), point, strict=True)}
        for point in unit_points(count, len(ranges))
    ]


def best_first(trials: Sequence[Mapping[str, Any]]) -> list[int]:
    """Returns the positions of trials, the best one first.

    Those of lower loss come first, then those of more correct predictions, then the earlier ones;
    those that have diverged last, by their learning rate, the lowest first.

    Args:
        trials: as an entry has them.
    """

    def key(index: int) -> tuple[Any, ...]:
        trial = trials[index]
        if trial["diverged_at"]:
            return True, trial["values"][RATE], index
        loss = math.inf if trial["loss"] is None else trial["loss"]
        return False, loss, -trial["correct"], index

    return sorted(range(len(trials)), key=key)


def edge(rates: Range, rate: float) -> Literal["", "low", "high"]:
    """Returns at which edge of its range a learning rate is, if at any.

    Args:
        rates: the range.
        rate: in it.
    """
    position = rates.position(rate)
    return "low" if position < _EDGE else "high" if position > 1 - _EDGE else ""


def widened(rates: Range, side: Literal["low", "high"]) -> Range:
    """Returns a range together with its extension.

    Args:
        rates: the range.
        side: at which it is extended.
    """
    beyond = rates.extension(side)
    return Range(min(rates.low, beyond.low), max(rates.high, beyond.high), rates.scale)
