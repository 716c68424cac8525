"""Pytree serialization: the arrays of a pytree as the content of one safetensors file.

Arrays are named by their paths in the pytree and come back bit-identical. Format:
https://huggingface.co/docs/safetensors
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.devices.keys import unwrap_key, wrap_key
from jaxcnn.errors import UserError
from jaxcnn.storage.manifest import DamagedError

# The dtypes that every version of safetensors can name; others are stored as plain bytes.
_NAMED_DTYPES = frozenset(
    "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 "
    "float16 bfloat16 float32 float64 float8_e4m3fn float8_e5m2".split()
)


def leaf_types(tree: Any) -> dict[str, str]:
    """Returns dtype and shape of every leaf by its path, such as `"float32[3, 3]"`.

    Args:
        tree: a pytree of arrays, or of their shapes and dtypes. The type of a PRNG key names its
            implementation, as in `"key<fry>[]"`.

    Raises:
        UserError: the paths of two leaves have the same name.
    """
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in _by_path(tree).items()}


def serialize_pytree(tree: Any) -> bytes:
    """Returns the arrays of a pytree as the content of a safetensors file.

    Args:
        tree: a pytree of arrays, PRNG keys included.

    Returns:
        The same bytes for bit-identical arrays, in every process.

    Raises:
        UserError: the paths of two leaves have the same name.
    """
    from safetensors.numpy import save

    numbers = jax.device_get({name: unwrap_key(leaf) for name, leaf in _by_path(tree).items()})
    arrays = {}
    for name, leaf in numbers.items():
        # In C order: safetensors copies the memory of an array without looking at its strides.
        array = np.asarray(leaf, order="C")
        named = array.dtype.name in _NAMED_DTYPES
        arrays[name] = array if named else array.reshape(-1).view(np.uint8)
    return save(arrays)


def deserialize_pytree(
    content: bytes, like: Any, types: Mapping[str, str], where: Path, *, partial: bool = False
) -> Any:
    """Returns the pytree whose arrays were serialized.

    Args:
        content: what `serialize_pytree` returned.
        like: a pytree of arrays, or of their shapes and dtypes, with the structure of the result.
            An array that is sharded over several devices is restored with that sharding.
        types: what `leaf_types` returned for the serialized pytree.
        where: the folder that error messages name.
        partial: whether `like` may have fewer leaves than were serialized.

    Returns:
        The pytree, with arrays bit-identical to those that were serialized. They are not committed
        to a device, so that a jitted function is not compiled again for them.

    Raises:
        DamagedError: `content` is not what `types` describes.
        UserError: the names, shapes or dtypes of `like` differ from those that were serialized.
    """
    import safetensors

    wanted = leaf_types(like)
    for name in sorted(wanted.keys() if partial else types.keys() | wanted.keys()):
        if types.get(name) != wanted.get(name):
            raise UserError(
                f"{where} holds {types.get(name, 'nothing')} as {name}, and what is to be restored "
                f"needs {wanted.get(name, 'nothing')}: restore it into what it was saved from"
            )
    try:
        stored = {name: entry["data"] for name, entry in safetensors.deserialize(content)}
    except safetensors.SafetensorError as error:
        raise DamagedError("the arrays are not in safetensors format") from error

    def restore(path: Any, leaf: Any) -> jax.Array:
        plain, name = unwrap_key(leaf), _name(path)
        try:
            flat = np.frombuffer(stored[name], np.uint8).view(plain.dtype)
            array = flat.reshape(plain.shape)
        except (KeyError, ValueError):
            raise DamagedError(f"the arrays do not include {types[name]} as {name}") from None
        sharding = getattr(plain, "sharding", None)
        if sharding is not None and len(sharding.device_set) > 1:
            return wrap_key(jax.device_put(array, sharding), leaf)
        return wrap_key(jnp.asarray(array), leaf)

    return jax.tree_util.tree_map_with_path(restore, like)


def _by_path(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a pytree by the names of their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {_name(path): leaf for path, leaf in leaves}
    # The second name is the one that safetensors keeps for itself.
    if len(named) != len(leaves) or "__metadata__" in named:
        raise UserError(
            "the arrays of a pytree cannot be saved, as two of them have one path or one is called "
            "__metadata__: rename them"
        )
    return named


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")
