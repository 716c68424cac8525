"""The convolutional layers of both networks as CPU computes them, stage by stage.

A network hands its stages to its method `features` with the decorator `in_stages`. They compute
what the method computes, up to rounding.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.networks.cpu import library
from jaxcnn.networks.cpu.stages import Stage

# (network, float[B, H, W, C], train) -> float[B, F].
_Features = Callable[[Any, jax.Array, bool], jax.Array]


def in_stages(stages: Callable[..., Any], **options: Any) -> Callable[[_Features], _Features]:
    """Decorates the method `features` of a network: on CPU, kernels compute it in stages.

    Initialization, other platforms, other dtypes than float32, networks with `staged=False`, calls
    that ask for intermediate values, and machines without kernels keep the method as it is written.

    Args:
        stages: (variables, float32[B, H, W, C], train) -> float32[B, F] and the new running
            statistics.
        **options: keyword arguments of `stages`.

    Returns:
        A decorator for `features(network, images, train)`.
    """

    def decorate(features: _Features) -> _Features:
        @functools.wraps(features)
        def staged_on_cpu(network: nn.Module, images: jax.Array, train: bool) -> jax.Array:
            known = isinstance(images.shape[0], int) and images.shape[0] > 0  # else symbolic
            staged = network.staged and network.dtype == jnp.float32 and known
            watched = network.is_initializing() or network.is_mutable_collection("intermediates")
            if not staged or watched or not library.in_use():
                return features(network, images, train)
            compute = functools.partial(stages, train=train, **options)
            return _platform_features(network, compute, images, train)

        return staged_on_cpu

    return decorate


def _platform_features(
    network: nn.Module, stages: Callable[..., Any], images: jax.Array, train: bool
) -> jax.Array:
    """Computes the features and updates the running statistics as is fastest on the platform."""

    def layers(variables: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        # Detached from the network, which a branch must not change.
        x, changed = network.clone(parent=None, staged=False).apply(
            variables, images, train=train, method="features", mutable=["batch_stats"]
        )
        return x, changed.get("batch_stats", {}) if train else {}

    variables = {name: dict(network.variables[name]) for name in network.variables}
    x: jax.Array
    x, batch_stats = lax.platform_dependent(
        variables, images.astype(jnp.float32), cpu=stages, default=layers
    )
    for layer, stats in batch_stats.items():
        network.put_variable("batch_stats", layer, stats)
    return x


_MNIST_STAGES = (
    Stage(relu_after=True, max_after=True, sliced_out=True),
    Stage(relu_after=True, max_after=True, sliced_in=True),
)


def mnist_stages(
    variables: Any, images: jax.Array, *, train: bool
) -> tuple[jax.Array, dict[str, Any]]:
    """Computes the features of `MnistCNN`.

    Args:
        variables: of the network; `params` with conv1 and conv2.
        images: float32[B, H, W, C].
        train: training, which is the same here.

    Returns:
        float32[B, H / 4 * W / 4 * 8], and no running statistics.
    """
    x = images
    for number, stage in enumerate(_MNIST_STAGES, start=1):
        conv = variables["params"][f"conv{number}"]
        x, _ = stage(x, conv["kernel"], conv["bias"])
    return x.reshape(x.shape[0], -1), {}


# BatchNorm normalises in the stage after its convolution, which takes its scale and shift. A max
# pool comes before BatchNorm here, while the values are still in the caches: it takes the smallest
# ones where the scale is negative.
_CIFAR10_STAGES = (
    Stage(sums=True, sliced_out=True),
    Stage(relu_before=True, sums=True, sliced_in=True, sliced_out=True),
    Stage(
        relu_before=True,
        relu_after=True,
        sums=True,
        max_after=True,
        sliced_in=True,
        sliced_out=True,
    ),
    Stage(sums=True, sliced_in=True, sliced_out=True),
    Stage(relu_before=True, average_before=True, sums=True, max_after=True, sliced_in=True),
)


def cifar10_stages(
    variables: Any, images: jax.Array, *, train: bool, momentum: float, epsilon: float
) -> tuple[jax.Array, dict[str, Any]]:
    """Computes the features of `Cifar10CNN`.

    Args:
        variables: of the network; `params` and `batch_stats` with all convolutions and BatchNorms.
        images: float32[B, H, W, C].
        train: normalise with the statistics of the batch.
        momentum: share of the old running statistics in the new ones.
        epsilon: added to the variance.

    Returns:
        float32[B, H / 8 * W / 8 * 64], and in training the new running statistics, as in
        `batch_stats`.
    """
    params = variables["params"]
    x: Any = images
    scale: Any = None
    shift: Any = None
    batch_stats = {}
    for number, stage in enumerate(_CIFAR10_STAGES, start=1):
        name = f"batch_norm{number}"
        conv, norm, old = params[f"conv{number}"], params[name], variables["batch_stats"][name]
        sign = jnp.where(norm["scale"] < 0, -1.0, 1.0) if stage.max_after else None
        used = stage if train else dataclasses.replace(stage, sums=False)
        x, sums = used(x, conv["kernel"], conv["bias"], scale, shift, sign)
        mean, var = old["mean"], old["var"]
        if train:
            values = x.size // x.shape[3] * (4 if stage.max_after else 1)  # before pooling
            mean = sums[0] / values
            var = jnp.maximum(sums[1] / values - mean**2, 0.0)
            batch_stats[name] = {
                "mean": momentum * old["mean"] + (1 - momentum) * mean,
                "var": momentum * old["var"] + (1 - momentum) * var,
            }
        scale = norm["scale"] * lax.rsqrt(var + epsilon)
        shift = norm["bias"] - mean * scale
    x = nn.relu(x * scale.reshape(1, 1, 1, -1) + shift.reshape(1, 1, 1, -1))
    return x.reshape(x.shape[0], -1), batch_stats
