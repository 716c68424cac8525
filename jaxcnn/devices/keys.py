"""PRNG keys as plain arrays, for storage and for transfer between processes."""

from typing import Any

import jax
import jax.numpy as jnp


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def unwrap_key(leaf: Any) -> Any:
    """Returns the key data of a PRNG key, uint32[..., 2] for threefry; other arrays as they are.

    Args:
        leaf: an array or a `jax.ShapeDtypeStruct`, and so is the result.
    """
    if not _is_key(leaf):
        return leaf
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(jax.random.key_data, leaf)
    return jax.random.key_data(leaf)


def wrap_key(array: jax.Array, like: Any) -> jax.Array:
    """Reverses `unwrap_key`.

    Args:
        array: key data, or any other array.
        like: the array that was unwrapped, or its shape and dtype.

    Returns:
        A PRNG key of the same implementation where `like` is a key; otherwise the array.
    """
    if not _is_key(like):
        return array
    impls: list[Any] = []
    jax.eval_shape(lambda key: impls.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(array, impl=impls[0])
