"""Strokes of a pen, taken from the image of a digit."""

import numpy as np
from scipy import ndimage

Stroke = list[tuple[float, float]]

_SCALE = 4  # finer than the image's pixels
_AROUND = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))


def strokes(image: np.ndarray) -> list[Stroke]:
    """Returns the middle lines of the ink of uint8[H, W]; points (x, y) in 0..1."""
    fine = ndimage.zoom(image.astype(float), _SCALE, order=1, grid_mode=True, mode="grid-constant")
    return [
        [((column + 0.5) / fine.shape[1], (row + 0.5) / fine.shape[0]) for row, column in line]
        for line in _lines(_thin(fine > 100))
    ]


def _thin(ink: np.ndarray) -> np.ndarray:
    """Zhang and Suen, A fast parallel algorithm for thinning digital patterns, 1984."""
    ink = np.pad(ink, 1)
    while True:
        before = ink.sum()
        for side in (0, 2):
            around = [np.roll(ink, (-dy, -dx), (0, 1)) for dy, dx in _AROUND]
            count = sum(part.astype(int) for part in around)
            turns = sum(
                ~one & other for one, other in zip(around, around[1:] + around[:1], strict=True)
            )
            n, e, s, w = around[0], around[2], around[4], around[6]
            corner = ~(n & e & s) & ~(e & s & w) if side == 0 else ~(n & e & w) & ~(n & s & w)
            ink = ink & ~((count >= 2) & (count <= 6) & (turns == 1) & corner)
        if ink.sum() == before:
            return ink[1:-1, 1:-1]


def _lines(thin: np.ndarray) -> list[list[tuple[int, int]]]:
    """Follows lines one pixel wide from their ends."""
    left = {(int(row), int(column)) for row, column in np.argwhere(thin)}
    every = set(left)

    def near(place: tuple[int, int]) -> list[tuple[int, int]]:
        row, column = place
        # Straight neighbours first, so that no corner is cut.
        steps = sorted(_AROUND, key=lambda step: abs(step[0]) + abs(step[1]))
        return [(row + dy, column + dx) for dy, dx in steps]

    lines = []
    while left:
        start = min(left, key=lambda place: (sum(other in left for other in near(place)), place))
        left.remove(start)
        line = [start]
        while onward := [place for place in near(line[-1]) if place in left]:
            line.append(onward[0])
            left.remove(onward[0])
        # To where it met a line already followed.
        line += [place for place in near(line[-1]) if place in every and place not in line[-3:]][:1]
        lines.append(line)
    return lines
