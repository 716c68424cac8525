"""The two networks as lists of layers, in the order of `jaxcnn.networks.cnn`, as JSON."""

from typing import Any

from jaxcnn.errors import UserError
from jaxcnn.networks.cnn import BATCH_NORM_EPSILON, BATCH_NORM_MOMENTUM, Cifar10CNN, MnistCNN
from jaxcnn.train.trained import Trained


def describe(network: Trained) -> dict[str, Any]:
    """Returns the layers of a network in evaluation mode and in training.

    Args:
        network: as trained.

    Returns:
        `image`, (H, W, C); `initialization`, see `jaxcnn.networks.cnn`; and `layers`, each with its
        `kind`, its `name`, which is Flax's if it has weights, and its settings.

    Raises:
        UserError: the network is one given in code.
    """
    if not isinstance(network.model, MnistCNN | Cifar10CNN):
        raise UserError(
            f"a page knows MnistCNN and Cifar10CNN, not {type(network.model).__name__}: give a run "
            "of one of the two networks"
        )
    layers = _mnist() if isinstance(network.model, MnistCNN) else _cifar10()
    recipe = network.recipe
    normalize: dict[str, Any] = {
        "kind": "normalize",
        "mean": list(recipe.mean),
        "std": list(recipe.std),
    }
    head: list[dict[str, Any]] = [
        {"kind": "flatten"},
        {"kind": "dense", "name": "fc1", "features": 512},
        {"kind": "relu", "name": "relu_fc1"},
        {"kind": "dropout", "rate": recipe.dropout},
        {"kind": "dense", "name": "fc2", "features": len(network.class_names)},
    ]
    return {
        "image": list(network.image_shape),
        "initialization": recipe.initialization,
        # A kind that is there once is its name, too.
        "layers": [{"name": layer["kind"], **layer} for layer in (normalize, *layers, *head)],
    }


def _mnist() -> list[dict[str, Any]]:
    """The convolutional layers of `MnistCNN`."""
    return [
        _conv(1, 4, kernel_size=5),
        _relu(1),
        _pool("max_pool", 1),
        _conv(2, 8, kernel_size=5),
        _relu(2),
        _pool("max_pool", 2),
    ]


def _cifar10() -> list[dict[str, Any]]:
    """The convolutional layers of `Cifar10CNN`; in the third, relu comes before BatchNorm."""
    layers: list[dict[str, Any]] = []
    for number, features in enumerate((4, 8, 16, 32, 64), start=1):
        after = [_batch_norm(number), _relu(number)]
        layers += [_conv(number, features, kernel_size=3), *(after[::-1] if number == 3 else after)]
        if number > 2:
            layers.append(_pool("avg_pool" if number == 4 else "max_pool", number))
    return layers


def _conv(number: int, features: int, kernel_size: int) -> dict[str, Any]:
    settings = {"features": features, "kernel_size": kernel_size}
    return {"kind": "conv", "name": f"conv{number}", **settings}


def _batch_norm(number: int) -> dict[str, Any]:
    settings: dict[str, Any] = {"epsilon": BATCH_NORM_EPSILON, "momentum": BATCH_NORM_MOMENTUM}
    return {"kind": "batch_norm", "name": f"batch_norm{number}", **settings}


def _relu(number: int) -> dict[str, Any]:
    return {"kind": "relu", "name": f"relu{number}"}


def _pool(kind: str, number: int) -> dict[str, Any]:
    return {"kind": kind, "name": f"pool{number}"}
