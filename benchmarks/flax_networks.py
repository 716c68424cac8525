"""The two networks as most people would write them in Flax, with which jaxcnn is compared.

Images are float32[B, H, W, C].
"""

import flax.linen as nn
import jax


class MnistNet(nn.Module):
    """The MNIST network: float32[B, 28, 28, 1] -> logits float32[B, 10]."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits."""
        for features in (4, 8):
            x = nn.relu(nn.Conv(features, (5, 5))(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Dense(512)(x.reshape(x.shape[0], -1)))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(10)(x)


class Cifar10Net(nn.Module):
    """The CIFAR-10 network: float32[B, 32, 32, 3] -> logits float32[B, 10]."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits."""

        def norm(x: jax.Array) -> jax.Array:
            return nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)

        x = nn.relu(norm(nn.Conv(4, (3, 3))(x)))
        x = nn.relu(norm(nn.Conv(8, (3, 3))(x)))
        x = nn.max_pool(norm(nn.relu(nn.Conv(16, (3, 3))(x))), (2, 2), (2, 2))
        x = nn.avg_pool(nn.relu(norm(nn.Conv(32, (3, 3))(x))), (2, 2), (2, 2))
        x = nn.max_pool(nn.relu(norm(nn.Conv(64, (3, 3))(x))), (2, 2), (2, 2))
        x = nn.relu(nn.Dense(512)(x.reshape(x.shape[0], -1)))
        x = nn.Dropout(0.5, deterministic=not train)(x)
        return nn.Dense(10)(x)


NETWORKS = {"mnist": MnistNet, "cifar10": Cifar10Net}
