"""The loss on lines and planes through the parameters."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn.landscape.loss import Loss, mean_over


@functools.partial(jax.jit, static_argnums=0)
def losses_along(
    loss: Loss, params: Any, direction: Any, positions: jax.Array, batches: Any
) -> jax.Array:
    """Computes the mean loss at `params + position * direction`.

    Args:
        loss: (params, batch) -> float32[].
        params: pytree of float32 arrays.
        direction: of the structure of `params`.
        positions: float32[P], in lengths of the direction.
        batches: K batches, see `jaxcnn.landscape.loss`.

    Returns:
        float32[P].
    """

    def at(position: jax.Array) -> jax.Array:
        moved = _move(params, direction, position)
        value: jax.Array = mean_over(loss, moved, batches)
        return value

    return jax.lax.map(at, positions)


@functools.partial(jax.jit, static_argnums=0)
def losses_on_plane(
    loss: Loss, params: Any, directions: tuple[Any, Any], positions: jax.Array, batches: Any
) -> jax.Array:
    """Computes the mean loss on a square of the plane that two directions span.

    Args:
        loss: (params, batch) -> float32[].
        params: pytree of float32 arrays, in the middle.
        directions: two pytrees of the structure of `params`.
        positions: float32[P], in lengths of each direction.
        batches: K batches, see `jaxcnn.landscape.loss`.

    Returns:
        float32[P, P], by the position along the second direction, then along the first.
    """
    first, second = directions
    return jax.lax.map(
        lambda position: losses_along(
            loss, _move(params, second, position), first, positions, batches
        ),
        positions,
    )


def random_direction(key: jax.Array, params: Any) -> Any:
    """Draws a filter-normalised direction.

    Li et al., Visualizing the Loss Landscape of Neural Nets, 2018 (arXiv 1712.09913), section 4:
    each filter of a normally distributed direction is scaled to the norm of the parameters' filter,
    so that a network and its rescaled equal look alike. A filter is the kernel of one output, of a
    convolution or a dense layer. Biases and BatchNorm's parameters are not moved.

    Args:
        key: of the random numbers.
        params: pytree of float32 arrays; those of two or more axes are kernels, whose last axis is
            that of the outputs.

    Returns:
        A pytree of the structure of `params`.
    """
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [_random_kernel(key, leaf) for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


def _random_kernel(key: jax.Array, kernel: jax.Array) -> jax.Array:
    kernel = jnp.asarray(kernel)
    if kernel.ndim < 2:
        return jnp.zeros_like(kernel)
    drawn = jax.random.normal(key, kernel.shape, kernel.dtype)
    axes = tuple(range(kernel.ndim - 1))
    return drawn * (_norm(kernel, axes) / _norm(drawn, axes))


def _norm(array: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt(jnp.sum(array**2, axes, keepdims=True))


def _move(params: Any, direction: Any, position: jax.Array) -> Any:
    return jax.tree.map(lambda leaf, step: leaf + position * step, params, direction)
