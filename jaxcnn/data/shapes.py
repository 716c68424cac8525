"""Synthetic images of ten geometric shapes in random colours and textures.

The background has random colours and textures too, so that only the outline tells the class.
"""

import math

import numpy as np
from numpy.typing import NDArray

from jaxcnn.data.sampling import Floats, gaussian_bumps, linear_maps, normal, to_bytes, uniform

SHAPES = tuple("disk ring square triangle cross star crescent heart arrow hourglass".split())
"""The names of the shapes, by label."""


def render_shapes(rng: np.random.Generator, labels: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Renders textured shapes on textured backgrounds.

    Args:
        rng: source of randomness.
        labels: int32[n], positions in `SHAPES`.

    Returns:
        uint8[n, 32, 32, 3].
    """
    n = len(labels)
    axis = np.linspace(-1, 1, 32, dtype=np.float32)
    bumps = gaussian_bumps(axis, np.linspace(-1, 1, 4, dtype=np.float32), 0.4)

    # Every pixel is mapped to its position (u, v) in the undistorted shape.
    radius = uniform(rng, 0.45, 0.85, n, 1, 1)
    maps = linear_maps(rng, n, angle=0.6, stretch=0.2, shear=0.2) / radius
    position = np.stack(np.broadcast_arrays(axis, axis[:, None]))[None]
    # Squared: most images are distorted a little and some a lot, so that a few remain hard.
    elastic = 0.05 + 0.16 * uniform(rng, 0.0, 1.0, n, 1, 1, 1) ** 2
    position = position + elastic * (bumps @ normal(rng, n, 2, 4, 4) @ bumps.T)
    position -= (uniform(rng, -1.0, 1.0, n, 2) * (0.9 - radius[..., 0]).clip(0.1))[..., None, None]
    u, v = np.moveaxis((maps @ position.reshape(n, 2, -1)).reshape(position.shape), 1, 0)
    outside = np.empty_like(u)
    for label, name in enumerate(SHAPES):
        chosen = labels == label
        outside[chosen] = _outside(name, u[chosen], v[chosen])
    # 1 inside, 0 outside, and an edge of about one pixel, which is 1/16 wide.
    cover = (0.5 - 16 * radius * outside).clip(0, 1)[..., None]

    # Of four pairs of colours the one with the largest difference is kept. Nine in ten shapes are
    # lighter than their background: a linear model then reaches 32 %, near its accuracy on
    # CIFAR-10, but only 11 % if both are equally likely to be the lighter.
    colours = uniform(rng, 0.05, 0.55, 4, n, 2, 3)
    colours[:, :, 0] += 0.4
    best = (colours[:, :, 0] - colours[:, :, 1]).sum(-1).argmax(0)
    pairs = colours[best, np.arange(n)]
    dark = rng.random(n) < 0.1
    pairs[dark] = pairs[dark, ::-1]
    front, back = pairs.transpose(1, 0, 2)[:, :, None, None]
    front, back = front + _textures(rng, n, bumps), back + _textures(rng, n, bumps)
    images = back + cover * (front - back)
    noise = 0.02 + 0.12 * uniform(rng, 0.0, 1.0, n, 1, 1, 1) ** 2
    images += noise * normal(rng, *images.shape)
    return to_bytes(images)


def _textures(rng: np.random.Generator, n: int, bumps: Floats) -> Floats:
    """Samples stripes, checks or clouds in a random colour, around 0: float32[n, 32, 32, 3]."""
    axis = np.arange(32, dtype=np.float32)
    theta = uniform(rng, 0, np.pi, n, 1, 1)
    frequency = uniform(rng, 0.4, 1.6, n, 1, 1)  # radians a pixel: a period of 4 to 16 pixels
    cos, sin = frequency * np.cos(theta), frequency * np.sin(theta)
    phase = uniform(rng, 0, 2 * np.pi, n, 2, 1, 1)
    stripes = np.sin(cos * axis + sin * axis[:, None] + phase[:, 0])
    across = np.sin(cos * axis[:, None] - sin * axis + phase[:, 1])
    clouds = bumps @ normal(rng, n, 4, 4) @ bumps.T
    kind = rng.integers(3, size=(n, 1, 1))
    pattern = np.where(kind == 0, stripes, np.where(kind == 1, stripes * across, clouds))
    pattern = (pattern * uniform(rng, 1.0, 4.0, n, 1, 1)).clip(-1, 1)
    return pattern[..., None] * uniform(rng, -0.12, 0.12, n, 1, 1, 3)


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
    raise ValueError(f"name must be one of {', '.join(SHAPES)}, got {name!r}")
