"""The two networks as most people would write them in Flax, with which jaxcnn is compared.

Images are float32[B, H, W, C].
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp


class MnistNet(nn.Module):
    """The MNIST network: float32[B, 28, 28, 1] -> logits float32[B, 10]."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits."""
        conv, dense = (functools.partial(layer, dtype=self.dtype) for layer in (nn.Conv, nn.Dense))
        for features in (4, 8):
            x = nn.relu(conv(features, (5, 5))(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(dense(512)(x.reshape(x.shape[0], -1)))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return dense(10)(x)


class Cifar10Net(nn.Module):
    """The CIFAR-10 network: float32[B, 32, 32, 3] -> logits float32[B, 10]."""

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits."""
        conv, dense = (functools.partial(layer, dtype=self.dtype) for layer in (nn.Conv, nn.Dense))

        def norm(x: jax.Array) -> jax.Array:
            return nn.BatchNorm(use_running_average=not train, momentum=0.9, dtype=self.dtype)(x)

        x = nn.relu(norm(conv(4, (3, 3))(x)))
        x = nn.relu(norm(conv(8, (3, 3))(x)))
        x = nn.max_pool(norm(nn.relu(conv(16, (3, 3))(x))), (2, 2), (2, 2))
        x = nn.avg_pool(nn.relu(norm(conv(32, (3, 3))(x))), (2, 2), (2, 2))
        x = nn.max_pool(nn.relu(norm(conv(64, (3, 3))(x))), (2, 2), (2, 2))
        x = nn.relu(dense(512)(x.reshape(x.shape[0], -1)))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return dense(10)(x)


NETWORKS = {"mnist": MnistNet, "cifar10": Cifar10Net}
