"""What a run is made of before its first step: network, step, keys, and their checks."""

import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.data.augment import make_augment, make_normalize
from jaxcnn.data.dataset import CLASSES, Dataset
from jaxcnn.errors import UserError
from jaxcnn.networks.cnn import Cifar10CNN, MnistCNN
from jaxcnn.optim.extra_args import extra_arguments, with_plain_params
from jaxcnn.optim.factory import make_optimizer
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.train import steps


def make_model(recipe: Recipe) -> nn.Module:
    """Returns the recipe's network."""
    network = {"mnist": MnistCNN, "cifar10": Cifar10CNN}[recipe.network]
    return network(dropout_rate=recipe.dropout, initialization=recipe.initialization)


def make_recipe_step(
    recipe: Recipe, model: nn.Module, tx: optax.GradientTransformation
) -> steps.TrainStep:
    """Returns the step that a recipe trains with, see `jaxcnn.train.steps.make_train_step`."""
    return steps.make_train_step(
        model,
        tx,
        normalize=make_normalize(recipe.mean, recipe.std),
        augment=make_augment(recipe.augment),
        label_smoothing=recipe.label_smoothing,
    )


def split_key(seed: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a run's two keys: of everything in its state, and of the order of its images."""
    # Not jax's default, whatever that is: "rbg" gives all members of an ensemble the same numbers.
    init_key, order_key = jax.random.split(jax.random.key(seed, impl="threefry2x32"))
    return init_key, order_key


def checked_seeds(seeds: Any) -> np.ndarray:
    """Returns seeds as uint32[E].

    Raises:
        UserError: one is no whole number in 0..2**32 - 1: it would be taken for another one.
    """
    whole: list[int] = []
    for position, seed in enumerate(seeds):
        try:
            whole.append(operator.index(seed))
        except TypeError:
            whole.append(-1)
        if not 0 <= whole[-1] < 2**32 or isinstance(seed, bool):
            raise UserError(
                f"the seed {seed!r}, at position {position}, is no whole number from 0 to "
                f"{2**32 - 1}: give such a one"
            )
    return np.array(whole, np.uint32)


def optimizer_key(init_key: jax.Array) -> jax.Array:
    """Returns the key of an optimizer's random numbers; `state.init` splits 0 and 1 off."""
    return jax.random.fold_in(init_key, 2)


def check_optimizer(
    tx: optax.GradientTransformation, model: nn.Module, image_shape: tuple[int, ...]
) -> None:
    """Finds out whether a training step can give an optimizer what it needs, without training.

    Args:
        tx: the optimizer.
        model: the network.
        image_shape: (H, W, C).

    Raises:
        UserError: it cannot; the message says why.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    extra_arguments(with_plain_params(tx), params)


def checked_model(recipe: Recipe, own: nn.Module | None, image_shape: tuple[int, ...]) -> nn.Module:
    """Returns the network to train, one's own or else the recipe's.

    Raises:
        UserError: what one's own gives for an image are no logits of all classes.
    """
    if own is None:
        return make_model(recipe)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    logits, _ = jax.eval_shape(own.init_with_output, jax.random.key(0), image)
    shape: tuple[int, ...] = getattr(logits, "shape", ())
    if len(shape) != 2 or shape[1] < CLASSES:
        raise UserError(
            f"the network {type(own).__qualname__} gives {list(shape)} for one image: give one "
            f"with logits [1, {CLASSES}]"
        )
    return own


def check_sizes(recipe: Recipe, dataset: Dataset) -> int:
    """Refuses data sets that cannot be trained on with a recipe.

    Returns:
        Optimizer steps of the whole run.

    Raises:
        UserError: a split is empty, a batch larger than the training split, or the run longer than
            its counters can count.
    """
    for name, split in (("training", dataset.train), ("test", dataset.test)):
        if not len(split):
            raise UserError(f"{dataset.name} has no {name} images: give it at least one")
    size = len(dataset.train)
    if recipe.batch_size > size:
        raise UserError(
            f"batch_size {recipe.batch_size} is larger than the {size} training images: take at "
            "most that many"
        )
    total = recipe.epochs * -(-size // recipe.batch_size)
    # The counters on the device are int32, and that of steps has a mark at the end.
    if max(total, size) >= steps.NEVER:
        raise UserError(
            f"{recipe.epochs} epochs of {size} images at batch {recipe.batch_size} are {total} "
            f"steps, more than the {steps.NEVER - 1} that can be counted: take fewer epochs"
        )
    return total


def check_recipe(recipe: Recipe) -> None:
    """Makes a recipe's optimizer and finds out whether its network can be trained with it.

    Raises:
        UserError: it cannot; the message says why.
    """
    check_optimizer(make_optimizer(recipe, total_steps=100), make_model(recipe), recipe.image_shape)
