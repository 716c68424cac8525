"""Random changes to training images, pure, keyed and on the device."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from jaxcnn.recipes.recipe import AugmentName

Augment = Callable[[jax.Array, jax.Array], jax.Array]

# Points a side of the noise that bends images.
_GRID = 6


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Mirrors each image left to right with probability 1/2.

    Args:
        key: PRNG key[].
        images: [B, H, W, C] of any dtype.
    """
    flips = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flips, images[:, :, ::-1], images)


def random_shift(
    key: jax.Array, images: jax.Array, pixels: int, mode: Literal["constant", "reflect"]
) -> jax.Array:
    """Moves each image by a whole number of pixels, uniform in +-`pixels` along both axes.

    Args:
        key: PRNG key[].
        images: [B, H, W, C] of any dtype.
        pixels: the largest shift.
        mode: what comes in at the edge, as in `jnp.pad`: zeros or the image's reflection.
    """
    batch, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode=mode)
    corners = jax.random.randint(key, (batch, 2), 0, 2 * pixels + 1)

    def window(image: jax.Array, corner: jax.Array) -> jax.Array:
        start = (corner[0], corner[1], 0)
        return jax.lax.dynamic_slice(image, start, (height, width, channels))

    return jax.vmap(window)(padded, corners)


def random_distortion(
    key: jax.Array,
    images: jax.Array,
    *,
    rotation: float,
    scale: float,
    shear: float,
    pixels: float,
    elastic: float,
) -> jax.Array:
    """Turns, stretches, slants, moves and bends each image, over zeros.

    All changes are of the coordinates, so that an image is sampled once, bilinearly. The bending
    follows Simard, Steinkraus and Platt (2003), whose displacements are smoothed noise; here the
    noise has a coarse grid and is interpolated cubically.

    Args:
        key: PRNG key[].
        images: uint8[B, H, W, C].
        rotation: the largest angle, in degrees.
        scale: the largest logarithm of the factor along each axis.
        shear: the largest horizontal shift, in pixels, a row away from the middle.
        pixels: the largest shift along each axis.
        elastic: standard deviation, in pixels, of what bends the image at the points of the grid.
    """
    batch, height, width, _ = images.shape
    affine_key, elastic_key = jax.random.split(key)
    largest = jnp.array([rotation * jnp.pi / 180, scale, scale, shear, pixels, pixels])
    drawn = largest[:, None] * jax.random.uniform(affine_key, (6, batch), minval=-1, maxval=1)
    angle, log_scale_y, log_scale_x, slant, down, right = drawn[:, :, None, None]
    y = (jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2)[None, :, None]
    x = (jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2)[None, None, :]
    rows = jnp.exp(log_scale_y) * (jnp.sin(angle) * x + jnp.cos(angle) * y)
    columns = jnp.exp(log_scale_x) * (jnp.cos(angle) * x - jnp.sin(angle) * y) + slant * y
    bend = elastic * jax.random.normal(elastic_key, (2, batch, _GRID, _GRID))
    bend = jax.image.resize(bend, (2, batch, height, width), "cubic")
    rows += (height - 1) / 2 + down + bend[0]
    columns += (width - 1) / 2 + right + bend[1]

    def sample(channel: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        return map_coordinates(channel, [rows, columns], order=1, mode="constant")

    sampled = jax.vmap(jax.vmap(sample, (2, None, None), 2))(
        images.astype(jnp.float32), rows, columns
    )
    return jnp.round(sampled).astype(images.dtype)


def make_augment(name: AugmentName) -> Augment | None:
    """Returns the augmentation of that name, or None for "none".

    "shift" moves by up to 2 pixels over zeros and "distort" also turns, stretches, slants and
    bends, for digits; "flip-shift" mirrors and moves by up to 4 pixels over the reflection, for
    photographs.
    """
    if name == "none":
        return None
    if name == "shift":
        return lambda key, images: random_shift(key, images, 2, "constant")
    if name == "distort":
        return functools.partial(
            random_distortion, rotation=8.0, scale=0.08, shear=0.08, pixels=1.5, elastic=0.4
        )

    def flip_shift(key: jax.Array, images: jax.Array) -> jax.Array:
        flip_key, shift_key = jax.random.split(key)
        return random_shift(shift_key, random_flip(flip_key, images), 4, "reflect")

    return flip_shift


def make_normalize(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[jax.Array], jax.Array]:
    """Returns uint8[..., C] -> float32[..., C], (x / 255 - mean) / std, one number or C of them."""

    def normalize(images: jax.Array) -> jax.Array:
        x = images.astype(jnp.float32) / 255.0
        shape = (1,) * (x.ndim - 1) + (-1,)
        return (x - jnp.reshape(jnp.array(mean, jnp.float32), shape)) / jnp.reshape(
            jnp.array(std, jnp.float32), shape
        )

    return normalize
