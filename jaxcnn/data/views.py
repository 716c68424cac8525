"""Views of an image whose answers are averaged: test-time augmentation."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcnn.recipes.recipe import NetworkName

Views = Callable[[jax.Array], jax.Array]

# Rows down and columns to the right.
_SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


def make_views(network: NetworkName) -> Views:
    """Returns uint8[B, H, W, C] -> uint8[V, B, H, W, C], the image itself the first view.

    Digits are seen at their place and one pixel off in each direction, over zeros (V = 5);
    photographs likewise over their reflection, and all of that mirrored (V = 10).
    """

    def shifted(images: jax.Array, mode: str) -> list[jax.Array]:
        height, width = images.shape[1:3]
        padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)
        return [
            padded[:, 1 - down : 1 - down + height, 1 - right : 1 - right + width]
            for down, right in _SHIFTS
        ]

    if network == "mnist":
        return lambda images: jnp.stack(shifted(images, "constant"))
    return lambda images: jnp.stack(
        shifted(images, "reflect") + shifted(images[:, :, ::-1], "reflect")
    )
