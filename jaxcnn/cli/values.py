"""The values of flags: how they are parsed and checked beyond their types."""

import ast
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcnn.errors import UserError
from jaxcnn.recipes import optimizer_defaults
from jaxcnn.recipes.recipe import Recipe


def trust_optimizers(names: Sequence[str]) -> None:
    """Allows the user-defined optimizers that a command line names to be imported.

    They are also looked for in the current folder. One that only a recipe file names is not
    trusted: the file may be a stranger's.

    Args:
        names: of optimizers; those of optax need no trust.
    """
    if own := list(filter(optimizer_defaults.is_own, names)):
        for name in own:
            optimizer_defaults.trust(name)
        sys.path.append(str(Path.cwd()))


def replace_fields(recipe: Recipe, **changes: Any) -> Recipe:
    """Returns a copy of a recipe with some fields changed.

    Raises:
        UserError: a value is out of range; the message names the flag.
    """
    try:
        return recipe.replace(**changes)
    except ValueError as error:
        field, rest = str(error).split(" ", 1)
        raise UserError(f"--{field.replace('_', '-')} {rest}") from None


def parse_pairs(flag: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Parses the "key=value" pairs of a flag.

    Args:
        flag: its name, for errors.
        pairs: each a name and a Python literal; a value that is no literal is text.

    Raises:
        UserError: one has another form, or a number that is not finite.
    """
    args: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (equals and key.isidentifier()):
            raise UserError(f"{flag} takes key=value pairs, got {pair!r}")
        try:
            args[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            args[key] = value
        if isinstance(args[key], float) and not math.isfinite(args[key]):
            raise UserError(f"{flag} takes finite numbers, got {pair!r}")
    return args


def check_range(flag: str, value: int, low: int, high: int) -> None:
    """Refuses a whole number that is out of range.

    Args:
        flag: its name, for the error.
        value: to check.
        low: smallest number allowed.
        high: largest number allowed.

    Raises:
        UserError: `value` is out of range.
    """
    if not low <= value <= high:
        raise UserError(f"{flag} takes a whole number from {low} to {high}, got {value}")
