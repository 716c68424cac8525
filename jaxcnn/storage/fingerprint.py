"""Fingerprints: Python values as JSON that is equal for equal values and differs for others.

A run is identified by the fingerprints of its recipe, network and optimizer, whatever objects and
functions these consist of.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
import math
import sys
from collections.abc import Mapping
from typing import Any

from jaxcnn.errors import UserError


def of(value: Any) -> Any:
    """Returns the fingerprint of a value, as JSON values.

    Values that JSON has are left as they are, tuples become lists, and numbers become Python's,
    whatever their type. A function that can be imported becomes its name; another one, and one of a
    script or a notebook, its source and the values that it refers to, as optax's transformations
    refer to their hyperparameters. An object becomes its type and its attributes.

    Raises:
        UserError: the value is nothing of these, for example a generator.
    """
    return _of(value, ())


def digest(value: Any) -> str:
    """Returns the SHA-256 of a value's fingerprint, in hexadecimal digits.

    Raises:
        UserError: see `of`.
    """
    return _sha256(_text(of(value)))


def _of(value: Any, within: tuple[int, ...]) -> Any:
    """Returns the fingerprint of a value.

    Args:
        value: any Python value.
        within: ids of the values that contain it, the outermost first: where one of them contains
            itself, the fingerprint says how far above it is.
    """
    plain = _plain(value)
    if plain is not value or value is None or isinstance(value, bool | int | str):
        return plain
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if id(value) in within:
        return {"within": len(within) - within.index(id(value))}
    within = (*within, id(value))
    if isinstance(value, Mapping):
        items = [(key if isinstance(key, str) else _text(_of(key, within)), key) for key in value]
        return {name: _of(value[key], within) for name, key in items}
    if isinstance(value, list | tuple):
        return [_of(item, within) for item in value]
    if isinstance(value, set | frozenset):
        return {"set": sorted((_of(item, within) for item in value), key=_text)}
    own = inspect.isfunction(value) and value.__module__ == "__main__"  # where it may be edited
    if not own and (name := _import_name(value)):
        return {"name": name}
    return _of_object(value, within)


def _plain(value: Any) -> Any:
    """Returns numbers and arrays of NumPy and JAX as JSON values; other values as they are."""
    if isinstance(value, bytes | bytearray | complex | range):
        return {type(value).__name__: str(value)}
    if not (hasattr(value, "dtype") and hasattr(value, "shape")) or isinstance(value, type):
        return value
    import jax
    import numpy as np

    if isinstance(value, jax.Array) and jax.numpy.issubdtype(value.dtype, jax.dtypes.prng_key):
        key = np.asarray(jax.random.key_data(value))
        return {"key": str(jax.random.key_impl(value)), "data": key.tolist()}
    if isinstance(value, jax.core.Tracer | jax.ShapeDtypeStruct):
        return {"shape": list(value.shape), "dtype": str(value.dtype)}
    array = np.asarray(value)
    if array.shape == () and array.dtype.kind in "biufcSU":
        return _of(array.item(), ())
    content = hashlib.sha256(array.tobytes()).hexdigest()
    return {"dtype": str(array.dtype), "shape": list(array.shape), "sha256": content}


def _import_name(value: Any) -> str:
    """Returns the name by which a value can be imported; an empty one if it cannot."""
    module = getattr(value, "__module__", None) or ""
    name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or ""
    if not (isinstance(module, str) and isinstance(name, str) and name):
        return ""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return f"{module}.{name}" if found is value else ""


def _of_object(value: Any, within: tuple[int, ...]) -> Any:
    """Returns the fingerprint of a function or of an object with attributes.

    Args:
        value: what cannot be imported by a name.
        within: see `_of`; includes the value.

    Raises:
        UserError: the value has no attributes.
    """
    kind = type(value)
    named = {"type": f"{kind.__module__}.{kind.__qualname__}"}
    if isinstance(value, functools.partial):
        return named | {"of": _of([value.func, value.args, value.keywords], within)}
    if inspect.ismethod(value):
        return named | {"of": _of([value.__func__, value.__self__], within)}
    if inspect.isfunction(value):
        return named | _of_function(value, within)
    if dataclasses.is_dataclass(value):
        # The parent of a Flax module says where it is used, not what it computes.
        names = [field.name for field in dataclasses.fields(value) if field.name != "parent"]
        return named | {"fields": {name: _of(getattr(value, name), within) for name in names}}
    wrapped = getattr(value, "__wrapped__", None)
    if wrapped is not None:
        return named | {"of": _of(wrapped, within)}
    if isinstance(getattr(value, "__dict__", None), Mapping) and not inspect.ismodule(value):
        return named | {"fields": _of(vars(value), within)}
    try:
        import numpy as np

        return {"dtype": str(np.dtype(value))}
    except TypeError:
        raise UserError(
            f"a {kind.__qualname__} in the run's settings cannot be compared with that of another "
            "run: give numbers, texts, arrays, functions or objects with attributes"
        ) from None


def _of_function(value: Any, within: tuple[int, ...]) -> dict[str, Any]:
    """Returns the source of a function, the variables that it closes over, and its defaults."""
    try:
        source = inspect.getsource(value)
    except (OSError, TypeError):  # typed into a console
        source = ""
    if not source or value.__name__ == "<lambda>":  # whose source may have other lambdas too
        code = value.__code__
        constants = [item for item in code.co_consts if not inspect.iscode(item)]
        source += repr((code.co_code, code.co_names, constants))
    cells = []
    for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
        try:
            cells.append([name, _of(cell.cell_contents, within)])
        except ValueError:  # it is still empty
            cells.append([name, None])
    return {
        "function": value.__qualname__,
        "source": _sha256(source),
        "refers_to": cells,
        "defaults": _of([value.__defaults__, value.__kwdefaults__], within),
    }


def _text(plain: Any) -> str:
    return json.dumps(plain, sort_keys=True)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
