"""PRNG keys as plain arrays of numbers, for storage and for transfer between processes."""

from typing import Any

import jax
import jax.numpy as jnp


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def as_numbers(leaf: Any) -> Any:
    """Returns the numbers of a PRNG key, or their shape; every other leaf as it is."""
    if not _is_key(leaf):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.random.key_data(leaf)


def as_written(array: jax.Array, leaf: Any) -> jax.Array:
    """Returns an array of `as_numbers` as what it was, of the form of `leaf`."""
    if not _is_key(leaf):
        return array
    impls: list[Any] = []
    jax.eval_shape(lambda key: impls.append(jax.random.key_impl(key)), leaf)
    return jax.random.wrap_key_data(array, impl=impls[0])
