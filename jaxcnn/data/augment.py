"""Augmentation of training images: pure functions of a key and a batch, run on the device."""

import functools
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.ndimage import map_coordinates

from jaxcnn.recipes.recipe import AugmentName

Augment = Callable[[jax.Array, jax.Array], jax.Array]
"""(key[], images [B, H, W, C]) -> images of the same shape and dtype."""

# Points along each side of the grid of random displacements, which are interpolated between them.
_GRID = 6


def random_flip(key: jax.Array, images: jax.Array) -> jax.Array:
    """Flips each image horizontally with probability 1/2.

    Args:
        key: PRNG key[].
        images: [B, H, W, C] of any dtype.

    Returns:
        The images, of the same shape and dtype.
    """
    flips = jax.random.bernoulli(key, shape=(images.shape[0], 1, 1, 1))
    return jnp.where(flips, images[:, :, ::-1], images)


def random_shift(
    key: jax.Array, images: jax.Array, pixels: int, mode: Literal["constant", "reflect"]
) -> jax.Array:
    """Shifts each image by whole pixels, uniform in -pixels..pixels along each axis.

    Args:
        key: PRNG key[].
        images: [B, H, W, C] of any dtype.
        pixels: the largest shift, in pixels.
        mode: the padding at the edge, as in `jnp.pad`: zeros or the image's reflection.

    Returns:
        The images, of the same shape and dtype.
    """
    batch, height, width, channels = images.shape
    padded = jnp.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels), (0, 0)), mode=mode)
    corners = jax.random.randint(key, (batch, 2), 0, 2 * pixels + 1)

    def window(image: jax.Array, corner: jax.Array) -> jax.Array:
        start = (corner[0], corner[1], 0)
        return lax.dynamic_slice(image, start, (height, width, channels))

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
    """Applies a random affine map and an elastic distortion to each image, padded with zeros.

    Both change the coordinates, so that every image is resampled once, bilinearly. The affine
    parameters are uniform in -largest..largest. The elastic distortion follows Simard, Steinkraus
    and Platt, Best Practices for Convolutional Neural Networks, 2003, whose displacements are
    smoothed noise; here the noise lies on a coarse grid and is interpolated cubically.

    Args:
        key: PRNG key[].
        images: uint8[B, H, W, C].
        rotation: largest angle, in degrees.
        scale: largest logarithm of the scale factor along each axis.
        shear: largest horizontal shift per row of distance from the centre, in pixels.
        pixels: largest shift along each axis, in pixels.
        elastic: standard deviation of the displacements at the points of the grid, in pixels.

    Returns:
        uint8[B, H, W, C].
    """
    batch, height, width, _ = images.shape
    affine_key, elastic_key = jax.random.split(key)
    largest = jnp.array([rotation * jnp.pi / 180, scale, scale, shear, pixels, pixels])
    affine = largest[:, None] * jax.random.uniform(affine_key, (6, batch), minval=-1, maxval=1)
    angle, log_scale_y, log_scale_x, slant, down, right = affine[:, :, None, None]
    y = (jnp.arange(height, dtype=jnp.float32) - (height - 1) / 2)[None, :, None]
    x = (jnp.arange(width, dtype=jnp.float32) - (width - 1) / 2)[None, None, :]
    rows = jnp.exp(log_scale_y) * (jnp.sin(angle) * x + jnp.cos(angle) * y)
    columns = jnp.exp(log_scale_x) * (jnp.cos(angle) * x - jnp.sin(angle) * y) + slant * y
    displacement = elastic * jax.random.normal(elastic_key, (2, batch, _GRID, _GRID))
    displacement = jax.image.resize(displacement, (2, batch, height, width), "cubic")
    rows += (height - 1) / 2 + down + displacement[0]
    columns += (width - 1) / 2 + right + displacement[1]

    def sample(image: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
        def channel(values: jax.Array) -> jax.Array:
            return map_coordinates(values, [rows, columns], order=1, mode="constant")

        return jax.vmap(channel, 2, 2)(image)

    arguments = images.astype(jnp.float32), rows, columns
    sampled: jax.Array
    if jax.device_count() > 1:
        # The devices share a batch, and each of them would gather all of it for a loop.
        sampled = jax.vmap(sample)(*arguments)
    else:
        # Image by image on CPU, where it takes a quarter of the time of the whole batch at once.
        sampled = lax.platform_dependent(
            *arguments,
            cpu=lambda *batch: lax.map(lambda one: sample(*one), batch),
            default=jax.vmap(sample),
        )
    return jnp.round(sampled).astype(images.dtype)


def make_augment(name: AugmentName) -> Augment | None:
    """Returns the augmentation of a recipe.

    Args:
        name: "shift" (for digits): shifts of up to 2 pixels, padded with zeros.
            "distort" (for digits): rotation of up to 8 degrees, scaling by up to 8 %, shear, shifts
            of up to 1.5 pixels and an elastic distortion with standard deviation 0.4 px.
            "flip-shift" (for photographs): horizontal flips, and shifts of up to 4 pixels, padded
            by reflection.
            "flip-shift-2" (for photographs in short runs): the same with up to 2 pixels.
            "none": no augmentation.

    Returns:
        The augmentation, or None for "none".
    """
    if name == "none":
        return None
    if name == "shift":
        return lambda key, images: random_shift(key, images, 2, "constant")
    if name == "distort":
        return functools.partial(
            random_distortion, rotation=8.0, scale=0.08, shear=0.08, pixels=1.5, elastic=0.4
        )

    pixels = {"flip-shift": 4, "flip-shift-2": 2}[name]

    def flip_shift(key: jax.Array, images: jax.Array) -> jax.Array:
        flip_key, shift_key = jax.random.split(key)
        return random_shift(shift_key, random_flip(flip_key, images), pixels, "reflect")

    return flip_shift


def make_normalize(
    mean: tuple[float, ...], std: tuple[float, ...]
) -> Callable[[jax.Array], jax.Array]:
    """Returns the normalization (x / 255 - mean) / std of uint8[..., C] to float32[..., C].

    Args:
        mean: one value for all channels, or C values, in 0..1.
        std: one value for all channels, or C values, positive.

    Returns:
        A function of the images.
    """

    def normalize(images: jax.Array) -> jax.Array:
        x = images.astype(jnp.float32) / 255.0
        shape = (1,) * (x.ndim - 1) + (-1,)
        return (x - jnp.reshape(jnp.array(mean, jnp.float32), shape)) / jnp.reshape(
            jnp.array(std, jnp.float32), shape
        )

    return normalize
