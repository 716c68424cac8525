"""Recipes: every hyperparameter of a training run, by network and name.

This module imports nothing heavy, so that a command line can show its defaults at once.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from jaxcnn import catalog

NetworkName = Literal["mnist", "cifar10"]
RecipeName = Literal["reference", "fast", "best"]
ScheduleName = Literal[
    "constant", "cosine", "linear", "trapezoid", "exponential", "steps", "onecycle"
]
AugmentName = Literal["none", "shift", "flip-shift"]
InitializationName = Literal["flax", "pytorch"]


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a training run.

    Attributes:
        name: of the recipe.
        network: "mnist" or "cifar10".
        epochs: passes over the training images.
        batch_size: images a step.
        optimizer: of `optax` or `optax.contrib` by name, or your own as "module:factory".
        optimizer_args: further arguments of the optimizer, by name.
        learning_rate: per step, at its peak.
        weight_decay: of kernels only; biases and BatchNorm are left alone.
        momentum: of sgd and rmsprop; the others ignore it.
        nesterov: whether the momentum of sgd looks ahead.
        schedule: how the learning rate falls, see `jaxcnn.schedules`, or "constant".
        warmup: share of the steps in which the learning rate rises from zero.
        clip: the largest norm that the gradient may have; longer ones are scaled. 0 for any.
        ema: decay a step of the average of the parameters that is evaluated. 0 for no average.
        dropout: share of the hidden units dropped.
        augment: changes to the training images, see `jaxcnn.data.augment`.
        initialization: of the parameters, see `jaxcnn.models`.
        mean: subtracted from pixels in 0..1; one number or one a channel.
        std: what the difference is divided by.

    Raises:
        ValueError: a field is out of range; the message names it and says what it takes.
    """

    name: str
    network: NetworkName
    epochs: int
    batch_size: int
    optimizer: str
    learning_rate: float
    optimizer_args: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    weight_decay: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False
    schedule: ScheduleName = "constant"
    warmup: float = 0.0
    clip: float = 0.0
    ema: float = 0.0
    dropout: float = 0.5
    augment: AugmentName = "none"
    initialization: InitializationName = "flax"
    mean: tuple[float, ...] = (0.1307,)
    std: tuple[float, ...] = (0.3081,)

    def __post_init__(self) -> None:
        for field, kind in (
            ("network", NetworkName),
            ("schedule", ScheduleName),
            ("augment", AugmentName),
            ("initialization", InitializationName),
        ):
            _check(self, field, getattr(self, field) in get_args(kind), _one_of(get_args(kind)))
        catalog.get(self.optimizer)
        for field in ("epochs", "batch_size"):
            value = getattr(self, field)
            # The step counter is an int32.
            whole = isinstance(value, int) and not isinstance(value, bool)
            _check(self, field, whole and 1 <= value <= 10**6, "a whole number from 1 to 1000000")
        finite = math.isfinite(self.learning_rate) and self.learning_rate > 0
        _check(self, "learning_rate", finite, "a finite number above 0")
        for field in ("weight_decay", "clip"):
            finite = math.isfinite(getattr(self, field)) and getattr(self, field) >= 0
            _check(self, field, finite, "a finite number, 0 or more")
        for field in ("momentum", "warmup", "ema", "dropout"):
            _check(self, field, 0 <= getattr(self, field) < 1, "a number from 0 to below 1")
        channels = {"mnist": (1,), "cifar10": (1, 3)}[self.network]
        for field, positive in (("mean", False), ("std", True)):
            values = getattr(self, field)
            good = len(values) in channels and all(
                math.isfinite(value) and (value > 0 or not positive) for value in values
            )
            _check(self, field, good, f"{_one_of(channels)} finite numbers")

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of the network's input, (H, W, C)."""
        return {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}[self.network]

    def replace(self, **changes: Any) -> "Recipe":
        """Returns a copy with some fields changed.

        A changed optimizer brings its own defaults (learning rate, weight decay, arguments, for
        some a constant schedule), unless they are given too: those of another optimizer would be
        off by orders of magnitude.
        """
        if changes.get("optimizer", self.optimizer) != self.optimizer:
            defaults = catalog.get(changes["optimizer"])
            brought = {
                "learning_rate": defaults.learning_rate,
                "weight_decay": defaults.weight_decay,
                "optimizer_args": defaults.args,
                "momentum": 0.9,
                "nesterov": False,
            }
            changes = brought | defaults.recipe | changes
        return dataclasses.replace(self, **changes)


def _check(recipe: Recipe, field: str, good: bool, takes: str) -> None:
    if not good:
        raise ValueError(f"{field} takes {takes}, got {getattr(recipe, field)!r}")


def _one_of(values: tuple[object, ...]) -> str:
    return " or ".join(", ".join(map(str, values)).rsplit(", ", 1))


# The mean and standard deviation of each channel over CIFAR-10's training images.
_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR10_STD = (0.2470, 0.2435, 0.2616)

_REFERENCE = {
    "mnist": Recipe("reference", "mnist", 20, 64, "sgd", 0.001, initialization="pytorch"),
    "cifar10": Recipe("reference", "cifar10", 20, 4, "sgd", 0.001, initialization="pytorch"),
}
_FAST = {
    "mnist": Recipe(
        name="fast",
        network="mnist",
        epochs=6,
        batch_size=100,
        optimizer="adamw",
        learning_rate=4e-3,
        weight_decay=0.02,
        schedule="linear",
        warmup=0.1,
        dropout=0.2,
        augment="shift",
    ),
    "cifar10": Recipe(
        name="fast",
        network="cifar10",
        epochs=8,
        batch_size=100,
        optimizer="sgd",
        learning_rate=0.05,
        weight_decay=5e-4,
        nesterov=True,
        schedule="linear",
        warmup=0.1,
        dropout=0.2,
        augment="flip-shift",
        mean=_CIFAR10_MEAN,
        std=_CIFAR10_STD,
    ),
}

RECIPES: dict[str, dict[str, Recipe]] = {
    network: {
        # The original's hyperparameters exactly.
        "reference": _REFERENCE[network],
        # The most accuracy within a minute (MNIST) or five (CIFAR-10) on two CPU cores.
        "fast": _FAST[network],
        "best": dataclasses.replace(_FAST[network], name="best"),
    }
    for network in get_args(NetworkName)
}


def get(network: str, name: str) -> Recipe:
    """Returns a recipe.

    Raises:
        ValueError: there is none of that name.
    """
    if network not in RECIPES:
        raise ValueError(f"network takes {_one_of(tuple(RECIPES))}, got {network!r}")
    if name not in RECIPES[network]:
        raise ValueError(f"recipe takes {_one_of(tuple(RECIPES[network]))}, got {name!r}")
    return RECIPES[network][name]
