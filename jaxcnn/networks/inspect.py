"""What a network contains: feature maps, parameter counts, a summary table, multiply-adds."""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax

from jaxcnn.networks.cnn import FEATURE_MAPS


def feature_maps(
    model: nn.Module, variables: Mapping[str, Any], images: jax.Array
) -> dict[str, jax.Array]:
    """Returns what every convolution's block puts out, before pooling, in evaluation mode.

    Args:
        model: `MnistCNN` or `Cifar10CNN`.
        variables: its `params`, and `batch_stats` where it has them.
        images: float[B, H, W, C], normalised.

    Returns:
        `{"conv1": float[B, H, W, features], ...}` in the order of the layers.
    """
    _, state = model.apply(variables, images, train=False, mutable=[FEATURE_MAPS])
    return {
        name.removeprefix("after_"): maps for name, (maps,) in sorted(state[FEATURE_MAPS].items())
    }


def summary(model: nn.Module, images: jax.Array, **tabulate_options: Any) -> str:
    """Returns a table of the layers with their shapes and numbers of parameters.

    Args:
        model: `MnistCNN` or `Cifar10CNN`.
        images: float[B, H, W, C] of the shape to show.
        **tabulate_options: passed to `flax.linen.Module.tabulate`, `compute_flops=True` say.
    """
    plain = {"force_terminal": False, "width": 132}
    options: dict[str, Any] = {"depth": 1, "console_kwargs": plain} | tabulate_options
    table = model.tabulate(jax.random.key(0), images, **options)
    # Flax's closing line counts BatchNorm's running statistics as parameters.
    table = table[: table.rindex("┘") + 1].strip("\n")
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    return f"{table}\nParameters: {count_parameters(variables['params']):,}\n"


def count_parameters(params: Any) -> int:
    """Returns how many numbers a tree of parameters holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def multiply_adds(model: nn.Module, images: jax.Array) -> int:
    """Returns the multiply-adds of a forward pass, counted as the original's summary counts them.

    That is torchinfo's rule (https://github.com/TylerYep/torchinfo): every parameter, biases and
    BatchNorm's too, counts once an image, those of a convolution once a position of its output.

    Args:
        model: `MnistCNN` or `Cifar10CNN`.
        images: float[B, H, W, C], of which only the shape matters.
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
