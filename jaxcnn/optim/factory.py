"""Optimizers by name: any of optax and optax.contrib, SOAP, or user-defined.

Any `optax.GradientTransformation` can also be given to `jaxcnn.train.fit.fit` as `tx`.
"""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxcnn.errors import UserError
from jaxcnn.optim.averages import averaged
from jaxcnn.optim.extra_args import Normalized, normalize
from jaxcnn.optim.named import Factory, find_factory, signature
from jaxcnn.optim.schedules import make_schedule
from jaxcnn.recipes import optimizer_defaults
from jaxcnn.recipes.recipe import Recipe

# What may be traced, so that many runs with different values share a program. So may the
# optimizer's own numeric arguments.
HYPERPARAMETERS = ("learning_rate", "weight_decay", "clip", "ema")

# The names that factories give to the same parameters.
_RATES = ("learning_rate", "max_learning_rate")
_DECAYS = ("weight_decay", "weight_decay_rate")
_MASKS = ("mask", "weight_decay_mask")


def make_optimizer(
    recipe: Recipe,
    total_steps: int,
    *,
    key: jax.Array | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
    schedule: optax.Schedule | None = None,
) -> Normalized:
    """Returns the recipe's optimizer with its schedule, weight decay, clipping and averaging.

    Weight decay applies to kernels, not to biases and BatchNorm's parameters. An optimizer with a
    parameter for it applies its own, which is decoupled for most of them; else it is coupled, added
    to the gradient, as in PyTorch's sgd and adam.

    Args:
        recipe: with `optimizer` and its hyperparameters.
        total_steps: of the whole run.
        key: PRNG key[], for optimizers that draw random numbers.
        hyperparameters: values that replace those of the recipe, float32[] each, which may be
            traced: of `HYPERPARAMETERS` and of the optimizer's own numeric arguments.
        schedule: the learning rate by step, in place of the recipe's schedule and warm-up.

    Returns:
        The optimizer; its `update` accepts every extra argument of a training step.

    Raises:
        UserError: the optimizer, an argument or the combination cannot be used.
    """
    name = recipe.optimizer
    values, args = _split(recipe, hyperparameters or {})
    factory = find_factory(name)
    parameters = signature(name, factory)
    check_args(name, parameters, args)
    if "momentum" in args and not _is_on(args["momentum"]):
        # Where None is the default, it means no momentum, and nothing is kept for it.
        args["momentum"] = None if parameters["momentum"].default is None else 0.0
    key = jax.random.key(0) if key is None else key
    if "key" in parameters:
        args.setdefault("key", key)
    if name == "sophia":
        args.setdefault("hessian_diagonal_fn", contrib.hutchinson_estimator_diag_hessian(key))

    peak = values["learning_rate"]
    constant = schedule is None and recipe.schedule == "constant" and recipe.warmup == 0
    schedule = schedule or make_schedule(recipe, total_steps, learning_rate=peak)
    after = _give_learning_rate(name, parameters, args, schedule, peak, constant)
    before, make = _give_weight_decay(name, parameters, factory, args, values["weight_decay"])
    if _is_on(values["clip"]):
        clip = optax.clip_by_global_norm(jnp.where(values["clip"] > 0, values["clip"], jnp.inf))
        if name == "sam":  # it clips the gradient of its step, not that of its ascent
            args["clip"] = clip
        else:
            before.insert(0, clip)
    if name == "lbfgs" and before:
        raise UserError(
            "optimizer lbfgs searches along a direction of its own: give --clip 0 --weight-decay 0"
        )
    tx = _make(name, make, args)
    if before or after:
        tx = optax.chain(*before, tx, *after)
    tx = Normalized(*optax.with_extra_args_support(tx))
    return averaged(tx, values["ema"]) if _is_on(values["ema"]) else tx


def _split(
    recipe: Recipe, hyperparameters: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the values of `HYPERPARAMETERS`, and the optimizer's own arguments."""
    values = {name: getattr(recipe, name) for name in HYPERPARAMETERS}
    args = {
        name: normalize(value) if isinstance(value, optax.GradientTransformation) else value
        for name, value in recipe.optimizer_args.items()
    }
    if recipe.optimizer in ("sgd", "rmsprop"):
        args = {"momentum": recipe.momentum, "nesterov": recipe.nesterov} | args
    for name, value in hyperparameters.items():
        (values if name in values else args)[name] = value
    return values, args


def _make(name: str, make: Factory, args: dict[str, Any]) -> optax.GradientTransformation:
    """Calls an optimizer's factory.

    Raises:
        UserError: the factory fails, or returns no optimizer.
    """
    try:
        tx = make(**args)
        return normalize(tx) if optimizer_defaults.is_own(name) else tx
    except UserError:
        raise
    except Exception as error:  # whatever it is, it is about the arguments
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"optimizer {name} cannot be made: {reason}; change --optimizer-args or the "
            "hyperparameter it names"
        ) from error


def check_args(
    name: str, parameters: Mapping[str, inspect.Parameter], args: Mapping[str, Any]
) -> None:
    """Compares arguments with the parameters of an optimizer.

    Args:
        name: of the optimizer.
        parameters: of its factory, by name.
        args: the arguments that it is to be called with.

    Raises:
        UserError: one is unknown, missing, or text where a number is wanted.
    """
    own = optimizer_defaults.is_own(name)
    given = {*_RATES, "key"} | (set() if own else {"seed"}) | ({"clip"} if name == "sam" else set())
    if optimizer_defaults.get(name).decay != "separate":
        given |= {*_DECAYS, *_MASKS}
    takes = [parameter for parameter in parameters if parameter not in given]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key, value in args.items():
        if key in (*_RATES, *_DECAYS) and key in given:
            flag = "--learning-rate" if key in _RATES else "--weight-decay"
            raise UserError(f"--optimizer-args {key}: give {flag} instead")
        if key not in takes and not open_ended:
            near = difflib.get_close_matches(key, takes, n=1)
            raise UserError(
                f"--optimizer-args {key}: {name} has no such argument; it takes "
                f"{', '.join(takes) or 'none'}" + (f" (did you mean {near[0]}?)" if near else "")
            )
        default = parameters[key].default if key in parameters else inspect.Parameter.empty
        # In optax None stands for a number that is left out, or for a dtype.
        number = default is None and not own and not key.endswith("dtype")
        if isinstance(value, str) and (number or isinstance(default, int | float)):
            raise UserError(f"--optimizer-args {key}: {name} takes a number here, got {value!r}")
    if own and not open_ended and _first(_RATES, parameters) is None:
        raise UserError(f"--optimizer {name}: its function has no parameter learning_rate; add one")
    for key, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if needed and key not in args and key not in given:
            raise UserError(f"--optimizer-args: {name} needs {key}; give it as {key}=VALUE")


def is_kernel(params: Any) -> Any:
    """Returns a pytree of booleans: True for the kernels, which have more than one axis."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _is_on(value: Any) -> bool:
    """Whether a hyperparameter does anything; a traced one might."""
    return isinstance(value, jax.core.Tracer) or bool(value != 0)


def _first(names: tuple[str, ...], parameters: Mapping[str, Any]) -> str | None:
    return next((name for name in names if name in parameters), None)


def _give_learning_rate(
    optimizer: str,
    parameters: Mapping[str, inspect.Parameter],
    args: dict[str, Any],
    schedule: optax.Schedule,
    peak: Any,
    constant: bool,
) -> list[optax.GradientTransformation]:
    """Adds the learning rate to `args`; returns what must follow the optimizer for its schedule."""
    name, way = _first(_RATES, parameters), optimizer_defaults.get(optimizer).schedule
    if name is not None:
        args[name] = schedule if way == "passed" else peak
    if way == "passed" or constant:
        return []
    if way == "refused":
        raise UserError(
            f"optimizer {optimizer} replaces a schedule: give --schedule constant --warmup 0"
        )
    return [optax.scale_by_schedule(lambda step: schedule(step) / peak)]


def _give_weight_decay(
    optimizer: str,
    parameters: Mapping[str, inspect.Parameter],
    factory: Factory,
    args: dict[str, Any],
    decay: Any,
) -> tuple[list[optax.GradientTransformation], Factory]:
    """Adds the weight decay to `args`; returns what comes before the optimizer, and its factory."""
    name, mask = _first(_DECAYS, parameters), _first(_MASKS, parameters)
    way = optimizer_defaults.get(optimizer).decay
    added = [optax.add_decayed_weights(decay, is_kernel)] if _is_on(decay) else []
    if name is None or way == "separate":
        return added, factory
    none = None if parameters[name].default is None else 0.0
    if way == "gradient" or not added:
        args[name] = none
        return added, factory
    if mask is not None:
        args |= {name: decay, mask: is_kernel}
        return [], factory

    def split(**args: Any) -> optax.GradientTransformation:
        # Without a mask it decays all parameters, so the kernels get an optimizer of their own.
        return optax.partition(
            {True: factory(**args, **{name: decay}), False: factory(**args, **{name: none})},
            is_kernel,
        )

    return [], split
