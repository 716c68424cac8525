"""Test-time augmentation: views of an image, over which the predictions are averaged."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxcnn.recipes.recipe import NetworkName

Views = Callable[[jax.Array], jax.Array]
"""uint8[B, H, W, C] -> uint8[V, B, H, W, C]."""

# Pixels down and to the right.
_SHIFTS = ((0, 0), (1, 0), (-1, 0), (0, 1), (0, -1))


def make_views(network: NetworkName) -> Views:
    """Returns the function that makes the V views of each image; the first is the image itself.

    Args:
        network: "mnist": the image and its shifts by one pixel in each direction, padded with
            zeros (V = 5). "cifar10": the same shifts, padded by reflection, and their horizontal
            flips (V = 10).

    Returns:
        uint8[B, H, W, C] -> uint8[V, B, H, W, C].
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
