"""Weights from and to the `state_dict` of the original networks in PyTorch.

The layouts differ in two ways. PyTorch stores convolution kernels as (Cout, Cin, KH, KW) and dense
ones as (out, in), Flax as (KH, KW, Cin, Cout) and (in, out). And PyTorch flattens feature maps with
the channels first, Flax with the channels last: the inputs of the first dense layer are permuted.

PyTorch's running variance is the unbiased one, n / (n - 1) times Flax's, for n values per channel
of a training batch. It is converted unchanged: n is not part of a state, and evaluation is the same
function of the variance in both.
"""

import functools
import logging
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxcnn.errors import UserError, as_path
from jaxcnn.networks.cnn import CNN, Cifar10CNN, MnistCNN
from jaxcnn.networks.inspect import variable_shapes
from jaxcnn.networks.weight_files import read_weights, write_weights

Variables = dict[str, Any]

_log = logging.getLogger(__name__)
# PyTorch's names of Flax's arrays.
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_COUNTER = "num_batches_tracked"  # of PyTorch's BatchNorm; Flax has none
# Keys of a checkpoint's state dict in PyTorch's tutorials and Lightning; and prefixes of its names
# by DataParallel, torch.compile and Lightning.
_CONTAINERS = ("state_dict", "model_state_dict", "model")
_WRAPPERS = ("module", "_orig_mod", "model")


def load_state_dict(
    source: str | os.PathLike[str] | Mapping[str, Any],
    image_shape: tuple[int, int, int] | None = None,
) -> Variables:
    """Converts the weights of one of the original networks.

    Args:
        source: a `.pt`, `.pth` or `.safetensors` file, or a mapping from names to tensors or
            arrays, or one that holds such a mapping as "state_dict", "model_state_dict" or "model".
            The names are the original's (`conv1.weight`, ...), with or without a wrapper's prefix
            (`module.`, `_orig_mod.`, `model.`); they decide which network it is. It has as many
            classes as `fc2` has outputs.
        image_shape: of the images that the network is for, (H, W, C). Default: the original's.

    Returns:
        Variables for the network's `apply`: float32 `params`, and `batch_stats` for CIFAR-10.
        Values that are not finite are kept, with a warning that names their tensors.

    Raises:
        UserError: the file cannot be read, or a tensor is missing, unknown, of the wrong shape or
            not of floating-point numbers; the message names it.
    """
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    tensors = _unwrapped(source if isinstance(source, Mapping) else read_weights(as_path(source)))
    cifar = ("batch_norm", "conv3", "conv4", "conv5")  # which the other network does not have
    is_cifar = any(name.startswith(cifar) for name in tensors)
    outputs: tuple[int, ...] = getattr(tensors.get("fc2.bias"), "shape", ())
    model = _model(is_cifar, outputs, image_shape)
    network = type(model).__name__
    expected = _names(model)
    for name in tensors:
        if name not in expected and not name.endswith(f".{_COUNTER}"):
            raise UserError(
                f"{where} holds {name}, which {network} does not have: give only the weights of "
                "one of the original networks"
            )
    variables: Variables = {}
    not_finite = []
    for name, (path, shape) in expected.items():
        if name not in tensors:
            raise UserError(f"{where} lacks {name}, which {network} has: give its whole state dict")
        array = _as_array(tensors[name], name, where)
        wanted = _to_torch(np.empty(shape, np.float32), path, model).shape
        if array.shape != wanted:
            raise UserError(
                f"{where} holds {name} of shape {array.shape}, and {network} needs {wanted}: give "
                "the weights of an unchanged network, and its image_shape"
            )
        if not np.isfinite(array).all():
            not_finite.append(name)
        collection, layer, leaf = path
        layers = variables.setdefault(collection, {})
        layers.setdefault(layer, {})[leaf] = jnp.asarray(_from_torch(array, path, model))
    if not_finite:
        _log.warning("%s holds values that are not finite, in %s", where, ", ".join(not_finite))
    return variables


def save_state_dict(
    variables: Mapping[str, Any],
    path: str | os.PathLike[str],
    image_shape: tuple[int, int, int] | None = None,
) -> None:
    """Writes the weights of a network to a file, under the original's names.

    Args:
        variables: `params`, and `batch_stats` for CIFAR-10.
        path: of the file, whose suffix chooses the format: `.pt`, `.pth` or `.safetensors`.
        image_shape: as for `to_state_dict`.

    Raises:
        UserError: a weight is missing or of the wrong shape, the suffix is another one, PyTorch is
            missing for a `.pt` file, or the file cannot be written.
    """
    write_weights(to_state_dict(variables, image_shape), as_path(path))


def to_state_dict(
    variables: Mapping[str, Any], image_shape: tuple[int, int, int] | None = None
) -> dict[str, np.ndarray]:
    """Converts the weights of a network to the original's names and PyTorch's layout.

    Args:
        variables: `params`, and `batch_stats` for CIFAR-10; or pytrees of the same structure, for
            example of gradients.
        image_shape: of the images that the network is for, (H, W, C). Default: the original's.

    Returns:
        float32 arrays by name, and the int64 counters of PyTorch's BatchNorm, which are zero.

    Raises:
        UserError: a weight is missing or of the wrong shape.
    """
    params = variables["params"]
    outputs = np.shape(params.get("fc2", {}).get("bias", ()))
    model = _model("batch_norm1" in params, outputs, image_shape)
    tensors: dict[str, np.ndarray] = {}
    for name, (path, shape) in _names(model).items():
        collection, layer, leaf = path
        try:
            value = np.asarray(variables[collection][layer][leaf], np.float32)
        except KeyError:
            raise UserError(
                f"the variables lack {'/'.join(path)}: give all variables of the network"
            ) from None
        if value.shape != shape:
            raise UserError(
                f"{'/'.join(path)} has the shape {value.shape}, and {type(model).__name__} needs "
                f"{shape}: give the variables of an unchanged network, and its image_shape"
            )
        tensors[name] = np.array(_to_torch(value, path, model), order="C")
        if leaf == "var":
            tensors[f"{layer}.{_COUNTER}"] = np.zeros((), np.int64)
    return tensors


def _unwrapped(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Removes a checkpoint's container and the prefixes of wrappers from a state dict."""
    for key in _CONTAINERS:
        if isinstance(inner := tensors.get(key), Mapping):
            tensors = inner
    names = {str(name): tensor for name, tensor in tensors.items()}
    # One wrapper after the other, as long as all names have it.
    while names and (prefix := next(iter(names)).split(".")[0]) in _WRAPPERS:
        if not all(name.startswith(f"{prefix}.") for name in names):
            break
        names = {name.removeprefix(f"{prefix}."): tensor for name, tensor in names.items()}
    return names


def _model(
    is_cifar: bool, outputs: tuple[int, ...], image_shape: tuple[int, int, int] | None
) -> CNN:
    """Returns the network of some weights; `outputs` is the shape of its last bias."""
    model: CNN = Cifar10CNN() if is_cifar else MnistCNN()
    if len(outputs) == 1 and outputs[0]:
        model = model.clone(classes=outputs[0])
    return model.clone(image_shape=image_shape) if image_shape else model


@functools.lru_cache(maxsize=16)
def _names(model: CNN) -> dict[str, tuple[tuple[str, str, str], tuple[int, ...]]]:
    """Returns, for each of PyTorch's names, the path and the shape of the array in Flax."""
    variables = variable_shapes(model, model.image_shape)
    return {
        f"{layer}.{_LEAVES[leaf]}": ((collection, layer, leaf), array.shape)
        for collection, layers in variables.items()
        for layer, leaves in layers.items()
        for leaf, array in leaves.items()
    }


def _flattened(model: CNN) -> tuple[int, int, int]:
    """Returns (H, W, C) of the feature maps that are flattened."""
    height, width, _ = model.image_shape
    divisor, channels = (8, 64) if isinstance(model, Cifar10CNN) else (4, 8)
    return height // divisor, width // divisor, channels


def _to_torch(array: np.ndarray, path: tuple[str, str, str], model: CNN) -> np.ndarray:
    """Converts an array from Flax's layout to PyTorch's."""
    _, layer, leaf = path
    if leaf != "kernel":
        return array
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if layer == "fc1":
        height, width, channels = _flattened(model)
        array = array.reshape(height, width, channels, -1).transpose(2, 0, 1, 3)
    return array.reshape(-1, array.shape[-1]).T


def _from_torch(array: np.ndarray, path: tuple[str, str, str], model: CNN) -> np.ndarray:
    """Converts an array from PyTorch's layout to Flax's."""
    _, layer, leaf = path
    if leaf != "kernel":
        return array
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    array = array.T
    if layer == "fc1":
        height, width, channels = _flattened(model)
        array = array.reshape(channels, height, width, -1).transpose(1, 2, 0, 3)
    return array.reshape(-1, array.shape[-1])


def _as_array(tensor: Any, name: str, where: str) -> np.ndarray:
    """Returns a tensor of PyTorch, on any device, or an array of any floating dtype as float32."""
    if hasattr(tensor, "detach"):
        if not tensor.is_floating_point():
            raise UserError(f"{where} holds {name} of {tensor.dtype}: give floating-point numbers")
        return tensor.detach().float().cpu().numpy()
    array = np.asarray(tensor)
    if not jnp.issubdtype(array.dtype, jnp.floating):  # bfloat16 is one
        raise UserError(f"{where} holds {name} of {array.dtype}: give floating-point numbers")
    return array.astype(np.float32)
