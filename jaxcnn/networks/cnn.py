"""The two networks, as Flax Linen modules.

`model.apply(variables, images, train=...)` maps float[B, H, W, C] images to float32[B, 10] logits.
Training needs `rngs={"dropout": key}`, and for `Cifar10CNN` also `mutable=["batch_stats"]`.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.networks.cpu import blocks
from jaxcnn.networks.cpu.convolution import conv_general_dilated
from jaxcnn.networks.cpu.pooling import avg_pool, max_pool
from jaxcnn.networks.cpu.stages import Stage
from jaxcnn.recipes.recipe import InitializationName

FEATURE_MAPS = "feature_maps"

BATCH_NORM_EPSILON = 1e-5
# BatchNorm's, in Flax's sense: PyTorch calls 1 - 0.9 = 0.1 its momentum.
_MOMENTUM = 0.9


class _CNN(nn.Module):
    """What both networks share.

    Attributes:
        dropout_rate: share of the hidden units that are dropped in training.
        initialization: "flax" draws kernels from a truncated normal (LeCun), with biases of zero;
            "pytorch" draws both uniformly in +-1 / sqrt(fan_in), as PyTorch's layers do by default.
        staged: train in `jaxcnn.networks.cpu.stages` on CPU, several times as fast and with the
            same result but for rounding. It has no forward-mode derivative: set False to use
            `jax.jvp` on it.
        dtype: of the computation; parameters, running statistics and logits are float32 always.
    """

    dropout_rate: float = 0.5
    initialization: InitializationName = "flax"
    staged: bool = True
    dtype: Any = jnp.float32

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Maps float[B, H, W, C] to float32[B, 10] logits."""
        staged = self.staged and self.dtype == jnp.float32
        if train and staged and not self.is_initializing():
            return self._head(self._train_features(images), train)
        return self._head(self._features(images, train), train)

    def _features(self, images: jax.Array, train: bool) -> jax.Array:
        """The convolutional layers: float[B, H, W, C] -> float[B, F]."""
        raise NotImplementedError

    @staticmethod
    def _stages(variables: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        """The same in training, in stages; with the new running statistics."""
        raise NotImplementedError

    def _train_features(self, images: jax.Array) -> jax.Array:
        def in_layers(variables: Any, images: jax.Array) -> tuple[jax.Array, Any]:
            features, changed = self.clone(parent=None).apply(
                variables, images, True, method="_features", mutable=["batch_stats"]
            )
            return features, changed.get("batch_stats", {})

        features: jax.Array
        variables = {name: dict(self.variables[name]) for name in self.variables}
        features, batch_stats = lax.platform_dependent(
            variables, images, cpu=self._stages, default=in_layers
        )
        for layer, stats in batch_stats.items():
            self.put_variable("batch_stats", layer, stats)
        return features

    def _name_dense_layers(self, features_in: int) -> None:
        self.fc1 = self._dense(features_in, 512)
        self.fc2 = self._dense(512, 10)
        self.dropout = nn.Dropout(self.dropout_rate)

    def _head(self, x: jax.Array, train: bool) -> jax.Array:
        """The dense layers: float[B, F] -> float32[B, 10]."""
        x = nn.relu(self.fc1(x))
        x = self.dropout(x, deterministic=not train)
        return self.fc2(x).astype(jnp.float32)

    def _expose(self, layer: int, maps: jax.Array) -> None:
        """Lets `feature_maps` see a layer's output; costs nothing where nobody asks."""
        if not self.is_initializing():
            self.sow(FEATURE_MAPS, f"after_conv{layer}", maps)

    def _conv(self, features_in: int, features: int, kernel_size: int) -> nn.Conv:
        return nn.Conv(
            features,
            (kernel_size, kernel_size),
            padding=kernel_size // 2,
            conv_general_dilated=conv_general_dilated,
            dtype=self.dtype,
            **self._initializers(fan_in=kernel_size**2 * features_in),
        )

    def _dense(self, features_in: int, features: int) -> nn.Dense:
        return nn.Dense(features, dtype=self.dtype, **self._initializers(features_in))

    def _initializers(self, fan_in: int) -> dict[str, Any]:
        if self.initialization == "flax":
            return {}
        bound = 1 / math.sqrt(fan_in)

        def uniform(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return {"kernel_init": uniform, "bias_init": uniform}


class MnistCNN(_CNN):
    """The network for 28 x 28 grey images: 207,258 parameters.

    conv 5x5, 1 -> 4; relu; max pool; conv 5x5, 4 -> 8; relu; max pool; dense 392 -> 512; relu;
    dropout; dense 512 -> 10.

    Attributes:
        dropout_rate: share of the hidden units that are dropped in training.
        initialization: "flax" draws kernels from a truncated normal (LeCun), with biases of zero;
            "pytorch" draws both uniformly in +-1 / sqrt(fan_in), as PyTorch's layers do by default.
        staged: train in stages on CPU, see `_CNN`.
        dtype: of the computation, see `_CNN`.
    """

    def setup(self) -> None:
        """Names the layers."""
        self.conv1 = self._conv(1, 4, 5)
        self.conv2 = self._conv(4, 8, 5)
        self._name_dense_layers(392)

    def _features(self, images: jax.Array, train: bool) -> jax.Array:
        x = images
        for layer, conv in enumerate((self.conv1, self.conv2), start=1):
            x = nn.relu(conv(x))
            self._expose(layer, x)
            x = max_pool(x)
        return x.reshape(x.shape[0], -1)

    @staticmethod
    def _stages(variables: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        stage = Stage(tile=2, relu_after=True, max_after=True)
        x = blocks.to_slices(images, tile=2)
        for name in ("conv1", "conv2"):
            layer = variables["params"][name]
            x, _ = stage(x, layer["kernel"], layer["bias"])
        return blocks.to_features(x), {}


class Cifar10CNN(_CNN):
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
        staged: train in stages on CPU, see `_CNN`.
        dtype: of the computation, see `_CNN`.
    """

    def setup(self) -> None:
        """Names the layers."""
        widths = (3, 4, 8, 16, 32, 64)
        for layer in range(1, 6):
            setattr(self, f"conv{layer}", self._conv(widths[layer - 1], widths[layer], 3))
            norm = nn.BatchNorm(momentum=_MOMENTUM, epsilon=BATCH_NORM_EPSILON, dtype=self.dtype)
            setattr(self, f"batch_norm{layer}", norm)
        self._name_dense_layers(1024)

    def _features(self, images: jax.Array, train: bool) -> jax.Array:
        def block(x: jax.Array, layer: int, relu_first: bool = False) -> jax.Array:
            conv, norm = getattr(self, f"conv{layer}"), getattr(self, f"batch_norm{layer}")
            x = conv(x)
            x = nn.relu(x) if relu_first else x
            x = norm(x, use_running_average=not train)
            x = x if relu_first else nn.relu(x)
            self._expose(layer, x)
            return x

        x = block(block(images, 1), 2)
        x = max_pool(block(x, 3, relu_first=True))
        x = avg_pool(block(x, 4))
        x = max_pool(block(x, 5))
        return x.reshape(x.shape[0], -1)

    @staticmethod
    def _stages(variables: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        # Max pooling comes last in its block, but is done before normalisation, while the values
        # are still in the caches: it takes the smallest ones where the scale is negative.
        layers = (
            Stage(tile=2, sums=True),
            Stage(tile=2, relu_before=True, sums=True),
            Stage(tile=2, relu_before=True, relu_after=True, sums=True, max_after=True),
            Stage(sums=True),
            Stage(relu_before=True, average_before=True, sums=True, max_after=True),
        )
        x = blocks.to_slices(images, tile=2)
        scale: Any = None
        shift: Any = None
        batch_stats = {}
        for layer, stage in enumerate(layers, start=1):
            conv, norm = (variables["params"][f"{kind}{layer}"] for kind in ("conv", "batch_norm"))
            sign = jnp.where(norm["scale"] < 0, -1.0, 1.0) if stage.max_after else None
            x, (total, squares) = stage(x, conv["kernel"], conv["bias"], scale, shift, sign)
            values = x.size // x.shape[3] * (4 if stage.max_after else 1)  # before pooling
            mean = total / values
            var = jnp.maximum(squares / values - mean**2, 0.0)
            scale = norm["scale"] * lax.rsqrt(var + BATCH_NORM_EPSILON)
            shift = norm["bias"] - mean * scale
            old = variables["batch_stats"][f"batch_norm{layer}"]
            batch_stats[f"batch_norm{layer}"] = {
                "mean": _MOMENTUM * old["mean"] + (1 - _MOMENTUM) * mean,
                "var": _MOMENTUM * old["var"] + (1 - _MOMENTUM) * var,
            }
        return blocks.to_features(nn.relu(blocks.normalize(x, scale, shift))), batch_stats
