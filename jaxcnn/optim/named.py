"""Optimizer factories by name: of optax, optax.contrib or jaxcnn, or a user's "module:factory"."""

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jax
import optax
from optax import contrib

from jaxcnn.errors import UserError
from jaxcnn.optim import extra_args
from jaxcnn.optim.soap import soap
from jaxcnn.recipes import optimizer_defaults

Factory = Callable[..., optax.GradientTransformation]


def find_factory(name: str) -> Factory:
    """Returns the factory of an optimizer.

    Args:
        name: of one in the catalog, `jaxcnn.recipes.optimizer_defaults`, or "module:factory".

    Raises:
        UserError: the module cannot be imported or has no such factory; or a file alone names it,
            see `jaxcnn.recipes.optimizer_defaults.trust`.
    """
    if ":" not in name:
        factory: Factory = (
            _PRESETS.get(name) or getattr(optax, name, None) or getattr(contrib, name)
        )
        return factory
    if not optimizer_defaults.is_trusted(name):
        raise UserError(
            f"the optimizer {name} is code from outside jaxcnn, which runs only if you name it "
            f"yourself: give --optimizer {name} as well, or call "
            f"jaxcnn.recipes.optimizer_defaults.trust({name!r})"
        )
    return find_function("--optimizer", name, "that returns an optax.GradientTransformation")


def find_function(
    flag: str, name: str, wanted: str, kind: Literal["function", "Class"] = "function"
) -> Callable[..., Any]:
    """Imports a user-defined function or class that the caller is allowed to run.

    Args:
        flag: that names it, for errors.
        name: "module:function", or "module:Class".
        wanted: which function to give, for errors: "that returns ...".
        kind: which of the two it is, for errors.

    Raises:
        UserError: the name has another form, or the module cannot be imported or has no such
            function.
    """
    if not optimizer_defaults.is_own(name):
        raise UserError(f"{flag} takes module:{kind}, got {name!r}")
    module_name, attribute = name.split(":")
    try:
        found = getattr(import_from_here(module_name), attribute, None)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"{flag} {name}: cannot import {module_name} ({reason}); it must be importable "
            "from where the command runs, or from a folder in PYTHONPATH"
        ) from error
    if not callable(found):
        raise UserError(
            f"{flag} {name}: {module_name} has no {kind.lower()} {attribute}; give one {wanted}"
        )
    return found


def import_from_here(name: str) -> ModuleType:
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


def source_file(name: str) -> str:
    """Returns the file of a user-defined optimizer, or nothing for one of optax."""
    if not optimizer_defaults.is_own(name):
        return ""
    find_factory(name)
    return str(getattr(sys.modules[name.split(":")[0]], "__file__", None) or "")


def signature(name: str, factory: Factory) -> Mapping[str, inspect.Parameter]:
    """Returns the parameters of an optimizer's factory by name.

    Args:
        name: of the optimizer, for the error message.
        factory: see `find_factory`.

    Raises:
        UserError: it has no signature.
    """
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):
        raise UserError(
            f"--optimizer {name} has no signature that can be read: give a Python function"
        ) from None


def _inner(optimizer: str, learning_rate: Any, **more: Any) -> optax.GradientTransformation:
    """Returns an optimizer within another one, with those of `more` that it takes."""
    if not isinstance(optimizer, str):
        return optimizer
    if ":" not in optimizer and optimizer not in optimizer_defaults.OPTIMIZERS:
        raise UserError(f"--optimizer-args: optax has no optimizer {optimizer!r}; give sgd or adam")
    factory = find_factory(optimizer)
    fixed = {"momentum": 0.9, "weight_decay": 0.0} if optimizer == "sgd" else {"weight_decay": 0.0}
    takes = signature(optimizer, factory)
    tx = factory(learning_rate, **{k: v for k, v in (fixed | more).items() if k in takes})
    return extra_args.normalize(tx) if optimizer_defaults.is_own(optimizer) else tx


def _lookahead(
    learning_rate: optax.ScalarOrSchedule,
    fast_optimizer: str = "sgd",
    sync_period: int = 5,
    slow_step_size: float = 0.5,
    reset_state: bool = False,
) -> optax.GradientTransformation:
    fast = _inner(fast_optimizer, learning_rate)
    ahead = optax.lookahead(fast, sync_period, slow_step_size, reset_state)
    return extra_args.with_slow_params(ahead)


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
    tx = contrib.sam(inner, adversary, sync_period=sync_period, opaque_mode=True)
    return extra_args.accept_only(tx, extra_args.SHARPNESS_AWARE)


@functools.wraps(optax.lbfgs)
def _lbfgs(*args: Any, **kwargs: Any) -> optax.GradientTransformation:
    return extra_args.accept_only(optax.lbfgs(*args, **kwargs), extra_args.LINE_SEARCH)


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


def _dimension_numbers(params: Any) -> Any:
    """Returns how muon sees each kernel as a matrix; what has no such numbers, it hands to Adam."""

    def numbers(leaf: jax.Array) -> contrib.MuonDimensionNumbers | None:
        # Of a convolution kernel, (KH, KW, Cin) are mapped from, Cout is mapped to.
        if leaf.ndim > 1:
            return contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)
        return None

    return jax.tree.map(numbers, params)


# Optimizers that need more than numbers, and one that optax does not have.
_PRESETS: dict[str, Factory] = {
    "lbfgs": _lbfgs,
    "lookahead": _lookahead,
    "mechanize": _mechanize,
    "muon": functools.partial(contrib.muon, muon_weight_dimension_numbers=_dimension_numbers),
    "reduce_on_plateau": _reduce_on_plateau,
    "sam": _sam,
    "schedule_free": _schedule_free,
    "soap": soap,
}
