"""Synthetic data sets in the form of MNIST and CIFAR-10, for use where the real data is missing.

Shapes, dtypes and split sizes are those of the real data sets. The digits are splines through
hand-placed points, rendered with a soft pen. The synthetic CIFAR-10 has ten geometric shapes, with
random colours and textures on random colours and textures, so that only the outline tells the
class. The ranges of all random values were tuned by hand: logistic regression reaches 81 % on the
digits and 32 % on the shapes, the networks about 98 % after 2 epochs and 93 % after 3.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

Floats = NDArray[np.float32]

VERSION = "1"
"""Increased whenever the images change; part of the cache's name."""

_SHAPES = tuple("disk ring square triangle cross star crescent heart arrow hourglass".split())
CLASS_NAMES: dict[str, tuple[str, ...]] = {"mnist": tuple("0123456789"), "cifar10": _SHAPES}
"""Class names by label, for each data set."""

SIZES: dict[str, dict[str, int]] = {
    "mnist": {"train": 60_000, "test": 10_000},
    "cifar10": {"train": 50_000, "test": 10_000},
}
"""Number of images in each split of each data set."""

# Images. A chunk has its own random stream, so that the images do not depend on the number of
# threads. Its arrays of one float per pixel take 1 to 2 MB, which keeps four threads under 0.5 GB.
_CHUNK = 500
_THREADS = 4

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


def generate_split(
    name: str, split: str, *, seed: int = 0, size: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Generates the first `size` images of a split of a synthetic data set.

    The images depend on `name`, `split` and `seed` only, not on the number of processors; a smaller
    `size` gives the first of the same images. Another processor or NumPy release may round single
    pixels differently by one grey level.

    Args:
        name: "mnist" or "cifar10".
        split: "train" or "test".
        seed: non-negative integer; another seed gives other images of the same kind.
        size: number of images, from 1 to `SIZES[name][split]`; None for all.

    Returns:
        images: uint8[size, 28, 28, 1] ("mnist") or uint8[size, 32, 32, 3] ("cifar10"), 0 to 255.
        labels: int32[size], 0 to 9, in random order; every 500 images hold 50 of each class.

    Raises:
        ValueError: an argument has another value than those listed.
    """
    if name not in SIZES:
        raise ValueError(f"name must be one of {', '.join(SIZES)}, got {name!r}")
    if split not in SIZES[name]:
        raise ValueError(f"split must be one of {', '.join(SIZES[name])}, got {split!r}")
    if type(seed) is not int or seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed!r}")
    largest = SIZES[name][split]
    size = largest if size is None else size
    if type(size) is not int or not 1 <= size <= largest:
        raise ValueError(f"size must be an integer from 1 to {largest} or None, got {size!r}")

    shape = (28, 28, 1) if name == "mnist" else (32, 32, 3)
    images = np.empty((size, *shape), np.uint8)
    labels = np.empty(size, np.int32)
    stream = (list(SIZES).index(name), list(SIZES[name]).index(split))

    def generate_chunk(chunk: int) -> None:
        sequence = np.random.SeedSequence(seed, spawn_key=(*stream, chunk))
        rng = np.random.Generator(np.random.PCG64(sequence))
        chunk_labels = rng.permutation(np.arange(_CHUNK, dtype=np.int32) % 10)
        render = _render_digits if name == "mnist" else _render_shapes
        begin = chunk * _CHUNK
        count = min(_CHUNK, size - begin)
        # Always a whole chunk, cut afterwards: the images must not depend on the size.
        images[begin : begin + count] = render(rng, chunk_labels)[:count]
        labels[begin : begin + count] = chunk_labels[:count]

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        list(pool.map(generate_chunk, range(-(-size // _CHUNK))))
    return images, labels


def _uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Floats:
    """Samples the uniform distribution over low..high."""
    return low + (high - low) * rng.random(shape, np.float32)


def _normal(rng: np.random.Generator, *shape: int) -> Floats:
    """Samples the standard normal distribution."""
    return rng.standard_normal(shape, np.float32)


def _bumps(positions: Floats, centres: Floats, width: float | Floats) -> Floats:
    """Evaluates Gaussian bumps of one width at positions: float[..., positions, centres]."""
    distance: Floats = (positions[..., None] - centres) / width
    return np.exp(-0.5 * distance * distance)


def _linear_maps(
    rng: np.random.Generator, n: int, angle: float, stretch: float, shear: float
) -> Floats:
    """Samples linear maps of determinant 1: a shear and a change of aspect, then a rotation.

    Args:
        rng: source of randomness.
        n: number of maps.
        angle: largest rotation, in radians.
        stretch: largest logarithm of the change of width.
        shear: largest shear factor.

    Returns:
        float32[n, 2, 2].
    """
    theta = _uniform(rng, -angle, angle, n)
    aspect = np.exp(_uniform(rng, -stretch, stretch, n))
    slant = _uniform(rng, -shear, shear, n)
    cos, sin, zero = np.cos(theta), np.sin(theta), np.zeros_like(theta)
    rotation = np.stack([cos, -sin, sin, cos], -1).reshape(n, 2, 2)
    shape = np.stack([aspect, slant, zero, 1 / aspect], -1).reshape(n, 2, 2)
    return rotation @ shape


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
    jittered = points[variant] + spread * 0.07 * _normal(rng, n, *points.shape[1:])
    pen = curves[variant] @ jittered

    # Elastic distortion: a sum of nine Gaussian bumps displaces the pen.
    grid = np.array([-1, 0, 1], np.float32)
    across, down = _bumps(pen[..., 0], grid, 0.7), _bumps(pen[..., 1], grid, 0.7)
    displacement = spread * 0.11 * _normal(rng, n, 3, 3, 2)
    pen += np.einsum("npi,npj,nijc->npc", down, across, displacement)
    return pen, pen_down[variant]


def _render_digits(rng: np.random.Generator, labels: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Renders handwritten digits: uint8[n, 28, 28, 1]."""
    n = len(labels)
    pen, pen_down = pen_paths(rng, labels)
    radius = _uniform(rng, 7.5, 10.0, n, 1, 1)
    maps = _linear_maps(rng, n, angle=0.25, stretch=0.15, shear=0.3)
    pen = 13.5 + _uniform(rng, -2.0, 2.0, n, 1, 2) + radius * (pen @ maps.transpose(0, 2, 1))

    # Ink proportional to the length adds up to exp(-distance^2 / (2 width^2)) beside a straight
    # stroke, for any spacing of the points; clipped at 1, it gives a core and a soft edge.
    length = np.hypot(np.diff(pen[..., 0]), np.diff(pen[..., 1])) * pen_down
    pen = 0.5 * (pen[:, 1:] + pen[:, :-1])
    width = _uniform(rng, 0.6, 1.0, n, 1, 1)
    strength = _uniform(rng, 1.0, 2.7, n, 1, 1) / (math.sqrt(2 * math.pi) * width)
    pixels = np.arange(28, dtype=np.float32)
    across, down = _bumps(pen[..., 0], pixels, width), _bumps(pen[..., 1], pixels, width)
    ink = down.transpose(0, 2, 1) @ (across * (strength * length[..., None]))
    images = np.minimum(ink, 1) * _uniform(rng, 0.75, 1.0, n, 1, 1)
    images += _uniform(rng, 0.0, 0.1, n, 1, 1) * _normal(rng, n, 28, 28)
    return _to_bytes(images[..., None])


def _render_shapes(rng: np.random.Generator, labels: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Renders textured shapes on textured backgrounds: uint8[n, 32, 32, 3]."""
    n = len(labels)
    axis = np.linspace(-1, 1, 32, dtype=np.float32)
    bumps = _bumps(axis, np.linspace(-1, 1, 4, dtype=np.float32), 0.4)

    # Every pixel is mapped to its position (u, v) in the undistorted shape.
    radius = _uniform(rng, 0.45, 0.85, n, 1, 1)
    maps = _linear_maps(rng, n, angle=0.6, stretch=0.2, shear=0.2) / radius
    position = np.stack(np.broadcast_arrays(axis, axis[:, None]))[None]
    # Squared: most images are distorted a little and some a lot, so that a few remain hard.
    elastic = 0.05 + 0.16 * _uniform(rng, 0.0, 1.0, n, 1, 1, 1) ** 2
    position = position + elastic * (bumps @ _normal(rng, n, 2, 4, 4) @ bumps.T)
    position -= (_uniform(rng, -1.0, 1.0, n, 2) * (0.9 - radius[..., 0]).clip(0.1))[..., None, None]
    u, v = np.moveaxis((maps @ position.reshape(n, 2, -1)).reshape(position.shape), 1, 0)
    outside = np.empty_like(u)
    for label, name in enumerate(_SHAPES):
        chosen = labels == label
        outside[chosen] = _outside(name, u[chosen], v[chosen])
    # 1 inside, 0 outside, and an edge of about one pixel, which is 1/16 wide.
    cover = (0.5 - 16 * radius * outside).clip(0, 1)[..., None]

    # Of four pairs of colours the one with the largest difference is kept. Nine in ten shapes are
    # lighter than their background: a linear model then reaches 32 %, near its accuracy on
    # CIFAR-10, but only 11 % if both are equally likely to be the lighter.
    colours = _uniform(rng, 0.05, 0.55, 4, n, 2, 3)
    colours[:, :, 0] += 0.4
    best = (colours[:, :, 0] - colours[:, :, 1]).sum(-1).argmax(0)
    pairs = colours[best, np.arange(n)]
    dark = rng.random(n) < 0.1
    pairs[dark] = pairs[dark, ::-1]
    front, back = pairs.transpose(1, 0, 2)[:, :, None, None]
    front, back = front + _textures(rng, n, bumps), back + _textures(rng, n, bumps)
    images = back + cover * (front - back)
    noise = 0.02 + 0.12 * _uniform(rng, 0.0, 1.0, n, 1, 1, 1) ** 2
    images += noise * _normal(rng, *images.shape)
    return _to_bytes(images)


def _textures(rng: np.random.Generator, n: int, bumps: Floats) -> Floats:
    """Samples stripes, checks or clouds in a random colour, around 0: float32[n, 32, 32, 3]."""
    axis = np.arange(32, dtype=np.float32)
    theta = _uniform(rng, 0, np.pi, n, 1, 1)
    frequency = _uniform(rng, 0.4, 1.6, n, 1, 1)  # radians a pixel: a period of 4 to 16 pixels
    cos, sin = frequency * np.cos(theta), frequency * np.sin(theta)
    phase = _uniform(rng, 0, 2 * np.pi, n, 2, 1, 1)
    stripes = np.sin(cos * axis + sin * axis[:, None] + phase[:, 0])
    across = np.sin(cos * axis[:, None] - sin * axis + phase[:, 1])
    clouds = bumps @ _normal(rng, n, 4, 4) @ bumps.T
    kind = rng.integers(3, size=(n, 1, 1))
    pattern = np.where(kind == 0, stripes, np.where(kind == 1, stripes * across, clouds))
    pattern = (pattern * _uniform(rng, 1.0, 4.0, n, 1, 1)).clip(-1, 1)
    return pattern[..., None] * _uniform(rng, -0.12, 0.12, n, 1, 1, 3)


def _outside(name: str, u: Floats, v: Floats) -> Floats:
    """Returns an approximate signed distance from a shape's outline, negative inside.

    Args:
        name: of the shape, whose radius is about 1 around the origin.
        u: float32[...], to the right.
        v: float32[...], down.

    Returns:
        float32[...].
    """
    x, y = np.abs(u), np.abs(v)
    r: Floats = np.hypot(u, v)
    match name:
        case "disk":
            return r - 0.9
        case "ring":
            return np.abs(r - 0.7) - 0.22
        case "square":
            return np.maximum(x - 0.8, y - 0.8)
        case "triangle":
            return np.maximum(v - 0.6, 0.87 * x - 0.5 * v - 0.6)
        case "cross":
            return np.maximum(np.maximum(x, y) - 0.95, np.minimum(x, y) - 0.28)
        case "star":
            # A pentagram: the points outside at most one of five half-planes.
            angles = [math.pi * (0.5 + 0.4 * k) for k in range(5)]
            planes = [math.cos(angle) * u + math.sin(angle) * v - 0.38 for angle in angles]
            return np.partition(np.stack(planes), -2, axis=0)[-2]
        case "crescent":
            return np.maximum(r - 0.95, 0.75 - np.hypot(u - 0.45, v))
        case "heart":
            # Two disks, and below them a wedge whose sides are tangent to them.
            wedge = np.maximum(0.773 * x + 0.634 * v - 0.602, 0.3 * (x - 1) - v)
            return np.minimum(np.hypot(x - 0.46, v + 0.4) - 0.5, wedge)
        case "arrow":
            head = np.maximum(0.785 * x - 0.62 * v - 0.62, v)
            return np.minimum(head, np.maximum(x - 0.22, np.abs(v - 0.4) - 0.6))
        case "hourglass":
            return np.maximum(y - 0.9, 0.8 * (x - 0.08 - 0.75 * y))
    raise ValueError(f"name must be one of {', '.join(_SHAPES)}, got {name!r}")


def _to_bytes(images: Floats) -> NDArray[np.uint8]:
    """Converts 0..1 to 0..255, clipping values outside."""
    return np.rint(images.clip(0, 1) * 255).astype(np.uint8)
