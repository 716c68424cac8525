"""Synthetic handwritten digits: splines through hand-placed points, rendered with a soft pen."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from jaxcnn.data.sampling import Floats, gaussian_bumps, linear_maps, normal, to_bytes, uniform

# Handwritten variants of each digit: strokes, separated by "/", of points "x y" around the centre,
# y down, the height from -100 to 100. A stroke is smooth; a corner lies between two strokes.
_DIGITS = """
0: 10 -100, -45 -75, -65 0, -40 80, 5 100, 50 75, 65 0, 45 -75, 5 -100
0: 40 -80, 0 -100, -40 -60, -50 20, -25 90, 20 95, 50 40, 45 -40, 15 -95, -15 -85
1: 5 -100, 0 0, 0 100
1: -40 -55, -15 -75, 5 -100 / 5 -100, 5 0, 0 100
1: -35 -60, 0 -100 / 0 -100, 0 0, 0 100 / -45 100, 0 98, 45 100
2: -55 -55, -30 -92, 10 -100, 50 -75, 50 -30, 10 30, -55 100 / -55 100, 0 95, 65 100
2: -50 -60, -25 -95, 20 -98, 45 -60, 30 0, -15 65, -45 95, -62 78, -40 60, -5 75, 30 98, 65 85
3: -50 -75, -10 -100, 40 -80, 40 -35, -10 -8 / -10 -8, 45 15, 52 60, 10 100, -55 75
3: -50 -95, 0 -98, 50 -100 / 50 -100, 20 -60, -8 -20 / -8 -20, 45 5, 50 60, 5 100, -55 80
4: -40 -95, -48 -40, -55 10 / -55 10, 0 12, 60 5 / 32 -85, 28 0, 25 100
4: 25 -100, -20 -30, -60 35 / -60 35, 0 32, 65 30 / 25 -100, 25 0, 22 100
5: 50 -100, 0 -98, -40 -98 / -40 -98, -45 -50, -48 -12 / -48 -12, 5 -30, 50 5, 48 62, 5 100, -55 78
5: 55 -98, 5 -90, -35 -85, -42 -30, 0 -22, 45 5, 48 60, 5 98, -50 85
6: 40 -98, -20 -60, -55 15, -40 80, 5 100, 45 75, 45 30, 5 10, -42 40
6: 5 -100, -25 -50, -42 20, -30 85, 5 98, 40 70, 35 25, 0 20, -35 55
7: -55 -95, 0 -95, 55 -100 / 55 -100, 15 0, -10 100
7: -50 -95, 0 -97, 55 -98 / 55 -98, 20 0, -5 100 / -30 5, 10 0, 55 0
7: -50 -65, -52 -95 / -52 -95, 0 -98, 50 -95 / 50 -95, 25 -40, 5 30, 0 100
8: 42 -70, 5 -100, -42 -72, -25 -25, 25 20, 50 60, 5 100, -48 65, -25 15, 25 -25, 45 -65
8: 0 -5, -42 -50, 0 -100, 42 -50, 0 -5 / 0 -5, -55 45, 0 100, 55 45, 0 -5
9: 45 -60, 5 -100, -45 -65, -35 -15, 10 -5, 45 -50 / 48 -65, 42 20, 20 100
9: 42 -70, 0 -100, -42 -60, -25 -8, 15 -12, 42 -70 / 42 -70, 48 20, 15 92, -45 85
"""
_POINTS = 96  # along all strokes of a digit: closer together than the pen is wide


def _read_strokes() -> tuple[Floats, Floats, NDArray[np.bool_], NDArray[np.int64]]:
    """Parses `_DIGITS` into points and matrices that interpolate between them.

    Returns:
        points: float32[variants, K, 2], padded with zeros.
        curves: float32[variants, _POINTS, K]; curves @ points are positions along the strokes.
        pen_down: bool[variants, _POINTS - 1], False where the pen is lifted between two positions.
        first: int64[11], the first variant of each digit, then the number of variants.
    """
    lines = _DIGITS.split("\n")[1:-1]
    most = max(len(line.replace("/", ",").split(",")) for line in lines)
    points = np.zeros((len(lines), most, 2), np.float32)
    curves = np.zeros((len(lines), _POINTS, most), np.float32)
    pen_down = np.ones((len(lines), _POINTS - 1), np.bool_)
    for i, line in enumerate(lines):
        strokes = [
            np.array([pair.split() for pair in stroke.split(",")], np.float64) / 100
            for stroke in line[2:].split("/")
        ]
        # Splines over the chord length are linear functions of the points, hence matrices.
        chords = [np.hypot(*np.diff(stroke, axis=0).T) for stroke in strokes]
        knots = [np.append(0, np.cumsum(chord)) for chord in chords]
        ends = np.cumsum([knot[-1] for knot in knots])
        rows = np.append(0, np.round(ends / ends[-1] * _POINTS).astype(int))
        column = 0
        for stroke, knot, begin, end in zip(strokes, knots, rows[:-1], rows[1:], strict=True):
            columns = slice(column, column := column + len(knot))
            spline = CubicSpline(knot, np.eye(len(knot)), bc_type="natural")
            curves[i, begin:end, columns] = spline(np.linspace(0, knot[-1], end - begin))
            points[i, columns] = stroke
            pen_down[i, end - 1 : end] = False
    first = np.searchsorted([int(line[0]) for line in lines], np.arange(11))
    return points, curves, pen_down, first


_STROKES = _read_strokes()


def pen_paths(
    rng: np.random.Generator, labels: NDArray[np.int32], spread: float = 1.0
) -> tuple[Floats, NDArray[np.bool_]]:
    """Samples the paths of a pen that writes digits, each a variant with elastic distortion.

    Args:
        rng: source of randomness.
        labels: int32[n], 0..9.
        spread: scale of the distortion; with 0 only the choice of the variant is random.

    Returns:
        positions: float32[n, K, 2] along the strokes; x to the right, y down, about -1..1.
        pen_down: bool[n, K - 1], False where the pen is lifted between two positions.
    """
    n = len(labels)
    points, curves, pen_down, first = _STROKES
    variant = rng.integers(first[labels], first[labels + 1])
    jittered = points[variant] + spread * 0.07 * normal(rng, n, *points.shape[1:])
    pen = curves[variant] @ jittered

    # Elastic distortion: a sum of nine Gaussian bumps displaces the pen.
    grid = np.array([-1, 0, 1], np.float32)
    across, down = gaussian_bumps(pen[..., 0], grid, 0.7), gaussian_bumps(pen[..., 1], grid, 0.7)
    displacement = spread * 0.11 * normal(rng, n, 3, 3, 2)
    pen += np.einsum("npi,npj,nijc->npc", down, across, displacement)
    return pen, pen_down[variant]


def render_digits(rng: np.random.Generator, labels: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Renders handwritten digits.

    Args:
        rng: source of randomness.
        labels: int32[n], 0..9.

    Returns:
        uint8[n, 28, 28, 1].
    """
    n = len(labels)
    pen, pen_down = pen_paths(rng, labels)
    radius = uniform(rng, 7.5, 10.0, n, 1, 1)
    maps = linear_maps(rng, n, angle=0.25, stretch=0.15, shear=0.3)
    pen = 13.5 + uniform(rng, -2.0, 2.0, n, 1, 2) + radius * (pen @ maps.transpose(0, 2, 1))

    # Ink proportional to the length adds up to exp(-distance^2 / (2 width^2)) beside a straight
    # stroke, for any spacing of the points; clipped at 1, it gives a core and a soft edge.
    length = np.hypot(np.diff(pen[..., 0]), np.diff(pen[..., 1])) * pen_down
    pen = 0.5 * (pen[:, 1:] + pen[:, :-1])
    width = uniform(rng, 0.6, 1.0, n, 1, 1)
    strength = uniform(rng, 1.0, 2.7, n, 1, 1) / (math.sqrt(2 * math.pi) * width)
    pixels = np.arange(28, dtype=np.float32)
    across, down = (
        gaussian_bumps(pen[..., 0], pixels, width),
        gaussian_bumps(pen[..., 1], pixels, width),
    )
    ink = down.transpose(0, 2, 1) @ (across * (strength * length[..., None]))
    images = np.minimum(ink, 1) * uniform(rng, 0.75, 1.0, n, 1, 1)
    images += uniform(rng, 0.0, 0.1, n, 1, 1) * normal(rng, n, 28, 28)
    return to_bytes(images[..., None])
