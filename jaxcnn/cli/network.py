"""A network that the command line names: the class of a module, made with the arguments given."""

from collections.abc import Sequence

import flax.linen as nn

from jaxcnn.cli.values import parse_pairs
from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import UserError
from jaxcnn.optim.named import find_function
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.train import setup


def named_network(name: str, args: Sequence[str]) -> nn.Module | None:
    """Makes the network of the flags `--network` and `--network-args`.

    Args:
        name: "module:Class", a Flax module or a function that returns one; "" for none.
        args: its arguments as "key=value".

    Returns:
        The network, or None for the recipe's.

    Raises:
        UserError: there is no such class, or it does not take the arguments.
    """
    pairs = parse_pairs("--network-args", args)
    if not name:
        if pairs:
            raise UserError("--network-args takes the arguments of a --network: give both or none")
        return None
    found = find_function("--network", name, "of a Flax module", "Class")
    try:
        model = found(**pairs)
    except Exception as error:
        raise UserError(
            f"--network {name} cannot be made ({_reason(error)}): change --network-args"
        ) from error
    if not isinstance(model, nn.Module):
        raise UserError(
            f"--network {name} makes a {type(model).__qualname__}: give the class of a Flax Linen "
            "module, or a function that returns one"
        )
    return model


def check_network(name: str, model: nn.Module, recipe: Recipe, dataset: Dataset) -> None:
    """Checks that a network maps the images of a data set to logits of its classes.

    Args:
        name: of the network, as it was given.
        model: the network.
        recipe: of the run.
        dataset: the data set.

    Raises:
        UserError: it does not.
    """
    shape = ", ".join(str(size) for size in (1, *dataset.image_shape))
    try:
        setup.checked_model(recipe, model, dataset)
    except UserError as error:
        raise UserError(f"--network {name}: {error}") from None
    except Exception as error:
        raise UserError(
            f"--network {name} cannot be applied to images [{shape}] ({_reason(error)}): give one "
            "that takes (images, train=False)"
        ) from error


def _reason(error: Exception) -> str:
    """Returns an error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
