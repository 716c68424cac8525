"""The diagrams over all tracks: where everything in them is, for the templates of the page."""

import math
from collections.abc import Sequence
from typing import Any

from jaxcnn.arena.overall import (
    LARGEST_RATIO,
    CriticalDifference,
    Profile,
    critical_difference,
    performance_profiles,
)
from jaxcnn.arena.scores import REFERENCE, TrackScores

# Number of optimizers with a colour of their own; page.css has the colours.
_COLOURS = 8

# The axes of the profiles, in pixels: left, right, top and bottom.
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 625, 15, 260

# The axis of mean ranks, from and to, and the height of a name.
_RANKS = (230, 630)
_LINE = 17
# Longer names are cut off.
_LETTERS = 28


def profiles(tracks: Sequence[TrackScores]) -> dict[str, Any] | None:
    """Returns what `profiles.html` shows; None unless two tracks have a target.

    Args:
        tracks: all of them.
    """
    found = performance_profiles(tracks)
    if not found or len(found[0].ratios) < 2:
        return None
    colours = {one.optimizer: f"c{place}" for place, one in enumerate(found[:_COLOURS])}
    lines = [
        {"name": one.optimizer, "colour": colours.get(one.optimizer, "other"), "path": _steps(one)}
        for one in found
    ]
    ranks: dict[str, list[float]] = {}
    for score in (score for track in tracks for score in track.scores):
        ranks.setdefault(score.optimizer, []).append(score.rank)
    rows = []
    for one in found:
        own = ranks[one.optimizer]
        mean, reached = sum(own) / len(own), sum(map(math.isfinite, one.ratios))
        cells = [
            {"value": one.score, "text": f"{one.score:.3f}"},
            {"value": mean, "text": f"{mean:.1f}"},
            {"value": reached, "text": f"{reached} of {len(one.ratios)}"},
        ]
        colour = colours.get(one.optimizer, "other")
        rows.append({"name": one.optimizer, "colour": colour, "cells": cells})
    return {
        "tracks": len(found[0].ratios),
        "reference": REFERENCE,
        "x_ticks": [(round(_x(ratio)), f"{ratio:g}") for ratio in (1, 1.5, 2, 2.5, 3, 3.5, 4)],
        "y_ticks": [(round(_y(share)), f"{share:.0%}") for share in (0, 0.25, 0.5, 0.75, 1)],
        "lines": lines[::-1],  # the best above the others
        "rows": rows,
    }


def _x(ratio: float) -> float:
    return _LEFT + (_RIGHT - _LEFT) * (ratio - 1) / (LARGEST_RATIO - 1)


def _y(share: float) -> float:
    return _BOTTOM - (_BOTTOM - _TOP) * share


def _steps(profile: Profile) -> str:
    """Returns a profile as an SVG path: a step up at each ratio."""
    path, count = f"M{_LEFT} {_BOTTOM}", len(profile.ratios)
    for index, ratio in enumerate(profile.ratios, 1):
        if ratio <= LARGEST_RATIO:
            path += f"H{_x(ratio):.1f}V{_y(index / count):.1f}"
    return f"{path}H{_RIGHT}"


def critical(tracks: Sequence[TrackScores]) -> dict[str, Any] | None:
    """Returns what `critical.html` shows; None where there is nothing to compare.

    Args:
        tracks: all of them.
    """
    found = critical_difference(tracks)
    if found is None:
        return None
    left, right = _RANKS
    count = len(found.optimizers)
    scale = (right - left) / (count - 1)
    first = 70 + 8 * len(found.groups)  # of the names, below the bars
    half = -(-count // 2)
    names = []
    for index, (name, rank) in enumerate(zip(found.optimizers, found.ranks, strict=True)):
        at, on_left = left + scale * (rank - 1), index < half
        place = index if on_left else count - 1 - index
        y = first + _LINE * place
        end = left - 20 if on_left else right + 20
        name = name if len(name) <= _LETTERS else f"{name[: _LETTERS - 1]}…"
        text = f"{name} {rank:.1f}" if on_left else f"{rank:.1f} {name}"
        names.append(
            {
                "path": f"M{at:.1f} 52V{y}H{end}",
                "x": end - 6 if on_left else end + 6,
                "y": y + 4,
                "anchor": "end" if on_left else "start",
                "text": text,
            }
        )
    bars = []
    for row, (start, end) in enumerate(found.groups):
        low, high = (left + scale * (found.ranks[index] - 1) for index in (start, end))
        bars.append(f"M{low - 3:.1f} {62 + 8 * row}H{high + 3:.1f}")
    step = max(1, -(-(count - 1) // 10))
    return {
        "caption": _caption(found),
        "difference": f"{found.difference:.1f}"
        + (", beyond the axis" if found.difference > count - 1 else ""),
        "left": left,
        "right": right,
        "ruler": round(min(left + scale * found.difference, right)),
        "ticks": [(round(left + scale * at), at + 1) for at in range(0, count, step)],
        "names": names,
        "bars": bars,
        "height": first + _LINE * half,
    }


def _caption(found: CriticalDifference) -> str:
    """Describes the tests in a sentence or two."""
    count = len(found.optimizers)
    text = (
        f"Mean ranks of {count} optimizers by test accuracy over {found.tracks} tracks. Bars join "
        "those that do not differ by Nemenyi's test at 5 %; Friedman's test, that all are alike, "
        f"has p = {found.p_value:.2g}."
    )
    if found.difference > (count - 1) / 2:
        text += " So few tracks can tell little of so many optimizers."
    return text
