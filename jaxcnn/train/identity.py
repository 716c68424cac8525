"""The identity of a run: all settings that decide its outcome."""

import functools
import hashlib
import inspect
import sys
import zlib
from collections.abc import Iterable, Mapping
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
from jaxcnn.train.losses import Loss
from jaxcnn.train.start import Start, digest
from jaxcnn.train.step_log import Metric


def code_digest(function: Any) -> str:
    """Returns the SHA-256 of the source of the module that defines a user-defined function.

    Of a function of the script that runs, or of a notebook, it is that of the function alone.

    Args:
        function: or any callable object.
    """
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    try:
        name = function.__module__
        code = inspect.getsource(function if name == "__main__" else sys.modules[name])
    except (OSError, TypeError, AttributeError, KeyError):
        code = ""
    return hashlib.sha256(code.encode()).hexdigest()


def identity(
    recipe: Recipe,
    dataset: Dataset,
    *,
    model: nn.Module,
    own_tx: Any = None,
    own_schedule: Any = None,
    own_augment: Any = None,
    seeds: Any = 0,
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
    start: Start | None = None,
    freeze: Iterable[str] = (),
) -> dict[str, Any]:
    """Returns all settings that decide the outcome of a run. Versions are not part of it.

    Args:
        recipe: the hyperparameters.
        dataset: the training and test splits.
        model: the network as it was requested, before it is placed on devices.
        own_tx: the optimizer, or the function that makes it, if it is not the recipe's.
        own_schedule: the schedule, if it is not the recipe's.
        own_augment: the augmentation, if it is not the recipe's.
        seeds: the seed, or the seeds of an ensemble.
        loss: a user-defined one.
        metrics: user-defined, by name: they decide the records.
        start: arrays that the run begins with.
        freeze: patterns of the parameters that are not trained.

    Returns:
        JSON values by name: every field of the recipe (its name as "recipe"); "seed"; "dataset",
        "dataset_version" and "dataset_checksum", see `checksum`; "model", the name of the class,
        and for a user-defined network also "model_fields"; "dtype" of the computation; "own_tx", a
        digest of the optimizer, or False; "own_schedule" and "own_augment", digests, if there are
        any; jax's settings that differ from their defaults; "optimizer_code", see `code_digest`, if
        the recipe names a user-defined optimizer; "loss" and "metrics", digests of the functions
        and their code, if there are any; "start", a digest, if there is one; "freeze", the sorted
        patterns, if there are any; and "class_names" and "image_shape" where they are not those of
        the network's own data set.
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
    if dataset.class_names != recipe.class_names:
        run["class_names"] = list(dataset.class_names)
    if dataset.image_shape != recipe.image_shape:
        run["image_shape"] = list(dataset.image_shape)
    if model != setup.make_model(recipe, dataset.classes, dataset.image_shape):
        run["model_fields"] = fingerprint.of(model)["fields"]
    for name, own in {"own_schedule": own_schedule, "own_augment": own_augment}.items():
        if own is not None:
            run[name] = fingerprint.digest(own)
    run |= environment.jax_settings()
    if ":" in recipe.optimizer and own_tx is None:
        run["optimizer_code"] = code_digest(find_factory(recipe.optimizer))
    if loss is not None:
        run["loss"] = _function_digest(loss)
    if metrics:
        run["metrics"] = {name: _function_digest(metric) for name, metric in metrics.items()}
    if start is not None:
        run["start"] = digest(start)
    if freeze:
        run["freeze"] = sorted(set(freeze))
    return run


def _function_digest(function: Any) -> str:
    """Returns the SHA-256 of what a function is: its name, all it refers to, and its code."""
    return fingerprint.digest([function, code_digest(function)])


def checksum(*splits: Split) -> str:
    """Returns the CRC-32 of all images and labels, 8 hexadecimal digits."""
    value = 0
    for split in splits:
        for array in (split.images, split.labels):
            value = zlib.crc32(np.ascontiguousarray(array).data, value)
    return f"{value:08x}"
