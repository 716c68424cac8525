"""Optimizers by name, with their schedules.

Any other `optax.GradientTransformation` can be given to `jaxcnn.training.fit` as `tx`.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from optax import contrib

from jaxcnn.recipes import Recipe

Factory = Callable[[optax.Schedule, Recipe], optax.GradientTransformation]


def make_schedule(recipe: Recipe, total_steps: int) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    It rises linearly over the first `recipe.warmup` of the steps, then falls to zero over the rest
    (a half cosine, https://arxiv.org/abs/1608.03983, or a line), or stays.

    Args:
        recipe: with `learning_rate`, `schedule` and `warmup`.
        total_steps: of the whole run.
    """
    warmup_steps = round(recipe.warmup * total_steps)
    rest = max(1, total_steps - warmup_steps)
    peak = recipe.learning_rate
    after = {
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
    }[recipe.schedule]
    if warmup_steps == 0:
        return after
    # From 1 / warmup_steps rather than zero, so that the first step counts.
    rise = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps - 1)
    return optax.join_schedules([rise, after], [warmup_steps])


def make_optimizer(recipe: Recipe, total_steps: int) -> optax.GradientTransformation:
    """Returns the recipe's optimizer with its schedule.

    Weight decay is coupled (added to the gradient) for sgd, adam and rmsprop, as in PyTorch, and
    decoupled for adamw, lion and muon. It leaves biases and BatchNorm's parameters alone.

    Args:
        recipe: with `optimizer` and its hyperparameters.
        total_steps: of the whole run.
    """
    return FACTORIES[recipe.optimizer](make_schedule(recipe, total_steps), recipe)


def is_kernel(params: Any) -> Any:
    """Returns a tree of booleans: True for the kernels, which have more than one axis."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _coupled(optimizer: optax.GradientTransformation, recipe: Recipe) -> Any:
    if recipe.weight_decay == 0:
        return optimizer
    return optax.chain(optax.add_decayed_weights(recipe.weight_decay, is_kernel), optimizer)


def _sgd(schedule: optax.Schedule, recipe: Recipe) -> optax.GradientTransformation:
    return _coupled(optax.sgd(schedule, recipe.momentum, recipe.nesterov), recipe)


def _adam(schedule: optax.Schedule, recipe: Recipe) -> optax.GradientTransformation:
    return _coupled(optax.adam(schedule), recipe)


def _rmsprop(schedule: optax.Schedule, recipe: Recipe) -> optax.GradientTransformation:
    return _coupled(optax.rmsprop(schedule, decay=0.99, momentum=recipe.momentum or None), recipe)


def _adamw(schedule: optax.Schedule, recipe: Recipe) -> optax.GradientTransformation:
    return optax.adamw(schedule, weight_decay=recipe.weight_decay, mask=is_kernel)


def _lion(schedule: optax.Schedule, recipe: Recipe) -> optax.GradientTransformation:
    return optax.lion(schedule, weight_decay=recipe.weight_decay, mask=is_kernel)


def _muon(schedule: optax.Schedule, recipe: Recipe) -> optax.GradientTransformation:
    def dimension_numbers(params: Any) -> Any:
        # Muon hands anything without dimension numbers to Adam, convolution kernels too if they
        # are not described: (KH, KW, Cin) are what the matrix maps from, Cout what it maps to.
        return jax.tree.map(
            lambda leaf: (
                contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)
                if leaf.ndim > 1
                else None
            ),
            params,
        )

    return contrib.muon(
        schedule,
        weight_decay=recipe.weight_decay,
        weight_decay_mask=is_kernel,
        muon_weight_dimension_numbers=dimension_numbers,
    )


FACTORIES: dict[str, Factory] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
    "lion": _lion,
    "muon": _muon,
    "rmsprop": _rmsprop,
}
