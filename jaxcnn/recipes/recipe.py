"""`Recipe`: every hyperparameter of a training run, with its allowed values."""

import dataclasses
import difflib
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from jaxcnn.recipes import optimizer_defaults
from jaxcnn.recipes.problems import MNIST, PROBLEMS, Problem

NetworkName = Literal["mnist", "cifar10"]  # the names of `PROBLEMS`
RecipeName = Literal["reference", "fast", "best", "sprint"]
ScheduleName = Literal[
    "constant", "cosine", "linear", "trapezoid", "exponential", "steps", "onecycle"
]
AugmentName = Literal["none", "shift", "distort", "flip-shift", "flip-shift-2"]
InitializationName = Literal["flax", "pytorch"]


@dataclass(frozen=True)
class Recipe:
    """The hyperparameters of a training run.

    Attributes:
        name: of the recipe.
        network: "mnist" or "cifar10".
        epochs: passes over the training images.
        batch_size: images per step.
        optimizer: one of `optax` or `optax.contrib` by name, or a user-defined "module:factory".
        optimizer_args: further arguments of the optimizer, by name.
        learning_rate: per step, at its peak.
        weight_decay: of kernels only; biases and BatchNorm are left alone.
        momentum: of sgd and rmsprop; the others ignore it.
        nesterov: whether the momentum of sgd is Nesterov's.
        schedule: of the learning rate, see `jaxcnn.optim.schedules`.
        warmup: share of the steps in which the learning rate rises from zero, 0..1.
        clip: the largest norm of the gradient; longer gradients are scaled. 0 for no clipping.
        ema: decay per step of the average of the parameters that is evaluated. 0 for no average.
        dropout: share of the hidden units that are dropped, 0..1.
        label_smoothing: share of each label that is spread evenly over all classes, 0..1.
        augment: of the training images, see `jaxcnn.data.augment`.
        initialization: of the parameters, see `jaxcnn.networks.cnn`.
        mean: subtracted from pixels in 0..1; one number, or one per channel.
        std: divides the difference; one number, or one per channel.

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
    mean: tuple[float, ...] = MNIST.mean
    std: tuple[float, ...] = MNIST.std

    def __post_init__(self) -> None:
        for field, value in vars(self).copy().items():
            if isinstance(value, bool):
                continue
            if isinstance(value, numbers.Integral):  # NumPy's, for example
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
            _check(self, field, getattr(self, field) in get_args(kind), one_of(get_args(kind)))
        _check(self, "optimizer", isinstance(self.optimizer, str), "the name of an optimizer")
        optimizer_defaults.get(self.optimizer)
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
        for field in ("mean", "std"):
            values = getattr(self, field)
            good = isinstance(values, tuple) and len(values) > 0
            good = good and all(_is_number(value) for value in values)
            good = good and (field == "mean" or all(value > 0 for value in values))
            takes = "one finite number, or one for each channel"
            _check(self, field, good, takes + (", above 0" if field == "std" else ""))

    @property
    def problem(self) -> Problem:
        """What the network is for."""
        return PROBLEMS[self.network]

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes of the network's own data set, in the order of their labels."""
        return self.problem.class_names

    @property
    def title(self) -> str:
        """The network's name as it is written: "MNIST" or "CIFAR-10"."""
        return self.problem.title

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of one image of the network's own data set, (H, W, C)."""
        return self.problem.image_shape

    def asdict(self) -> dict[str, Any]:
        """Returns the hyperparameters by name, and the recipe's own name as "recipe"."""
        fields = dict(vars(self))
        return {"recipe": fields.pop("name"), **fields}

    def replace(self, **changes: Any) -> "Recipe":
        """Returns a copy with some fields changed.

        A changed optimizer brings its own defaults (learning rate, weight decay, arguments, for
        some a constant schedule), unless they are given too: those of another optimizer would be
        off by orders of magnitude.

        Raises:
            ValueError: a field is unknown, or its value is out of range.
        """
        known = [field.name for field in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                close = difflib.get_close_matches(name, known, 1)
                hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
                raise ValueError(f"{name} is no field of a recipe: {hint}")
        optimizer = changes.get("optimizer", self.optimizer)
        if optimizer != self.optimizer and isinstance(optimizer, str):
            defaults = optimizer_defaults.get(optimizer)
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
    """Whether a value is a finite number that a float32 can hold."""
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _FLOAT32_MAX
    )


def one_of(values: tuple[object, ...]) -> str:
    """Returns values as a list in words, for example "mnist or cifar10"."""
    return " or ".join(", ".join(map(str, values)).rsplit(", ", 1))


_FLOAT32_MAX = 3.4028234e38


def recipe_from_dict(values: Mapping[str, Any]) -> Recipe:
    """Returns the recipe that `Recipe.asdict` was called on.

    Args:
        values: what it returned, or the same read back from JSON.

    Raises:
        ValueError: a field is missing or out of range.
    """
    known = {field.name for field in dataclasses.fields(Recipe)} - {"name"}
    if missing := sorted(known - values.keys()):
        raise ValueError(f"{missing[0]} is missing")
    fields = {name: value for name, value in values.items() if name in known}
    return Recipe(name=values.get("recipe", ""), **as_fields(fields))


def as_fields(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values from a file as fields of `Recipe`: lists of numbers become tuples.

    Raises:
        ValueError: there is no such field.
    """
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
