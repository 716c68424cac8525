"""The specification of a study: what is compared and how, and its file `study.json`."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxcnn.errors import UserError
from jaxcnn.recipes.recipe import Recipe, recipe_from_dict
from jaxcnn.storage import atomic, document
from jaxcnn.storage.manifest import short_digest

SPECIFICATION = "study.json"

# Fields that record how the runs came about. They do not decide the results.
_PROVENANCE = ("machines", "command")

# The fields that `load_study` reads, and those that `join_studies` unites.
_FORM: dict[str, Any] = {
    "dataset": str,
    "dataset_version": str,
    "base_recipe": {},
    "recipe": {str: {}},
    "learning_rates": {str: [float]},
    "tune_seeds": int,
    "seeds": int,
    "validation": int,
    "target": float,
}


@dataclass(frozen=True)
class Study:
    """A comparison of optimizers.

    Attributes:
        recipe: what all runs have in common. Each optimizer brings its own defaults.
        learning_rates: the rates to try, for each optimizer by name.
        tune_seeds: number of runs at every learning rate, trained without the held-out images.
        seeds: number of runs at the best learning rate, trained on all training images and scored
            once, on the test images.
        validation: number of training images held out for tuning.
        target: validation accuracy, 0..1; the steps to reach it are reported.
    """

    recipe: Recipe
    learning_rates: dict[str, tuple[float, ...]]
    tune_seeds: int
    seeds: int
    validation: int = 5000
    target: float = 0.97

    def for_optimizer(self, name: str) -> Recipe:
        """Returns the recipe with an optimizer of the study."""
        return self.recipe.replace(optimizer=name)


def load_study(folder: Path) -> Study:
    """Reads the study that a workdir's runs belong to.

    Raises:
        UserError: its specification is missing, damaged or incomplete.
    """
    specification = load_specification(folder)
    try:
        document.check(specification, _FORM, "it")
        recipe = recipe_from_dict(specification["base_recipe"])
        rates = {name: tuple(rates) for name, rates in specification["learning_rates"].items()}
        names = ("tune_seeds", "seeds", "validation", "target")
        return Study(recipe, rates, **{name: specification[name] for name in names})
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _unreadable(folder) from None


def load_specification(folder: Path) -> dict[str, Any]:
    """Reads a workdir's `study.json`.

    Returns:
        All that decides the results of the runs; "machines", a description of each machine that
        did some of them; and "command", which began the study.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        fields = document.read_json(folder / SPECIFICATION)
        document.check(fields, {}, "it")
        document.check(fields.get("machines", []), [str], "machines")
        if "digest" in fields:
            fields = without_digest(fields)
    except (FileNotFoundError, ValueError):
        raise _unreadable(folder) from None
    return dict(fields)


def write_specification(folder: Path, specification: dict[str, Any]) -> None:
    """Writes a workdir's `study.json`.

    Args:
        folder: the workdir.
        specification: as `load_specification` returns it.

    Raises:
        WriteError: the file cannot be written.
    """
    text = json.dumps(with_digest(specification), indent=2, allow_nan=False) + "\n"
    atomic.write(folder / SPECIFICATION, text.encode())


def differing_settings(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Returns the names of the settings in which two specifications differ.

    Args:
        one: a specification, see `load_specification`.
        other: the one to compare it with; the order of the names is that of `one`.
    """
    names = dict.fromkeys([*one, *other])
    return [name for name in names if name not in _PROVENANCE and one.get(name) != other.get(name)]


def with_digest(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns JSON values together with a digest of them, by which damage is noticed."""
    return {**fields, "digest": short_digest(json.dumps(fields))}


def without_digest(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Returns JSON values without the digest that `with_digest` has added.

    Raises:
        ValueError: the digest is missing or is that of other values.
    """
    rest = {name: value for name, value in fields.items() if name != "digest"}
    if fields.get("digest") != short_digest(json.dumps(rest)):
        raise ValueError("altered")
    return rest


def _unreadable(folder: Path) -> UserError:
    return UserError(
        f"{folder / SPECIFICATION} cannot be read, so the study that its runs belong to is not "
        "known: remove the folder, or give another one"
    )
