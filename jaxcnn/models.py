"""The two networks, as Flax Linen modules.

`model.apply(variables, images, train=...)` maps float[B, H, W, C] images to float32[B, 10] logits.
Training needs `rngs={"dropout": key}`, and for `Cifar10CNN` also `mutable=["batch_stats"]`.
"""

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.convolution import conv_general_dilated
from jaxcnn.pooling import avg_pool, max_pool
from jaxcnn.recipes import InitializationName

FEATURE_MAPS = "feature_maps"


class MnistCNN(nn.Module):
    """The network for 28 x 28 grey images: 207,258 parameters.

    conv 5x5, 1 -> 4; relu; max pool; conv 5x5, 4 -> 8; relu; max pool; dense 392 -> 512; relu;
    dropout; dense 512 -> 10.

    Attributes:
        dropout_rate: share of the hidden units that are dropped in training.
        initialization: "flax" draws kernels from a truncated normal (LeCun), with biases of zero;
            "pytorch" draws both uniformly in +-1 / sqrt(fan_in), as PyTorch's layers do by default.
    """

    dropout_rate: float = 0.5
    initialization: InitializationName = "flax"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps float[B, 28, 28, 1] to float32[B, 10] logits."""
        x = images
        for layer, features in enumerate((4, 8), start=1):
            x = nn.relu(_conv(self, f"conv{layer}", x, features, 5))
            _expose(self, layer, x)
            x = max_pool(x)
        return _head(self, x, train)


class Cifar10CNN(nn.Module):
    """The network for 32 x 32 colour images: 554,890 parameters.

    Five convolutions 3x3 with 4, 8, 16, 32 and 64 features, each with BatchNorm and relu (in the
    third one relu comes first, as in the original); max pool after the third, average pool after
    the fourth, max pool after the fifth; dense 1024 -> 512; relu; dropout; dense 512 -> 10.

    BatchNorm keeps the biased variance in its running statistics, where PyTorch keeps the unbiased
    one: n / (n - 1) times as much, for n values a channel.

    Attributes:
        dropout_rate: share of the hidden units that are dropped in training.
        initialization: "flax" draws kernels from a truncated normal (LeCun), with biases of zero;
            "pytorch" draws both uniformly in +-1 / sqrt(fan_in), as PyTorch's layers do by default.
    """

    dropout_rate: float = 0.5
    initialization: InitializationName = "flax"

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps float[B, 32, 32, 3] to float32[B, 10] logits."""

        def block(x: jax.Array, layer: int, features: int, relu_first: bool = False) -> jax.Array:
            norm = nn.BatchNorm(
                use_running_average=not train,
                momentum=0.9,
                epsilon=1e-5,
                name=f"batch_norm{layer}",
            )
            x = _conv(self, f"conv{layer}", x, features, 3)
            x = norm(nn.relu(x)) if relu_first else nn.relu(norm(x))
            _expose(self, layer, x)
            return x

        x = block(images, 1, 4)
        x = block(x, 2, 8)
        x = max_pool(block(x, 3, 16, relu_first=True))
        x = avg_pool(block(x, 4, 32))
        x = max_pool(block(x, 5, 64))
        return _head(self, x, train)


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


def _expose(module: nn.Module, layer: int, maps: jax.Array) -> None:
    """Lets `feature_maps` see a layer's output; costs nothing where nobody asks."""
    if not module.is_initializing():
        module.sow(FEATURE_MAPS, f"after_conv{layer}", maps)


def _conv(
    network: MnistCNN | Cifar10CNN, name: str, x: jax.Array, features: int, kernel_size: int
) -> jax.Array:
    return nn.Conv(
        features,
        (kernel_size, kernel_size),
        padding=kernel_size // 2,
        conv_general_dilated=conv_general_dilated,
        name=name,
        **_initializers(network, fan_in=kernel_size**2 * x.shape[-1]),
    )(x)


def _dense(network: MnistCNN | Cifar10CNN, name: str, x: jax.Array, features: int) -> jax.Array:
    initializers = _initializers(network, fan_in=x.shape[-1])
    return nn.Dense(features, name=name, **initializers)(x)


def _head(network: MnistCNN | Cifar10CNN, x: jax.Array, train: bool) -> jax.Array:
    x = nn.relu(_dense(network, "fc1", x.reshape(x.shape[0], -1), 512))
    x = nn.Dropout(network.dropout_rate, deterministic=not train)(x)
    return _dense(network, "fc2", x, 10).astype(jnp.float32)


def _initializers(network: MnistCNN | Cifar10CNN, fan_in: int) -> dict[str, Any]:
    if network.initialization == "flax":
        return {}
    bound = 1 / math.sqrt(fan_in)

    def uniform(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return {"kernel_init": uniform, "bias_init": uniform}
