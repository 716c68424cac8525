"""Recipes: every hyperparameter of a training run, by network and name.

This module imports nothing heavy, so that a command line can show its defaults at once.
"""

import dataclasses
import difflib
import numbers
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from jaxcnn import catalog
from jaxcnn.errors import as_path

NetworkName = Literal["mnist", "cifar10"]
RecipeName = Literal["reference", "fast", "best"]
ScheduleName = Literal[
    "constant", "cosine", "linear", "trapezoid", "exponential", "steps", "onecycle"
]
AugmentName = Literal["none", "shift", "distort", "flip-shift"]
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
        label_smoothing: share of each label spread evenly over all classes.
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
    label_smoothing: float = 0.0
    augment: AugmentName = "none"
    initialization: InitializationName = "flax"
    mean: tuple[float, ...] = (0.1307,)
    std: tuple[float, ...] = (0.3081,)

    def __post_init__(self) -> None:
        for field, value in vars(self).copy().items():
            if isinstance(value, bool):
                continue
            if isinstance(value, numbers.Integral):  # NumPy's, say
                object.__setattr__(self, field, int(value))
            elif isinstance(value, numbers.Real):
                object.__setattr__(self, field, float(value))
        named = isinstance(self.name, str) and self.name.isprintable()
        _check(self, "name", named, "a line of text")
        for field, kind in (
            ("network", NetworkName),
            ("schedule", ScheduleName),
            ("augment", AugmentName),
            ("initialization", InitializationName),
        ):
            _check(self, field, getattr(self, field) in get_args(kind), _one_of(get_args(kind)))
        _check(self, "optimizer", isinstance(self.optimizer, str), "the name of an optimizer")
        catalog.get(self.optimizer)
        named = isinstance(self.optimizer_args, Mapping) and all(
            isinstance(name, str) for name in self.optimizer_args
        )
        _check(self, "optimizer_args", named, "values by their names")
        for field in ("epochs", "batch_size"):
            value = getattr(self, field)
            whole = isinstance(value, int) and not isinstance(value, bool)
            _check(self, field, whole and 1 <= value <= 10**6, "a whole number from 1 to 1000000")
        positive = _is_number(self.learning_rate) and self.learning_rate > 0
        _check(self, "learning_rate", positive, "a finite number above 0")
        for field in ("weight_decay", "clip"):
            value = getattr(self, field)
            _check(self, field, _is_number(value) and value >= 0, "a finite number, 0 or more")
        for field in ("momentum", "warmup", "ema", "dropout", "label_smoothing"):
            value = getattr(self, field)
            share = _is_number(value) and 0 <= value < 1
            _check(self, field, share, "a number from 0 to below 1")
        _check(self, "nesterov", isinstance(self.nesterov, bool), "true or false")
        channels = {"mnist": (1,), "cifar10": (1, 3)}[self.network]
        for field in ("mean", "std"):
            values = getattr(self, field)
            good = isinstance(values, tuple) and len(values) in channels
            good = good and all(_is_number(value) for value in values)
            good = good and (field == "mean" or all(value > 0 for value in values))
            _check(self, field, good, f"{_one_of(channels)} finite numbers")

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the network tells apart."""
        return {"mnist": tuple("0123456789"), "cifar10": _CIFAR10_CLASSES}[self.network]

    @property
    def title(self) -> str:
        """The network's name as it is written: "MNIST" or "CIFAR-10"."""
        return {"mnist": "MNIST", "cifar10": "CIFAR-10"}[self.network]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of the network's input, (H, W, C)."""
        return {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}[self.network]

    def asdict(self) -> dict[str, Any]:
        """Returns the hyperparameters by name, and the recipe's own name as "recipe"."""
        fields = dict(vars(self))
        return {"recipe": fields.pop("name"), **fields}

    def replace(self, **changes: Any) -> "Recipe":
        """Returns a copy with some fields changed.

        A changed optimizer brings its own defaults (learning rate, weight decay, arguments, for
        some a constant schedule), unless they are given too: those of another optimizer would be
        off by orders of magnitude.
        """
        optimizer = changes.get("optimizer", self.optimizer)
        if optimizer != self.optimizer and isinstance(optimizer, str):
            defaults = catalog.get(optimizer)
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


def _is_number(value: Any) -> bool:
    """Whether that is a finite number that a float32 can hold."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _FLOAT32_MAX
    )


def _one_of(values: tuple[object, ...]) -> str:
    return " or ".join(", ".join(map(str, values)).rsplit(", ", 1))


_FLOAT32_MAX = 3.4028234e38
# In the order of their labels.
_CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
# The mean and standard deviation of each channel over CIFAR-10's training images.
_CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
_CIFAR10_STD = (0.2470, 0.2435, 0.2616)

_REFERENCE = {
    "mnist": Recipe("reference", "mnist", 20, 64, "sgd", 0.001, initialization="pytorch"),
    "cifar10": Recipe("reference", "cifar10", 20, 4, "sgd", 0.001, initialization="pytorch"),
}
_BEST = {
    "mnist": Recipe(
        name="best",
        network="mnist",
        epochs=40,
        batch_size=256,
        optimizer="muon",
        learning_rate=0.01,
        weight_decay=0.02,
        schedule="linear",
        warmup=0.1,
        dropout=0.0,
        label_smoothing=0.05,
        augment="distort",
        initialization="pytorch",
    ),
    "cifar10": Recipe(
        name="best",
        network="cifar10",
        epochs=75,
        batch_size=512,
        optimizer="muon",
        learning_rate=0.02,
        weight_decay=0.02,
        schedule="linear",
        warmup=0.1,
        dropout=0.3,
        label_smoothing=0.1,
        augment="flip-shift",
        initialization="pytorch",
        mean=_CIFAR10_MEAN,
        std=_CIFAR10_STD,
    ),
}
_FAST = {
    "mnist": _BEST["mnist"].replace(name="fast", epochs=11),
    # In a short run a unit is dropped less often.
    "cifar10": _BEST["cifar10"].replace(name="fast", epochs=15, dropout=0.2),
}

RECIPES: dict[str, dict[str, Recipe]] = {
    network: {
        # The original's hyperparameters exactly.
        "reference": _REFERENCE[network],
        # The most accuracy within a minute (MNIST) or five (CIFAR-10) on two CPU cores.
        "fast": _FAST[network],
        # The most accuracy, however long it takes.
        "best": _BEST[network],
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


def load(network: NetworkName, path: str | os.PathLike[str]) -> Recipe:
    """Reads a recipe from a TOML file: fields of `Recipe` by name, and "base", a recipe's name.

    What the file does not give comes from the base ("fast" by default). The recipe's name is the
    file's.

    Raises:
        ValueError: the file cannot be read, or a field is unknown or out of range.
    """
    path = as_path(path)
    try:
        fields = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}); give a file") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()) or "nested too deeply"
        raise ValueError(f"{path} is no TOML file ({reason}); mend it") from None
    base = fields.pop("base", "fast")
    fields = {"network": network, **fields}
    if fields["network"] != network:
        raise ValueError(f"{path} is for the network {fields['network']!r} and not {network!r}")
    try:
        recipe = get(network, base) if isinstance(base, str) else get(network, repr(base))
        return recipe.replace(**_fields(fields), name=path.stem)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def from_dict(values: Mapping[str, Any]) -> Recipe:
    """Returns the recipe that `Recipe.asdict` was called on, from those values or their JSON form.

    Raises:
        ValueError: a field is missing or out of range.
    """
    known = {field.name for field in dataclasses.fields(Recipe)} - {"name"}
    if missing := sorted(known - values.keys()):
        raise ValueError(f"{missing[0]} is missing")
    fields = {name: value for name, value in values.items() if name in known}
    return Recipe(name=values.get("recipe", ""), **_fields(fields))


def _fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values as fields of `Recipe` take them."""
    kinds = {field.name: field.type for field in dataclasses.fields(Recipe) if field.name != "name"}
    for name in values:
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"a recipe has no {name!r}{hint}")
    fields = dict(values)
    for name in ("mean", "std"):
        if isinstance(fields.get(name), list):
            fields[name] = tuple(fields[name])
    return fields
