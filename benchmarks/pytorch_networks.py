"""The two networks as PyTorch modules, with which jaxcnn is compared.

Attribute names are those of the original implementation. Images are float32[B, C, H, W].
"""

import torch
from torch import nn
from torch.nn import functional


class MnistNet(nn.Module):
    """The MNIST network: float32[B, 1, 28, 28] -> logits float32[B, 10]."""

    def __init__(self, dropout_rate: float = 0.5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 5, padding=2)
        self.conv2 = nn.Conv2d(4, 8, 5, padding=2)
        self.fc1 = nn.Linear(392, 512)
        self.fc2 = nn.Linear(512, 10)
        self.dropout = nn.Dropout(dropout_rate)

    def feature_maps(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the outputs of both convolutions, after ReLU and before pooling."""
        first = functional.relu(self.conv1(images))
        second = functional.relu(self.conv2(functional.max_pool2d(first, 2)))
        return first, second

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the logits."""
        _, maps = self.feature_maps(images)
        x = functional.max_pool2d(maps, 2).flatten(1)
        x = self.dropout(functional.relu(self.fc1(x)))
        return self.fc2(x)


class Cifar10Net(nn.Module):
    """The CIFAR-10 network: float32[B, 3, 32, 32] -> logits float32[B, 10]."""

    def __init__(self, dropout_rate: float = 0.5) -> None:
        super().__init__()
        widths = (3, 4, 8, 16, 32, 64)
        for layer in range(1, 6):
            convolution = nn.Conv2d(widths[layer - 1], widths[layer], 3, padding=1)
            setattr(self, f"conv{layer}", convolution)
            setattr(self, f"batch_norm{layer}", nn.BatchNorm2d(widths[layer]))
        self.fc1 = nn.Linear(1024, 512)
        self.fc2 = nn.Linear(512, 10)
        self.dropout = nn.Dropout(dropout_rate)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Returns the logits."""
        x = functional.relu(self.batch_norm1(self.conv1(images)))
        x = functional.relu(self.batch_norm2(self.conv2(x)))
        x = functional.max_pool2d(self.batch_norm3(functional.relu(self.conv3(x))), 2)
        x = functional.avg_pool2d(functional.relu(self.batch_norm4(self.conv4(x))), 2)
        x = functional.max_pool2d(functional.relu(self.batch_norm5(self.conv5(x))), 2)
        x = self.dropout(functional.relu(self.fc1(x.flatten(1))))
        return self.fc2(x)


NETWORKS: dict[str, type[MnistNet] | type[Cifar10Net]] = {
    "mnist": MnistNet,
    "cifar10": Cifar10Net,
}
