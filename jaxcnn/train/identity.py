"""The identity of a run: all settings that decide its outcome."""

import hashlib
import inspect
import sys
import zlib
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.devices import environment
from jaxcnn.optim.named import find_factory
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.storage import fingerprint
from jaxcnn.train import setup


def code_digest(name: str) -> str:
    """Returns the SHA-256 of the source of the module that an optimizer of one's own is in.

    Args:
        name: "module:factory".
    """
    try:
        code = inspect.getsource(sys.modules[find_factory(name).__module__])
    except (OSError, TypeError, AttributeError, KeyError):
        code = ""
    return hashlib.sha256(code.encode()).hexdigest()


def identity(
    recipe: Recipe,
    dataset: Dataset,
    *,
    model: nn.Module,
    own_tx: Any = None,
    seeds: Any = 0,
) -> dict[str, Any]:
    """Returns all that decides what a run is, as JSON values; the versions are no part of it.

    Args:
        recipe: of the run.
        dataset: likewise; of its pictures there is a checksum.
        model: likewise, as it was asked for, not as it is placed on devices; of one that is not
            the recipe's all fields count.
        own_tx: the optimizer, or what makes it, if that is not the recipe's.
        seeds: the seed, or what else tells this run from others.
    """
    run = {
        **recipe.asdict(),
        "seed": seeds,
        "dataset": dataset.name,
        "dataset_version": dataset.version,
        "dataset_checksum": checksum(dataset.train, dataset.test),
        "model": type(model).__qualname__,
        "dtype": str(jnp.dtype(getattr(model, "dtype", None) or jnp.float32)),
        "own_tx": own_tx is not None and fingerprint.digest(own_tx),
    }
    if model != setup.make_model(recipe):
        run["model_fields"] = fingerprint.of(model)["fields"]
    run |= environment.jax_settings()
    if ":" in recipe.optimizer and own_tx is None:
        run["optimizer_code"] = code_digest(recipe.optimizer)
    return run


def checksum(*splits: Split) -> str:
    """Returns the CRC-32 of all pictures and labels, in hexadecimal digits."""
    value = 0
    for split in splits:
        for array in (split.images, split.labels):
            value = zlib.crc32(np.ascontiguousarray(array).data, value)
    return f"{value:08x}"
