"""Networks beside the two built-in ones, as most people would write them in Flax and in PyTorch.

Images are 32 x 32 x 3: float32[B, H, W, C] in Flax, float32[B, C, H, W] in PyTorch.
"""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen
import jax
import torch
from torch import nn
from torch.nn import functional


class FlaxPlain(flax.linen.Module):
    """3 x 3 convolutions, each with GroupNorm, relu and max pooling."""

    features: Sequence[int]

    @flax.linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits, float32[B, 10]."""
        for features in self.features:
            x = flax.linen.Conv(features, (3, 3))(x)
            x = flax.linen.relu(flax.linen.GroupNorm(8)(x))
            x = flax.linen.max_pool(x, (2, 2), (2, 2))
        return flax.linen.Dense(10)(x.reshape(len(x), -1))


class FlaxResNet8(flax.linen.Module):
    """Three residual blocks with 16, 32 and 64 features and BatchNorm (arXiv 1512.03385)."""

    @flax.linen.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Returns the logits, float32[B, 10]."""
        conv = functools.partial(flax.linen.Conv, use_bias=False)
        norm = functools.partial(flax.linen.BatchNorm, use_running_average=not train, momentum=0.9)
        x = flax.linen.relu(norm()(conv(16, (3, 3))(x)))
        for features, stride in ((16, 1), (32, 2), (64, 2)):
            y = flax.linen.relu(norm()(conv(features, (3, 3), stride)(x)))
            y = norm()(conv(features, (3, 3))(y))
            if x.shape != y.shape:
                x = norm()(conv(features, (1, 1), stride)(x))
            x = flax.linen.relu(x + y)
        return flax.linen.Dense(10)(x.mean((1, 2)))


class TorchPlain(nn.Sequential):
    """The network of `FlaxPlain`."""

    def __init__(self, features: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for before, after in zip((3, *features), features, strict=False):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(8, after)]
            layers += [nn.ReLU(), nn.MaxPool2d(2)]
        size = (32 >> len(features)) ** 2 * features[-1]
        super().__init__(*layers, nn.Flatten(), nn.Linear(size, 10))


class _TorchBlock(nn.Module):
    """A residual block."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(before, after, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.Conv2d(after, after, 3, 1, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        project = nn.Conv2d(before, after, 1, stride, bias=False)
        same = before == after
        self.shortcut = nn.Identity() if same else nn.Sequential(project, nn.BatchNorm2d(after))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns the block's output."""
        return functional.relu(self.residual(x) + self.shortcut(x))


class TorchResNet8(nn.Sequential):
    """The network of `FlaxResNet8`."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            _TorchBlock(16, 16, 1),
            _TorchBlock(16, 32, 2),
            _TorchBlock(32, 64, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )


# By name: the network in Flax, and what makes it in PyTorch.
NETWORKS: dict[str, tuple[flax.linen.Module, Any]] = {
    "plain-16-32": (FlaxPlain((16, 32)), functools.partial(TorchPlain, (16, 32))),
    "plain-64-128": (FlaxPlain((64, 128)), functools.partial(TorchPlain, (64, 128))),
    "resnet8": (FlaxResNet8(), TorchResNet8),
}
