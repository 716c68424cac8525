"""Search spaces: which hyperparameters of an optimizer are tuned, over which ranges.

Those of the catalog and of other packages are in `spaces.toml`, those of user-defined optimizers in
files of their own.
"""

import functools
import math
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from jaxcnn.errors import UserError, describe
from jaxcnn.recipes import optimizer_defaults
from jaxcnn.recipes.recipe import Recipe, one_of
from jaxcnn.storage import document

RATE = "learning_rate"
_ONE_MINUS = "one_minus_"
_MOST = 3  # dimensions: in more, 16 trials are too few
_FACTOR = 10  # of the default learning rate, to both sides
_CATALOG = Path(__file__).with_name("spaces.toml")


@dataclass(frozen=True)
class Range:
    """The values of one hyperparameter.

    Attributes:
        low: the lowest.
        high: the highest.
        scale: "log", uniform in the logarithm, or "linear".
    """

    low: float
    high: float
    scale: Literal["log", "linear"] = "log"

    def at(self, position: float) -> float:
        """Returns the value at a position, 0 for the lowest to 1 for the highest."""
        if self.scale == "linear":
            value = self.low + position * (self.high - self.low)
        else:
            value = self.low * (self.high / self.low) ** position
        return float(f"{value:.6g}")

    def position(self, value: float) -> float:
        """Returns the position of a value, the inverse of `at`."""
        if self.scale == "linear":
            return (value - self.low) / (self.high - self.low)
        return math.log(value / self.low) / math.log(self.high / self.low)

    def extension(self, side: Literal["low", "high"]) -> "Range":
        """Returns the range of half the width that lies beyond this one's lower or upper end."""
        if self.scale == "linear":
            half = (self.high - self.low) / 2
            ends = (self.low - half, self.high + half)
        else:
            half = math.sqrt(self.high / self.low)
            ends = (self.low / half, self.high * half)
        if side == "low":
            return Range(ends[0], self.low, self.scale)
        return Range(self.high, ends[1], self.scale)

    def as_list(self) -> list[Any]:
        """Returns [low, high, scale], as files have it."""
        return [self.low, self.high, self.scale]


@dataclass(frozen=True)
class Space:
    """The search space of an optimizer.

    Attributes:
        reference: the paper of the optimizer, or where else it is described.
        source: where the ranges come from.
        ranges: by name, "learning_rate" first. A name "one_minus_NAME" is of the argument NAME,
            which is 1 minus the value.
        default: values of the same names, of the untuned run.
    """

    reference: str
    source: str
    ranges: Mapping[str, Range]
    default: Mapping[str, float]


def hyperparameters(values: Mapping[str, float]) -> dict[str, float]:
    """Returns values of a space as hyperparameters of an ensemble, see `jaxcnn.grid`."""
    return {
        name.removeprefix(_ONE_MINUS): 1 - value if name.startswith(_ONE_MINUS) else value
        for name, value in values.items()
    }


def find_space(recipe: Recipe) -> Space:
    """Returns the search space of an optimizer of the catalog, or of `packaged`.

    Args:
        recipe: with the optimizer and its defaults.

    Raises:
        UserError: there is no space for the optimizer.
    """
    name = recipe.optimizer
    catalog = _catalog()
    if not isinstance(catalog.get(name), dict):
        raise UserError(
            f"the arena has no search space of {name}: give one of your own with jaxcnn arena add"
        )
    if optimizer_defaults.is_own(name):
        return _as_space(catalog[name])
    table = {"source": catalog["source"], **catalog[name]}
    reference, source = table.pop("reference"), table.pop("source")
    # Of six digits, to be read.
    low, high = (float(f"{recipe.learning_rate * by:.6g}") for by in (1 / _FACTOR, _FACTOR))
    ranges = {RATE: Range(low, high)} | {one: Range(*ends) for one, ends in table.items()}
    return Space(reference, source, ranges, {one: _default(recipe, one) for one in ranges})


@functools.cache
def _catalog() -> dict[str, Any]:
    return tomllib.loads(_CATALOG.read_text())


def catalogued() -> list[str]:
    """Returns the names of the optimizers that can be used, in the order of the catalog."""
    return [name for name, one in optimizer_defaults.OPTIMIZERS.items() if not one.refused]


def packaged() -> list[str]:
    """Returns the optimizers of other packages that have a search space, "module:factory" each."""
    return list(filter(optimizer_defaults.is_own, _catalog()))


def check_packaged(name: str) -> None:
    """Checks that the arena has a search space of an optimizer of another package.

    The package is looked for, and not imported.

    Args:
        name: "module:factory".

    Raises:
        UserError: there is no space, or the package is not installed.
    """
    if name not in packaged():
        raise UserError(
            f"--optimizers {name}: one of your own needs a search space, give it by "
            "jaxcnn arena add"
        )
    package = name.partition(":")[0]
    if find_spec(package) is None:
        raise UserError(
            f"--optimizers {name} needs the package {package}: pip install 'jaxcnn[arena]'"
        )


def _default(recipe: Recipe, name: str) -> float:
    """Returns the value of a hyperparameter of a space that the optimizer has by default."""
    # Imported here: it imports jax.
    from jaxcnn.optim.named import find_factory, signature

    argument = name.removeprefix(_ONE_MINUS)
    if argument in recipe.optimizer_args:
        value = recipe.optimizer_args[argument]
    elif argument == "momentum" and recipe.optimizer in ("sgd", "rmsprop"):
        value = recipe.momentum
    elif argument in (RATE, "weight_decay"):
        value = getattr(recipe, argument)
    else:
        value = signature(recipe.optimizer, find_factory(recipe.optimizer))[argument].default
    return float(f"{1 - value if argument != name else value:.6g}")


def load_space(path: Path) -> Space:
    """Reads the search space of a user-defined optimizer.

    Args:
        path: of a TOML file with a table "space" of ranges and, if the untuned run is not to be in
            their middle, a table "default"; "reference" and "source" are lines of text.

    Raises:
        UserError: the file cannot be read, or has something else; the message says what.
    """
    try:
        fields = document.read_toml(path)
    except FileNotFoundError as error:
        raise UserError(f"cannot read {describe(error, path)}; give the file of a space") from None
    except ValueError as error:
        raise UserError(f"{path} holds no search space ({error}): correct it") from None
    if reason := next(_mistakes(fields), ""):
        raise UserError(f"{path} is no search space: {reason}")
    return _as_space(fields)


def _as_space(fields: dict[str, Any]) -> Space:
    """Returns the search space that the content of a file describes."""
    ranges = {name: Range(*ends) for name, ends in fields["space"].items()}
    default = fields.get("default") or {name: one.at(0.5) for name, one in ranges.items()}
    default = {name: float(default[name]) for name in ranges}
    return Space(fields.get("reference", ""), fields.get("source", ""), ranges, default)


def _mistakes(fields: dict[str, Any]) -> Iterator[str]:
    """Yields what is wrong with the content of a file."""
    known = ("reference", "source", "space", "default")
    if unknown := [name for name in fields if name not in known]:
        yield f"it has {unknown[0]!r}, and takes {one_of(known)}"
    for name in known[:2]:
        text = fields.get(name, "")
        if not isinstance(text, str) or not text.isprintable() or len(text) > 500:
            yield f"its {name} is not a line of text"
    space = fields.get("space")
    if not isinstance(space, dict) or RATE not in space or len(space) > _MOST:
        yield f"give it a table [space] with {RATE} and at most {_MOST - 1} more"
        return
    for name, ends in space.items():
        if not name.isidentifier():
            yield f"{name!r} is no name of a hyperparameter"
        if not _is_range(ends):
            yield f'{name} takes [lowest, highest, "log" or "linear"], lowest above 0 for "log"'
    default = fields.get("default", {})
    if not isinstance(default, dict) or (default and default.keys() != space.keys()):
        yield "its [default] has other names than its [space]"
    elif not all(map(_is_number, default.values())):
        yield "its [default] takes numbers"


def _is_range(ends: Any) -> bool:
    return (
        isinstance(ends, list)
        and len(ends) == 3
        and all(map(_is_number, ends[:2]))
        and ends[0] < ends[1]
        and (ends[2] == "linear" or (ends[2] == "log" and ends[0] > 0))
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e30
