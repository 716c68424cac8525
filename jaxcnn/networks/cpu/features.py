"""The convolutional layers of both networks as they are trained on CPU, stage by stage.

A network hands its stages to its method `features` with the decorator `train_in_stages`. They
compute what the method computes in training, up to rounding.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.networks.cpu import blocks
from jaxcnn.networks.cpu.stages import Stage

# (network, float[B, H, W, C], train) -> float[B, F].
_Features = Callable[[Any, jax.Array, bool], jax.Array]


def train_in_stages(stages: Callable[..., Any], **options: Any) -> Callable[[_Features], _Features]:
    """Decorates the method `features` of a network: on CPU, training computes it in stages.

    Initialization, evaluation, other platforms, other dtypes than float32 and networks with
    `staged=False` keep the method as it is written.

    Args:
        stages: (variables, float32[B, H, W, C]) -> float32[B, F] and the new running statistics.
        **options: keyword arguments of `stages`.

    Returns:
        A decorator for `features(network, images, train)`.
    """
    stages = functools.partial(stages, **options)

    def decorate(features: _Features) -> _Features:
        @functools.wraps(features)
        def staged_on_cpu(network: nn.Module, images: jax.Array, train: bool) -> jax.Array:
            staged = network.staged and network.dtype == jnp.float32
            if not (train and staged) or network.is_initializing():
                return features(network, images, train)
            return _platform_features(network, stages, images)

        return staged_on_cpu

    return decorate


def _platform_features(
    network: nn.Module, stages: Callable[..., Any], images: jax.Array
) -> jax.Array:
    """Computes the features and updates the running statistics as is fastest on the platform."""

    def layers(variables: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        # Detached from the network, which a branch must not change.
        x, changed = network.clone(parent=None, staged=False).apply(
            variables, images, train=True, method="features", mutable=["batch_stats"]
        )
        return x, changed.get("batch_stats", {})

    variables = {name: dict(network.variables[name]) for name in network.variables}
    x: jax.Array
    x, batch_stats = lax.platform_dependent(variables, images, cpu=stages, default=layers)
    for layer, stats in batch_stats.items():
        network.put_variable("batch_stats", layer, stats)
    return x


def mnist_stages(variables: Any, images: jax.Array) -> tuple[jax.Array, dict[str, Any]]:
    """Computes the features of `MnistCNN` in training.

    Args:
        variables: of the network; `params` with conv1 and conv2.
        images: float32[B, 28, 28, 1].

    Returns:
        float32[B, 392], and no running statistics.
    """
    stage = Stage(tile=2, relu_after=True, max_after=True)
    x = blocks.to_slices(images, tile=2)
    for name in ("conv1", "conv2"):
        conv = variables["params"][name]
        x, _ = stage(x, conv["kernel"], conv["bias"])
    return blocks.to_features(x), {}


# BatchNorm normalises in the stage after its convolution, which takes its scale and shift. A max
# pool comes before BatchNorm here, while the values are still in the caches: it takes the smallest
# ones where the scale is negative.
_CIFAR10_STAGES = (
    Stage(tile=2, sums=True),
    Stage(tile=2, relu_before=True, sums=True),
    Stage(tile=2, relu_before=True, relu_after=True, sums=True, max_after=True),
    Stage(sums=True),
    Stage(relu_before=True, average_before=True, sums=True, max_after=True),
)


def cifar10_stages(
    variables: Any, images: jax.Array, *, momentum: float, epsilon: float
) -> tuple[jax.Array, dict[str, Any]]:
    """Computes the features of `Cifar10CNN` in training.

    Args:
        variables: of the network; `params` and `batch_stats` with all convolutions and BatchNorms.
        images: float32[B, 32, 32, 3].
        momentum: share of the old running statistics in the new ones.
        epsilon: added to the variance.

    Returns:
        float32[B, 1024], and the new running statistics, as in `batch_stats`.
    """
    params = variables["params"]
    x = blocks.to_slices(images, tile=2)
    scale: Any = None
    shift: Any = None
    batch_stats = {}
    for number, stage in enumerate(_CIFAR10_STAGES, start=1):
        conv, norm = params[f"conv{number}"], params[f"batch_norm{number}"]
        sign = jnp.where(norm["scale"] < 0, -1.0, 1.0) if stage.max_after else None
        x, (total, squares) = stage(x, conv["kernel"], conv["bias"], scale, shift, sign)
        values = x.size // x.shape[3] * (4 if stage.max_after else 1)  # per channel before pooling
        mean = total / values
        var = jnp.maximum(squares / values - mean**2, 0.0)
        scale = norm["scale"] * lax.rsqrt(var + epsilon)
        shift = norm["bias"] - mean * scale
        old = variables["batch_stats"][f"batch_norm{number}"]
        batch_stats[f"batch_norm{number}"] = {
            "mean": momentum * old["mean"] + (1 - momentum) * mean,
            "var": momentum * old["var"] + (1 - momentum) * var,
        }
    return blocks.to_features(nn.relu(blocks.normalize(x, scale, shift))), batch_stats
