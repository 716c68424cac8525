"""The two networks, as Flax Linen modules.

`model.apply(variables, images, train=...)` maps float[B, H, W, C] images to float32[B, classes]
logits.
Training needs `rngs={"dropout": key}`, and for `Cifar10CNN` also `mutable=["batch_stats"]`.
"""

import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxcnn.errors import UserError
from jaxcnn.networks.cpu.convolution import conv_general_dilated
from jaxcnn.networks.cpu.features import cifar10_stages, in_stages, mnist_stages
from jaxcnn.networks.cpu.pooling import avg_pool, max_pool
from jaxcnn.recipes.recipe import InitializationName

BATCH_NORM_EPSILON = 1e-5
# In Flax's sense: PyTorch calls 1 - 0.9 = 0.1 its momentum.
BATCH_NORM_MOMENTUM = 0.9


class CNN(nn.Module):
    """What both networks share: their attributes, and how a layer is made.

    Attributes:
        classes: number of classes.
        image_shape: of one image, (H, W, C). Height and width are multiples of what the pooling
            divides them by, else initialization raises `UserError`.
        dropout_rate: share of the hidden units that are dropped in training.
        initialization: "flax" samples kernels from a truncated normal distribution (LeCun), with
            biases of zero; "pytorch" samples both uniformly from +-1 / sqrt(fan_in), as PyTorch's
            layers do by default.
        staged: on CPU, compute the convolutional layers in the stages of `jaxcnn.networks.cpu`:
            several times as fast, with the same results up to rounding. Stages have no forward-mode
            derivative: set False to use `jax.jvp`. Ignored unless `dtype` is float32.
        dtype: of the computation. Parameters, running statistics and logits are always float32.
    """

    classes: int = 10
    image_shape: tuple[int, int, int] = (0, 0, 0)  # each network has its own
    dropout_rate: float = 0.5
    initialization: InitializationName = "flax"
    staged: bool = True
    dtype: Any = jnp.float32

    def _pooled(self, factor: int) -> int:
        """Returns the number of pixels that are left where height and width are divided."""
        height, width, channels = self.image_shape
        if height < 1 or width < 1 or height % factor or width % factor:
            raise UserError(
                f"the images are {height} x {width} x {channels}, and {type(self).__name__} halves "
                f"height and width {factor.bit_length() - 1} times: give images whose height and "
                f"width are multiples of {factor}"
            )
        return (height // factor) * (width // factor)

    def _conv(self, features_in: int, features: int, kernel_size: int) -> nn.Conv:
        return nn.Conv(
            features,
            (kernel_size, kernel_size),
            padding=kernel_size // 2,
            # Of XLA's operations alone: where the network is not staged, it has all derivatives.
            conv_general_dilated=functools.partial(conv_general_dilated, kernels=False),
            dtype=self.dtype,
            **self._initializers(fan_in=kernel_size**2 * features_in),
        )

    def _batch_norm(self) -> nn.BatchNorm:
        return nn.BatchNorm(
            momentum=BATCH_NORM_MOMENTUM, epsilon=BATCH_NORM_EPSILON, dtype=self.dtype
        )

    def _dense(self, features_in: int, features: int) -> nn.Dense:
        return nn.Dense(features, dtype=self.dtype, **self._initializers(fan_in=features_in))

    def _initializers(self, fan_in: int) -> dict[str, Any]:
        if self.initialization == "flax":
            return {}
        bound = 1 / math.sqrt(fan_in)

        def uniform(key: jax.Array, shape: Any, dtype: Any = jnp.float32) -> jax.Array:
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return {"kernel_init": uniform, "bias_init": uniform}


class MnistCNN(CNN):
    """The network for MNIST: 207,258 parameters. Its attributes are those of `CNN`.

    For 28 x 28 grey images of 10 classes: conv 5x5, 1 -> 4; relu; max pool; conv 5x5, 4 -> 8; relu;
    max pool; dense 392 -> 512; relu; dropout; dense 512 -> 10. Height and width have to be
    multiples of 4.
    """

    image_shape: tuple[int, int, int] = (28, 28, 1)

    def setup(self) -> None:
        """Makes the layers."""
        self.conv1 = self._conv(self.image_shape[2], 4, kernel_size=5)
        self.conv2 = self._conv(4, 8, kernel_size=5)
        self.fc1 = self._dense(self._pooled(4) * 8, 512)
        self.dropout = nn.Dropout(self.dropout_rate)
        self.fc2 = self._dense(512, self.classes)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Classifies images.

        Args:
            images: float[B, H, W, C], normalised.
            train: drop hidden units.

        Returns:
            float32[B, classes], the logits.
        """
        x = self.features(images, train)
        x = nn.relu(self.fc1(x))
        x = self.dropout(x, deterministic=not train)
        return self.fc2(x).astype(jnp.float32)

    @in_stages(mnist_stages)
    def features(self, images: jax.Array, train: bool) -> jax.Array:
        """Computes the convolutional layers.

        Args:
            images: float[B, H, W, C], normalised.
            train: training, which computes the same here.

        Returns:
            float[B, H / 4 * W / 4 * 8].
        """
        x = nn.relu(self.conv1(images))
        self.sow("intermediates", "after_conv1", x)
        x = max_pool(x)
        x = nn.relu(self.conv2(x))
        self.sow("intermediates", "after_conv2", x)
        x = max_pool(x)
        return x.reshape(x.shape[0], -1)


class Cifar10CNN(CNN):
    """The network for CIFAR-10: 554,890 parameters. Its attributes are those of `CNN`.

    For 32 x 32 colour images of 10 classes: five convolutions 3x3 with 4, 8, 16, 32 and 64
    features, each with BatchNorm and relu (in the third one relu comes first, as in the original);
    max pool after the third, average pool after the fourth, max pool after the fifth; dense 1024 ->
    512; relu; dropout; dense 512 -> 10. Height and width have to be multiples of 8.

    BatchNorm keeps the biased variance in its running statistics, where PyTorch keeps the unbiased
    one, which is n / (n - 1) times as large for n values per channel.
    """

    image_shape: tuple[int, int, int] = (32, 32, 3)

    def setup(self) -> None:
        """Makes the layers."""
        self.conv1 = self._conv(self.image_shape[2], 4, kernel_size=3)
        self.batch_norm1 = self._batch_norm()
        self.conv2 = self._conv(4, 8, kernel_size=3)
        self.batch_norm2 = self._batch_norm()
        self.conv3 = self._conv(8, 16, kernel_size=3)
        self.batch_norm3 = self._batch_norm()
        self.conv4 = self._conv(16, 32, kernel_size=3)
        self.batch_norm4 = self._batch_norm()
        self.conv5 = self._conv(32, 64, kernel_size=3)
        self.batch_norm5 = self._batch_norm()
        self.fc1 = self._dense(self._pooled(8) * 64, 512)
        self.dropout = nn.Dropout(self.dropout_rate)
        self.fc2 = self._dense(512, self.classes)

    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        """Classifies images.

        Args:
            images: float[B, H, W, C], normalised.
            train: drop hidden units, and normalise with the statistics of the batch.

        Returns:
            float32[B, classes], the logits.
        """
        x = self.features(images, train)
        x = nn.relu(self.fc1(x))
        x = self.dropout(x, deterministic=not train)
        return self.fc2(x).astype(jnp.float32)

    @in_stages(cifar10_stages, momentum=BATCH_NORM_MOMENTUM, epsilon=BATCH_NORM_EPSILON)
    def features(self, images: jax.Array, train: bool) -> jax.Array:
        """Computes the convolutional layers.

        Args:
            images: float[B, H, W, C], normalised.
            train: normalise with the statistics of the batch and update the running ones.

        Returns:
            float[B, H / 8 * W / 8 * 64].
        """
        running = not train  # evaluation normalises with the running statistics
        x = nn.relu(self.batch_norm1(self.conv1(images), use_running_average=running))
        self.sow("intermediates", "after_conv1", x)
        x = nn.relu(self.batch_norm2(self.conv2(x), use_running_average=running))
        self.sow("intermediates", "after_conv2", x)
        x = self.batch_norm3(nn.relu(self.conv3(x)), use_running_average=running)
        self.sow("intermediates", "after_conv3", x)
        x = max_pool(x)
        x = nn.relu(self.batch_norm4(self.conv4(x), use_running_average=running))
        self.sow("intermediates", "after_conv4", x)
        x = avg_pool(x)
        x = nn.relu(self.batch_norm5(self.conv5(x), use_running_average=running))
        self.sow("intermediates", "after_conv5", x)
        x = max_pool(x)
        return x.reshape(x.shape[0], -1)
