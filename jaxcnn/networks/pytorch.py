"""Weights from and to the original's PyTorch `state_dict`.

The layouts differ in two ways. PyTorch keeps convolution kernels as (Cout, Cin, KH, KW) and dense
ones as (out, in), Flax as (KH, KW, Cin, Cout) and (in, out). And PyTorch flattens feature maps with
the channels first, Flax with the channels last, so the inputs of the first dense layer change
places.

PyTorch's running variance is the unbiased one, n / (n - 1) times Flax's, for n values a channel of
a training batch. It is carried over as it is: n is no part of a state, and evaluation is the same
function of the variance on both sides.
"""

import functools
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.errors import UserError, as_path
from jaxcnn.networks.cnn import Cifar10CNN, MnistCNN
from jaxcnn.storage import atomic

Variables = dict[str, Any]

# (H, W, C) of the feature maps that are flattened.
_FLATTENED = {"mnist": (7, 7, 8), "cifar10": (4, 4, 64)}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
_COUNTER = "num_batches_tracked"
# Around a state dict, as PyTorch's tutorials and Lightning save it; and before its names, by
# DataParallel, torch.compile and Lightning.
_CONTAINERS = ("state_dict", "model_state_dict")
_WRAPPERS = ("module", "_orig_mod", "model")


def load_state_dict(source: str | os.PathLike[str] | Mapping[str, Any]) -> Variables:
    """Reads the weights of one of the original's networks.

    Args:
        source: a `.pt`, `.pth` or `.safetensors` file, or a mapping from names to tensors or
            arrays, or one that holds such a mapping as "state_dict" or "model_state_dict". The
            names are the original's (`conv1.weight`, ...), with or without what a wrapper puts
            before them (`module.`, `_orig_mod.`, `model.`); they tell which network it is.

    Returns:
        What the network's `apply` takes: float32 `params`, and `batch_stats` for CIFAR-10.

    Raises:
        UserError: the file cannot be read, or a tensor is missing, unknown, misshapen or not of
            floating-point numbers; the message names it.
    """
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    tensors = source if isinstance(source, Mapping) else _read(as_path(source))
    tensors = _unwrapped(tensors)
    cifar = ("batch_norm", "conv3", "conv4", "conv5")  # which the other network does not have
    network = "cifar10" if any(name.startswith(cifar) for name in tensors) else "mnist"
    expected = _names(network)
    unknown = [n for n in tensors if n not in expected and not n.endswith(f".{_COUNTER}")]
    if unknown:
        raise UserError(
            f"{where} holds {unknown[0]}, which the {network} network does not have: give the "
            "weights of one of the original's networks alone"
        )
    variables: Variables = (
        {"params": {}, "batch_stats": {}} if network == "cifar10" else {"params": {}}
    )
    for name, (path, shape) in expected.items():
        if name not in tensors:
            raise UserError(
                f"{where} lacks {name}, which the {network} network has: give its whole state dict"
            )
        array = _as_array(tensors[name], name, where)
        wanted = _to_torch(np.empty(shape, np.float32), path, network).shape
        if array.shape != wanted:
            raise UserError(
                f"{where} holds {name} of shape {array.shape}, and the {network} network needs "
                f"{wanted}: give the weights of an unchanged network"
            )
        collection, layer, leaf = path
        layers = variables[collection].setdefault(layer, {})
        layers[leaf] = jnp.asarray(_from_torch(array, path, network))
    return variables


def _unwrapped(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """Takes off what training loops and wrappers put around a state dict."""
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


def save_state_dict(variables: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Writes the weights of a network under the original's names, whole or not at all.

    Args:
        variables: `params`, and `batch_stats` for CIFAR-10.
        path: of the file; its ending, `.pt`, `.pth` or `.safetensors`, says which form it gets.

    Raises:
        UserError: a weight is missing or misshapen, the ending is another one, torch is missing
            for a `.pt` file, or the file cannot be written.
    """
    _write(to_state_dict(variables), as_path(path))


def to_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the weights of a network under the original's names and in PyTorch's layout.

    Args:
        variables: `params`, and `batch_stats` for CIFAR-10; trees of the same form, of gradients
            say, work too.

    Raises:
        UserError: a weight is missing or misshapen.
    """
    network = "cifar10" if "batch_norm1" in variables["params"] else "mnist"
    tensors: dict[str, np.ndarray] = {}
    for name, (path, shape) in _names(network).items():
        collection, layer, leaf = path
        try:
            value = np.asarray(variables[collection][layer][leaf], np.float32)
        except KeyError:
            raise UserError(
                f"the variables lack {'/'.join(path)}: give all that the network has"
            ) from None
        if value.shape != shape:
            raise UserError(
                f"{'/'.join(path)} has the shape {value.shape}, and the {network} network needs "
                f"{shape}: give the variables of an unchanged network"
            )
        tensors[name] = np.array(_to_torch(value, path, network), order="C")
        if leaf == "var":
            tensors[f"{layer}.{_COUNTER}"] = np.zeros((), np.int64)
    return tensors


@functools.cache
def _names(network: str) -> dict[str, tuple[tuple[str, str, str], tuple[int, ...]]]:
    """Returns, for every PyTorch name, where Flax has the array and its shape there."""
    model = {"mnist": MnistCNN, "cifar10": Cifar10CNN}[network]()
    shape = {"mnist": (1, 28, 28, 1), "cifar10": (1, 32, 32, 3)}[network]
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return {
        f"{layer}.{_LEAVES[leaf]}": ((collection, layer, leaf), array.shape)
        for collection, layers in variables.items()
        for layer, leaves in layers.items()
        for leaf, array in leaves.items()
    }


def _to_torch(array: np.ndarray, path: tuple[str, str, str], network: str) -> np.ndarray:
    _, layer, leaf = path
    if leaf != "kernel":
        return array
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    if layer == "fc1":
        height, width, channels = _FLATTENED[network]
        array = array.reshape(height, width, channels, -1).transpose(2, 0, 1, 3)
    return array.reshape(-1, array.shape[-1]).T


def _from_torch(array: np.ndarray, path: tuple[str, str, str], network: str) -> np.ndarray:
    _, layer, leaf = path
    if leaf != "kernel":
        return array
    if array.ndim == 4:
        return array.transpose(2, 3, 1, 0)
    array = array.T
    if layer == "fc1":
        height, width, channels = _FLATTENED[network]
        array = array.reshape(channels, height, width, -1).transpose(1, 2, 0, 3)
    return array.reshape(-1, array.shape[-1])


def _as_array(tensor: Any, name: str, where: str) -> np.ndarray:
    if hasattr(tensor, "detach"):  # a torch tensor, on whatever device and of whatever precision
        if not tensor.is_floating_point():
            raise UserError(f"{where} holds {name} of {tensor.dtype}: give floating-point numbers")
        return tensor.detach().float().cpu().numpy()
    array = np.asarray(tensor)
    if not jnp.issubdtype(array.dtype, jnp.floating):  # bfloat16 is one
        raise UserError(f"{where} holds {name} of {array.dtype}: give floating-point numbers")
    return array.astype(np.float32)


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".pt", ".pth", ".safetensors"):
        raise UserError(f"{path} ends neither in .pt, .pth nor .safetensors: give it such a name")


def _torch(path: Path) -> Any:
    try:
        import torch
    except ImportError:
        raise UserError(
            f"{path} needs PyTorch: pip install 'jaxcnn[torch]', or use a .safetensors file"
        ) from None
    return torch


def _read(path: Path) -> Mapping[str, Any]:
    _check_suffix(path)
    if not path.is_file():
        raise UserError(f"{path} is not there: give the path of a .pt or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        # weights_only: a .pt file is a pickle, which could run any code otherwise.
        content = _torch(path).load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # both libraries raise errors of their own kinds
        raise UserError(
            f"{path} is no whole {path.suffix} file of plain tensors "
            f"({type(error).__name__}): save the network's state_dict() again"
        ) from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no state dict: save the network's state_dict()")
    return content


def _write(tensors: dict[str, np.ndarray], path: Path) -> None:
    _check_suffix(path)
    if path.suffix == ".safetensors":
        from safetensors.numpy import save

        content = save(tensors)
    else:
        torch, file = _torch(path), io.BytesIO()
        torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, file)
        content = file.getvalue()
    atomic.write(path, content, "give a folder that is there, can be written and has room")
