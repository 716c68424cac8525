"""Pooling over 2 x 2 squares, for all platforms.

On CPU a reduction over a reshaped array is faster than both `reduce_window`, which `nn.max_pool`
uses, and the maximum of four strided slices.
"""

import jax
import jax.numpy as jnp


@jax.custom_jvp
def max_pool(images: jax.Array) -> jax.Array:
    """Takes the largest value of each 2 x 2 square: float[B, H, W, C] -> float[B, H/2, W/2, C].

    The gradient goes to that pixel, or to the first of several equal ones.
    """
    return _squares(images).max(axis=(2, 4))


@max_pool.defjvp
def _max_pool_jvp(
    primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # JAX's derivative of a maximum looks for the values that equal it. XLA may compute them again
    # for that and round differently: if none is equal, the gradient is lost or NaN. A comparison of
    # two values with each other always selects one of them.
    x, dx = _squares(primals[0]), _squares(tangents[0])

    def larger(one: _Pixels, other: _Pixels) -> _Pixels:
        first = one[0] >= other[0]
        return jnp.where(first, one[0], other[0]), jnp.where(first, one[1], other[1])

    top, bottom = (
        larger(*((x[:, :, row, :, column], dx[:, :, row, :, column]) for column in (0, 1)))
        for row in (0, 1)
    )
    return max_pool(primals[0]), larger(top, bottom)[1]


def avg_pool(images: jax.Array) -> jax.Array:
    """Takes the mean of each 2 x 2 square: float[B, H, W, C] -> float[B, H/2, W/2, C]."""
    return _squares(images).mean(axis=(2, 4))


# Values, and their tangents.
_Pixels = tuple[jax.Array, jax.Array]


def _squares(images: jax.Array) -> jax.Array:
    batch, height, width, channels = images.shape
    return images.reshape(batch, height // 2, 2, width // 2, 2, channels)
