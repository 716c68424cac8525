"""Weights that a run begins with instead of random ones."""

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict

from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import UserError, as_path
from jaxcnn.networks import pytorch
from jaxcnn.networks.inspect import variable_shapes
from jaxcnn.train.trained import load_trained

Start = Mapping[str, np.ndarray]
"""Arrays by their path in the variables, for example "params/conv1/kernel"."""


def load_start(
    path: str | os.PathLike[str], dataset: Dataset, model: nn.Module | None = None
) -> Any:
    """Loads the variables that a run is to begin with.

    Args:
        path: the workdir of a run, or a file of weights, `.pt`, `.pth` or `.safetensors`, see
            `jaxcnn.networks.pytorch.load_state_dict`.
        dataset: that will be trained on.
        model: the network, if it is not the recipe's.

    Returns:
        `params`, and `batch_stats` where the network has them.

    Raises:
        UserError: there are no weights, or they cannot be read.
    """
    path = as_path(path)
    if path.is_dir():
        return load_trained(path, model=model).variables
    if model is not None:
        raise UserError(
            f"{path} can hold the weights of the two original networks alone: give the workdir of "
            "a run of your network"
        )
    return pytorch.load_state_dict(path, dataset.image_shape)


def checked_start(start: Any, model: nn.Module, dataset: Dataset) -> tuple[Start, list[str]]:
    """Compares variables with those of a network.

    Args:
        start: `params`, and `batch_stats` where the network has them.
        model: the network.
        dataset: that will be trained on.

    Returns:
        The arrays to begin with, by path; and the paths of those that begin at random all the same:
        the outputs of a network for another number of classes.

    Raises:
        UserError: an array is missing, unknown or of the wrong shape; the message names it.
    """
    wanted = flatten_dict(dict(variable_shapes(model, dataset.image_shape)), sep="/")
    if not isinstance(start, Mapping):
        raise UserError(
            f"start takes variables, got {type(start).__name__}: give {{'params': ...}}, as "
            "load_trained(...).variables or result.state.variables"
        )
    given = flatten_dict({name: dict(part) for name, part in start.items() if part}, sep="/")
    if different := sorted(wanted.keys() ^ given.keys()):
        where = "lack" if different[0] in wanted else "hold"
        raise UserError(
            f"the weights to begin with {where} {different[0]}, other than "
            f"{type(model).__qualname__}: give weights of that network"
        )
    anew = []
    for path, array in given.items():
        here, there = wanted[path].shape, np.shape(array)
        if here == there:
            continue
        if here[:-1] != there[:-1] or here[-1:] != (dataset.classes,):
            raise UserError(
                f"the weights to begin with hold {path} {list(there)}, and the network needs "
                f"{list(here)}: give weights of a network for such images"
            )
        anew.append(path)
    return {path: np.asarray(given[path]) for path in given if path not in anew}, sorted(anew)


def digest(start: Start) -> str:
    """Returns the SHA-256 of arrays and their paths, in hexadecimal."""
    value = hashlib.sha256()
    for path, array in sorted(start.items()):
        value.update(f"{path} {array.dtype}{array.shape}".encode())
        value.update(np.ascontiguousarray(array).tobytes())
    return value.hexdigest()
