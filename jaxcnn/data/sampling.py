"""The random values, and operations on them, that both synthetic data sets use."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def uniform(rng: np.random.Generator, low: float, high: float, *shape: int) -> Floats:
    """Samples a uniform distribution.

    Args:
        rng: source of randomness.
        low: least value.
        high: largest value.
        *shape: of the result.

    Returns:
        float32[*shape].
    """
    return low + (high - low) * rng.random(shape, np.float32)


def normal(rng: np.random.Generator, *shape: int) -> Floats:
    """Samples the standard normal distribution.

    Args:
        rng: source of randomness.
        *shape: of the result.

    Returns:
        float32[*shape].
    """
    return rng.standard_normal(shape, np.float32)


def gaussian_bumps(positions: Floats, centres: Floats, width: float | Floats) -> Floats:
    """Evaluates Gaussian functions of height 1.

    Args:
        positions: float32[..., P], where they are evaluated.
        centres: float32[C].
        width: their standard deviation, a number or broadcastable to the result.

    Returns:
        float32[..., P, C].
    """
    distance: Floats = (positions[..., None] - centres) / width
    return np.exp(-0.5 * distance * distance)


def linear_maps(
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
    theta = uniform(rng, -angle, angle, n)
    aspect = np.exp(uniform(rng, -stretch, stretch, n))
    slant = uniform(rng, -shear, shear, n)
    cos, sin, zero = np.cos(theta), np.sin(theta), np.zeros_like(theta)
    rotation = np.stack([cos, -sin, sin, cos], -1).reshape(n, 2, 2)
    shape = np.stack([aspect, slant, zero, 1 / aspect], -1).reshape(n, 2, 2)
    return rotation @ shape


def to_bytes(images: Floats) -> NDArray[np.uint8]:
    """Converts float32 values in 0..1 to uint8 in 0..255; values outside are clipped."""
    return np.rint(images.clip(0, 1) * 255).astype(np.uint8)
