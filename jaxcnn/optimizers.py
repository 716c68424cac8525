"""Optimizers by name: any of optax and optax.contrib, or the user's own.

Any `optax.GradientTransformation` can also be given to `jaxcnn.training.fit` as `tx`.
"""

import difflib
import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxcnn import catalog, demands
from jaxcnn.errors import UserError
from jaxcnn.recipes import Recipe
from jaxcnn.schedules import make_schedule

Factory = Callable[..., optax.GradientTransformation]

# What may be traced, so that many runs with different values share a program. So may the
# optimizer's own numeric arguments.
HYPERPARAMETERS = ("learning_rate", "weight_decay", "clip", "ema")

_RATES = ("learning_rate", "max_learning_rate")
_DECAYS = ("weight_decay", "weight_decay_rate")
_MASKS = ("mask", "weight_decay_mask")
# Their weight decay has no mask, and one number for all parameters keeps them from being split.
_GLOBAL = ("prodigy", "dadapt_adamw", "momo", "momo_adam")


def make_optimizer(
    recipe: Recipe,
    total_steps: int,
    *,
    key: jax.Array | None = None,
    hyperparameters: Mapping[str, Any] | None = None,
) -> optax.GradientTransformation:
    """Returns the recipe's optimizer with its schedule, weight decay, clipping and averaging.

    Weight decay leaves biases and BatchNorm's parameters alone. It is as the optimizer defines it
    where it has a weight decay of its own, decoupled for most of those; else it is coupled, added
    to the gradient, as PyTorch does for sgd and adam.

    Args:
        recipe: with `optimizer` and its hyperparameters.
        total_steps: of the whole run.
        key: PRNG key[], for optimizers that draw random numbers.
        hyperparameters: values, traced perhaps, that replace those of the recipe: of
            `HYPERPARAMETERS` and of the optimizer's own numeric arguments, float32[] each.

    Raises:
        UserError: the optimizer, an argument or the combination cannot be used.
    """
    values = {name: getattr(recipe, name) for name in HYPERPARAMETERS}
    args = dict(recipe.optimizer_args)
    if recipe.optimizer in ("sgd", "rmsprop"):
        args = {"momentum": recipe.momentum, "nesterov": recipe.nesterov} | args
    for name, value in (hyperparameters or {}).items():
        (values if name in values else args)[name] = value
    factory = find(recipe.optimizer)
    parameters = _signature(recipe.optimizer, factory)
    check_args(recipe.optimizer, parameters, args)
    if "momentum" in args and not _is_on(args["momentum"]):
        # None is no momentum, and less to keep, where it is the default.
        args["momentum"] = None if parameters["momentum"].default is None else 0.0
    if "key" in parameters:
        args.setdefault("key", jax.random.key(0) if key is None else key)

    schedule = make_schedule(recipe, total_steps, learning_rate=values["learning_rate"])
    scale = _give_learning_rate(recipe, parameters, args, schedule, values["learning_rate"])
    before, make = _give_weight_decay(recipe, parameters, factory, args, values["weight_decay"])
    if _is_on(values["clip"]):
        clip = optax.clip_by_global_norm(jnp.where(values["clip"] > 0, values["clip"], jnp.inf))
        if factory is _sam:  # which clips what it steps with, not what it ascends with
            args["clip"] = clip
        else:
            before.insert(0, clip)
    if recipe.optimizer == "lbfgs" and before:
        raise UserError(
            "optimizer lbfgs searches along a direction of its own: give --clip 0 --weight-decay 0"
        )
    try:
        tx = make(**args)
        if not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
            raise TypeError(f"it returns {type(tx).__name__}, no optax.GradientTransformation")
        tx = demands.with_plain_params(tx)
    except UserError:
        raise
    except Exception as error:  # whatever it is, it is about the arguments
        reason = " ".join(str(error).split()).rstrip(".")
        raise UserError(
            f"optimizer {recipe.optimizer} cannot be made: {reason}; change --optimizer-args or "
            "the hyperparameter it names"
        ) from error
    if before or scale:
        tx = optax.chain(*before, tx, *scale)
    return demands.averaged(tx, values["ema"]) if _is_on(values["ema"]) else tx


def find(name: str) -> Factory:
    """Returns the factory of an optimizer.

    Args:
        name: of one in `optax` or `optax.contrib`, or "module:factory".

    Raises:
        UserError: the module cannot be imported or has no such factory; or a file alone names it,
            see `jaxcnn.catalog.trust`.
    """
    if ":" not in name:
        factory: Factory = (
            _PRESETS.get(name) or getattr(optax, name, None) or getattr(contrib, name)
        )
        return factory
    if not catalog.is_trusted(name):
        raise UserError(
            f"the optimizer {name} is code from outside jaxcnn, which runs only if you name it "
            f"yourself: give --optimizer {name} as well, or call jaxcnn.catalog.trust({name!r})"
        )
    module_name, attribute = name.split(":")
    try:
        found = getattr(_import(module_name), attribute, None)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"--optimizer {name}: cannot import {module_name} ({reason}); it must be importable "
            "from where the command runs, or from a folder in PYTHONPATH"
        ) from error
    if not callable(found):
        raise UserError(
            f"--optimizer {name}: {module_name} has no function {attribute}; give one that returns "
            "an optax.GradientTransformation"
        )
    return found


def _import(name: str) -> ModuleType:
    """Imports a module as `python -m` does: the present folder comes first.

    For a script Python looks into the script's folder alone, which has modules of its own.
    """
    here = str(Path.cwd())
    if sys.flags.safe_path or not PathFinder.find_spec(name.partition(".")[0], [here]):
        return importlib.import_module(name)
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(here)


def code(name: str) -> str:
    """Returns the file of an optimizer of one's own; nothing for one of optax."""
    if not catalog.is_own(name):
        return ""
    find(name)
    return str(getattr(sys.modules[name.split(":")[0]], "__file__", None) or "")


def code_digest(name: str) -> str:
    """Returns the SHA-256 of the source of the module that an optimizer of one's own is in.

    Args:
        name: "module:factory".
    """
    try:
        code = inspect.getsource(sys.modules[find(name).__module__])
    except (OSError, TypeError, AttributeError, KeyError):
        code = ""
    return hashlib.sha256(code.encode()).hexdigest()


def check_args(
    name: str, parameters: Mapping[str, inspect.Parameter], args: Mapping[str, Any]
) -> None:
    """Compares arguments with the parameters of an optimizer.

    Raises:
        UserError: one is unknown, missing, or text where a number is wanted.
    """
    own = ":" in name
    given = {*_RATES, "key"} | (set() if name == "mechanize" else {*_DECAYS, *_MASKS})
    given |= set() if own else {"seed"}
    given |= {"clip"} if name == "sam" else set()
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
        numeric = isinstance(default, (int, float)) or (default is None and not own)
        if isinstance(value, str) and numeric and "str" not in str(parameters[key].annotation):
            raise UserError(f"--optimizer-args {key}: {name} takes a number here, got {value!r}")
    if own and not open_ended and _first(_RATES, parameters) is None:
        raise UserError(
            f"--optimizer {name}: its function has no parameter learning_rate; give it one"
        )
    for key, parameter in parameters.items():
        needed = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if needed and key not in args and key not in given:
            raise UserError(f"--optimizer-args: {name} needs {key}; give it as {key}=VALUE")


def is_kernel(params: Any) -> Any:
    """Returns a tree of booleans: True for the kernels, which have more than one axis."""
    return jax.tree.map(lambda leaf: leaf.ndim > 1, params)


def _signature(name: str, factory: Factory) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):
        raise UserError(
            f"--optimizer {name} does not say what it takes: give a Python function"
        ) from None


def _is_on(value: Any) -> bool:
    """Whether a hyperparameter does anything; a traced one might."""
    return isinstance(value, jax.core.Tracer) or bool(value != 0)


def _first(names: tuple[str, ...], parameters: Mapping[str, Any]) -> str | None:
    return next((name for name in names if name in parameters), None)


def _give_learning_rate(
    recipe: Recipe,
    parameters: Mapping[str, inspect.Parameter],
    args: dict[str, Any],
    schedule: optax.Schedule,
    peak: Any,
) -> list[optax.GradientTransformation]:
    """Adds the learning rate to `args`; returns what else must follow the optimizer for it."""
    name = _first(_RATES, parameters)
    if name is not None and "Callable" in str(parameters[name].annotation):
        args[name] = schedule
        return []
    if name is not None:
        args[name] = peak
    if recipe.schedule == "constant" and recipe.warmup == 0:
        return []
    if recipe.optimizer.startswith("schedule_free"):
        raise UserError(
            f"optimizer {recipe.optimizer} replaces a schedule: give --schedule constant --warmup 0"
        )
    # It takes a number only: its updates are scaled, which comes to the same.
    return [optax.scale_by_schedule(lambda step: schedule(step) / peak)]


def _give_weight_decay(
    recipe: Recipe,
    parameters: Mapping[str, inspect.Parameter],
    factory: Factory,
    args: dict[str, Any],
    decay: Any,
) -> tuple[list[optax.GradientTransformation], Factory]:
    """Adds the weight decay to `args`; returns what comes before the optimizer, and its factory."""
    name, mask = _first(_DECAYS, parameters), _first(_MASKS, parameters)
    if name is None or factory is _mechanize:
        return ([optax.add_decayed_weights(decay, is_kernel)] if _is_on(decay) else []), factory
    none = None if parameters[name].default is None else 0.0
    if not _is_on(decay):
        args[name] = none
        return [], factory
    if recipe.optimizer in _GLOBAL:
        args[name] = none
        return [optax.add_decayed_weights(decay, is_kernel)], factory
    if mask is not None:
        args |= {name: decay, mask: is_kernel}
        return [], factory

    def split(**args: Any) -> optax.GradientTransformation:
        # It would decay everything, so the kernels get an optimizer of their own.
        return optax.partition(
            {True: factory(**args, **{name: decay}), False: factory(**args, **{name: none})},
            is_kernel,
        )

    return [], split


def _inner(optimizer: str, learning_rate: Any, **more: Any) -> optax.GradientTransformation:
    """Returns an optimizer within another one, with what it takes of `more`."""
    if not isinstance(optimizer, str):
        return optimizer
    if ":" not in optimizer and optimizer not in catalog.OPTIMIZERS:
        raise UserError(f"--optimizer-args: optax has no optimizer {optimizer!r}; give sgd or adam")
    factory = find(optimizer)
    fixed = {"momentum": 0.9, "weight_decay": 0.0} if optimizer == "sgd" else {"weight_decay": 0.0}
    takes = _signature(optimizer, factory)
    return factory(learning_rate, **{k: v for k, v in (fixed | more).items() if k in takes})


def _lookahead(
    learning_rate: optax.ScalarOrSchedule,
    fast_optimizer: str = "sgd",
    sync_period: int = 5,
    slow_step_size: float = 0.5,
    reset_state: bool = False,
) -> optax.GradientTransformation:
    fast = _inner(fast_optimizer, learning_rate)
    return optax.lookahead(fast, sync_period, slow_step_size, reset_state)


def _sam(
    learning_rate: optax.ScalarOrSchedule,
    optimizer: str = "sgd",
    rho: float = 0.05,
    weight_decay: float = 0.0,
    mask: Any = None,
    clip: optax.GradientTransformation | None = None,
    sync_period: int = 2,
) -> optax.GradientTransformation:
    # Opaque: it takes both of its gradients on the same batch, within one step.
    inner = optax.chain(
        clip or optax.identity(),
        optax.add_decayed_weights(weight_decay, mask),
        _inner(optimizer, learning_rate),
    )
    adversary = optax.chain(contrib.normalize(), optax.sgd(rho))
    return contrib.sam(inner, adversary, sync_period=sync_period, opaque_mode=True)


def _schedule_free(
    learning_rate: optax.ScalarOrSchedule,
    base_optimizer: str = "sgd",
    b1: float = 0.9,
    weight_lr_power: float = 2.0,
) -> optax.GradientTransformation:
    # Its interpolation is the momentum, and needs none beside.
    base = _inner(base_optimizer, learning_rate, momentum=None, b1=0.0)
    return contrib.schedule_free(base, learning_rate, b1=b1, weight_lr_power=weight_lr_power)


def _mechanize(
    learning_rate: optax.ScalarOrSchedule,
    base_optimizer: str = "sgd",
    weight_decay: float = 0.01,
    eps: float = 1e-8,
    s_init: float = 1e-6,
    num_betas: int = 6,
) -> optax.GradientTransformation:
    base = _inner(base_optimizer, learning_rate)
    return contrib.mechanize(base, weight_decay, eps, s_init, num_betas)


def _reduce_on_plateau(
    learning_rate: optax.ScalarOrSchedule,
    optimizer: str = "sgd",
    factor: float = 0.5,
    patience: int = 5,
    rtol: float = 1e-4,
    atol: float = 0.0,
    cooldown: int = 0,
    accumulation_size: int = 200,
    min_scale: float = 0.0,
) -> optax.GradientTransformation:
    plateau = contrib.reduce_on_plateau(
        factor, patience, rtol, atol, cooldown, accumulation_size, min_scale
    )
    return optax.chain(_inner(optimizer, learning_rate), plateau)


def _sophia(
    learning_rate: optax.ScalarOrSchedule, key: jax.Array, **args: Any
) -> optax.GradientTransformation:
    hessian = contrib.hutchinson_estimator_diag_hessian(key)
    return contrib.sophia(learning_rate, **{"hessian_diagonal_fn": hessian} | args)


def _muon(learning_rate: optax.ScalarOrSchedule, **args: Any) -> optax.GradientTransformation:
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

    return contrib.muon(learning_rate, muon_weight_dimension_numbers=dimension_numbers, **args)


# What they take is what optax's take, and sophia's a key.
_muon.__signature__ = inspect.signature(contrib.muon)  # type: ignore[attr-defined]
_sophia.__signature__ = inspect.signature(contrib.sophia).replace(  # type: ignore[attr-defined]
    parameters=[
        *inspect.signature(contrib.sophia).parameters.values(),
        inspect.Parameter("key", inspect.Parameter.KEYWORD_ONLY),
    ]
)

# Optimizers that need more than numbers.
_PRESETS: dict[str, Factory] = {
    "lookahead": _lookahead,
    "mechanize": _mechanize,
    "muon": _muon,
    "reduce_on_plateau": _reduce_on_plateau,
    "sam": _sam,
    "schedule_free": _schedule_free,
    "sophia": _sophia,
}
