"""Random changes to training images, pure, keyed and on the device."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from jaxcnn.recipes import AugmentName

Augment = Callable[[jax.Array, jax.Array], jax.Array]


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


def make_augment(name: AugmentName) -> Augment | None:
    """Returns the augmentation of that name, or None for "none".

    "shift" moves by up to 2 pixels over zeros, for digits; "flip-shift" mirrors and moves by up to
    4 pixels over the reflection, for photographs.
    """
    if name == "none":
        return None
    if name == "shift":
        return lambda key, images: random_shift(key, images, 2, "constant")

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
