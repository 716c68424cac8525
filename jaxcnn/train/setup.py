"""What a run is made of before its first step: network, step, keys, and their checks."""

import operator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.data.augment import Augment, make_augment, make_normalize
from jaxcnn.data.dataset import Dataset
from jaxcnn.devices.mesh import ONE_DEVICE, Placement
from jaxcnn.errors import UserError
from jaxcnn.networks.cnn import CNN, Cifar10CNN, MnistCNN
from jaxcnn.networks.inspect import variable_shapes
from jaxcnn.optim.extra_args import check_update
from jaxcnn.optim.factory import make_optimizer
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.train import steps
from jaxcnn.train.losses import Loss
from jaxcnn.train.step_log import NO_LOG, StepLog


def make_model(
    recipe: Recipe, classes: int | None = None, image_shape: tuple[int, int, int] | None = None
) -> CNN:
    """Returns the recipe's network.

    Args:
        recipe: the hyperparameters.
        classes: number of classes. Default: that of the network's own data set.
        image_shape: of one image, (H, W, C). Default: that of the network's own data set.
    """
    network = {"mnist": MnistCNN, "cifar10": Cifar10CNN}[recipe.network]
    return network(
        classes=classes or len(recipe.class_names),
        image_shape=image_shape or recipe.image_shape,
        dropout_rate=recipe.dropout,
        initialization=recipe.initialization,
    )


def make_recipe_step(
    recipe: Recipe,
    model: nn.Module,
    tx: optax.GradientTransformation,
    *,
    augment: Augment | None = None,
    loss: Loss | None = None,
    log: StepLog = NO_LOG,
) -> steps.TrainStep:
    """Returns the training step of a recipe, see `jaxcnn.train.steps.make_train_step`.

    Args:
        recipe: its normalization, augmentation and label smoothing.
        model: the network.
        tx: the optimizer.
        augment: another augmentation. Default: the recipe's.
        loss: a user-defined one; it has no label smoothing.
        log: what else is measured.
    """
    return steps.make_train_step(
        model,
        tx,
        normalize=make_normalize(recipe.mean, recipe.std),
        augment=augment or make_augment(recipe.augment),
        label_smoothing=recipe.label_smoothing,
        loss=loss,
        log=log,
    )


def split_key(seed: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the two keys of a run: for everything in its state, and for the order of images."""
    # The implementation is named: by "rbg" all members of an ensemble would draw the same numbers.
    init_key, order_key = jax.random.split(jax.random.key(seed, impl="threefry2x32"))
    return init_key, order_key


def checked_seeds(seeds: Any) -> np.ndarray:
    """Returns seeds as uint32[E].

    Raises:
        UserError: a seed is not a whole number in 0..2**32 - 1.
    """
    whole: list[int] = []
    for position, seed in enumerate(seeds):
        try:
            whole.append(operator.index(seed))
        except TypeError:
            whole.append(-1)
        if not 0 <= whole[-1] < 2**32 or isinstance(seed, bool):
            raise UserError(
                f"the seed {seed!r}, at position {position}, is not a whole number from 0 "
                f"to {2**32 - 1}: give such a one"
            )
    return np.array(whole, np.uint32)


def optimizer_key(init_key: jax.Array) -> jax.Array:
    """Returns the key of an optimizer's random numbers; `init_state` uses the splits 0 and 1."""
    return jax.random.fold_in(init_key, 2)


def check_optimizer(
    tx: optax.GradientTransformation, model: nn.Module, image_shape: tuple[int, ...]
) -> None:
    """Checks, without training, that the training step can call an optimizer's `update`.

    Args:
        tx: the optimizer.
        model: the network.
        image_shape: (H, W, C).

    Raises:
        UserError: it cannot; the message says why.
    """
    check_update(tx, variable_shapes(model, image_shape)["params"])


def checked_model(recipe: Recipe, model: nn.Module | None, dataset: Dataset) -> nn.Module:
    """Returns the network to train: a user-defined one, or the recipe's.

    Args:
        recipe: whose network is the default.
        model: the user-defined network, if there is one.
        dataset: whose images it takes, and whose classes it has a logit for.

    Raises:
        UserError: the images do not fit the recipe's network, or the user-defined one does not
            return logits of all classes.
    """
    image = jax.ShapeDtypeStruct((1, *dataset.image_shape), jnp.float32)
    if model is None:
        model = make_model(recipe, dataset.classes, dataset.image_shape)
    if not isinstance(model, nn.Module):
        given = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise UserError(
            f"model is {given}: give an instance of a Flax Linen module, such as Net(); one of NNX "
            "becomes one by flax.nnx.bridge.to_linen"
        )
    logits, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), image)
    shape: tuple[int, ...] = getattr(logits, "shape", ())
    if len(shape) != 2 or shape[1] < dataset.classes:
        raise UserError(
            f"the network {type(model).__qualname__} returns {list(shape)} for one image: give one "
            f"with logits [1, {dataset.classes}]"
        )
    return model


def check_augment(augment: Augment | None, image_shape: tuple[int, ...]) -> None:
    """Checks that a user-defined augmentation keeps the shape of a batch.

    Args:
        augment: the augmentation, if there is one.
        image_shape: (H, W, C).

    Raises:
        UserError: it returns something else.
    """
    if augment is None:
        return
    batch = jax.ShapeDtypeStruct((2, *image_shape), jnp.uint8)
    images = jax.eval_shape(augment, jax.random.key(0), batch)
    shape = getattr(images, "shape", None)
    if shape != batch.shape:
        raise UserError(
            f"the augmentation returns {shape and list(shape)} for images {list(batch.shape)}: let "
            "it return images of the same shape"
        )


def checked_schedule(
    schedule: optax.Schedule | None, tx: optax.GradientTransformation | None = None
) -> optax.Schedule | None:
    """Returns a user-defined schedule, if there is one, as a function to float32[].

    Args:
        schedule: from the step, int32[] counted from 0, to its learning rate, a number.
        tx: a user-defined optimizer, which has to have its schedule itself.

    Raises:
        UserError: it returns an array, or there is a user-defined optimizer too.
    """
    if schedule is None:
        return None
    if tx is not None:
        raise UserError(
            "schedule is for the recipe's optimizer: give it to the optimizer that is tx, as its "
            "learning_rate"
        )

    def rate(step: int | jax.Array) -> jax.Array:
        return jnp.asarray(schedule(jnp.asarray(step, jnp.int32)), jnp.float32)

    try:
        shape = jax.eval_shape(rate, 0).shape
    except jax.errors.ConcretizationTypeError:
        raise UserError(
            "the schedule cannot be traced, as it decides by the value of the step: replace if by "
            "jnp.where"
        ) from None
    if shape:
        raise UserError(
            f"the schedule returns {list(shape)} for one step: let it return one number, the "
            "learning rate"
        )
    return rate


def check_sizes(recipe: Recipe, dataset: Dataset, placement: Placement = ONE_DEVICE) -> int:
    """Checks that a data set can be trained on with a recipe.

    Args:
        recipe: its batch size and number of epochs.
        dataset: the training and test splits.
        placement: of the batches on the devices.

    Returns:
        Number of optimizer steps of the whole run.

    Raises:
        UserError: a split is empty, the normalization is for another number of channels, a batch
            is larger than the training split or does not divide over the devices, or the run is too
            long for its int32 counters.
    """
    placement.check_batch(recipe.batch_size)
    for name, split in (("training", dataset.train), ("test", dataset.test)):
        if not len(split):
            raise UserError(f"{dataset.name} has no {name} images: give it at least one")
    channels = dataset.image_shape[2]
    for name, values in (("mean", recipe.mean), ("std", recipe.std)):
        if len(values) not in (1, channels):
            raise UserError(
                f"{name} has {len(values)} values, and the images {channels} channels: give one "
                "value, or one for each channel"
            )
    size = len(dataset.train)
    if recipe.batch_size > size:
        raise UserError(
            f"batch_size {recipe.batch_size} is larger than the {size} training images: take at "
            "most that many"
        )
    total = recipe.epochs * -(-size // recipe.batch_size)
    # The counters on the device are int32, and the largest number of steps means "never".
    if max(total, size) >= steps.NEVER:
        raise UserError(
            f"{recipe.epochs} epochs of {size} images at batch {recipe.batch_size} are {total} "
            f"steps, more than the {steps.NEVER - 1} that can be counted: take fewer epochs"
        )
    return total


def check_recipe(recipe: Recipe) -> None:
    """Checks that a recipe's optimizer can be made and can train its network.

    Raises:
        UserError: it cannot; the message says why.
    """
    check_optimizer(make_optimizer(recipe, total_steps=100), make_model(recipe), recipe.image_shape)
