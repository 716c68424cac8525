"""What a network contains: feature maps, parameter counts, a summary table, multiply-adds."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


def feature_maps(
    model: nn.Module, variables: Mapping[str, Any], images: jax.Array
) -> dict[str, jax.Array]:
    """Returns the output of each convolution's block in evaluation mode, before any pooling.

    Args:
        model: `MnistCNN` or `Cifar10CNN`.
        variables: its `params`, and `batch_stats` where it has them.
        images: float[B, H, W, C], normalised.

    Returns:
        `{"conv1": float[B, H, W, features], ...}` in the order of the layers.
    """
    _, state = model.apply(variables, images, train=False, mutable=["intermediates"])
    outputs = sorted(state["intermediates"].items())
    return {name.removeprefix("after_"): maps for name, (maps,) in outputs}


def summary(model: nn.Module, images: jax.Array, **tabulate_options: Any) -> str:
    """Returns a table of the layers with their shapes and numbers of parameters.

    Args:
        model: `MnistCNN` or `Cifar10CNN`.
        images: float[B, H, W, C], of which only the shape matters.
        **tabulate_options: of `flax.linen.Module.tabulate`, for example `compute_flops=True`.
    """
    plain = {"force_terminal": False, "width": 132}
    options: dict[str, Any] = {"depth": 1, "console_kwargs": plain} | tabulate_options
    table = model.tabulate(jax.random.key(0), images, **options)
    # Flax's closing line counts BatchNorm's running statistics as parameters.
    table = table[: table.rindex("┘") + 1].strip("\n")
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return f"{table}\nParameters: {count_parameters(variables['params']):,}\n"


def variable_shapes(model: nn.Module, image_shape: tuple[int, ...]) -> Any:
    """Returns the shapes and dtypes of a network's variables, which are not computed.

    Args:
        model: the network.
        image_shape: (H, W, C).
    """
    images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def count_parameters(params: Any) -> int:
    """Returns the number of values in a pytree of parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def multiply_adds(model: nn.Module, images: jax.Array) -> int:
    """Returns the number of multiply-adds of a forward pass, as the original's summary counts them.

    The rule is torchinfo's (https://github.com/TylerYep/torchinfo): every parameter, including
    biases and BatchNorm's, counts once per image; a convolution's once per position of its output.

    Args:
        model: `MnistCNN` or `Cifar10CNN`.
        images: float[B, H, W, C], of which only the shape matters.

    Returns:
        The number for all B images together.
    """

    def run() -> tuple[Any, Any]:
        variables = model.init(jax.random.key(0), images)
        _, seen = model.apply(
            variables, images, capture_intermediates=True, mutable=["intermediates"]
        )
        return variables["params"], seen["intermediates"]

    params, outputs = jax.eval_shape(run)
    total = 0
    for layer, leaves in params.items():
        positions = 1
        if layer.startswith("conv"):
            (output,) = outputs[layer]["__call__"]
            positions = math.prod(output.shape[1:-1])
        total += count_parameters(leaves) * positions * images.shape[0]
    return total
