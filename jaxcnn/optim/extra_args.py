"""What an optimizer asks of a training step beside the gradient, and where it is to be evaluated.

Optax's transformations share one signature, `update(updates, state, params, **extra)`, but need
different extra arguments, and most refuse those that they do not know. So a step finds out, while
it is traced, and gives each what it asks for.
"""

import contextlib
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcnn.errors import UserError

# In the order in which they are tried:
#   value     float32[], the batch's loss
#   grad      the gradient before any transformation
#   value_fn  params -> the same batch's loss, with the same dropout and BatchNorm state
#   obj_fn    the same, which can also be differentiated forwards
#   grad_fn   (params, ...) -> the gradient of value_fn
#   key       PRNG key[], another one every step
NAMES = ("value", "grad", "value_fn", "obj_fn", "grad_fn", "key")


def extra_arguments(tx: optax.GradientTransformation, params: Any) -> tuple[str, ...]:
    """Returns which of `NAMES` the optimizer's `update` asks for.

    Those that its signature names, or those of the transformations within it; where that is not
    the whole truth, the fewest with which `update` can be traced.

    Args:
        tx: the optimizer.
        params: of the network; only shapes and dtypes matter.

    Raises:
        UserError: it can be traced with none of them; the message says why not.
    """
    asked = tuple(name for name in NAMES if name in _parameters(tx))
    subsets = (
        names for size in range(len(NAMES) + 1) for names in itertools.combinations(NAMES, size)
    )
    reason = ""
    for names in itertools.chain([asked], subsets):
        try:
            jax.eval_shape(functools.partial(_probe, tx, names), params)
        except Exception as error:  # whatever it is, it is the optimizer's
            reason = reason or " ".join(str(error).split())[:300].rstrip(".")
        else:
            return names
    raise UserError(
        f"the optimizer cannot be used with this training step: {reason}; take another one"
    )


def with_plain_params(tx: optax.GradientTransformation) -> optax.GradientTransformation:
    """Returns an optimizer of the parameters themselves.

    `optax.lookahead` works on a pair of fast and slow ones; then the slow ones become part of the
    optimizer's state. All others are returned as they are.
    """
    if not _wants_pair(tx):
        return tx

    def init(params: Any) -> SlowParamsState:
        return SlowParamsState(tx.init(optax.LookaheadParams(params, params)), params)

    def update(
        updates: Any, state: SlowParamsState, params: Any = None, **extra: Any
    ) -> tuple[Any, SlowParamsState]:
        pair = optax.LookaheadParams(params, state.slow)
        inner = optax.with_extra_args_support(tx)
        updates, inner_state = inner.update(updates, state.inner, pair, **extra)
        slow = optax.apply_updates(state.slow, updates.slow)
        return updates.fast, SlowParamsState(inner_state, slow)

    # For `_updates`: optax takes transformations apart, and only their functions stay.
    update.plain = True  # type: ignore[attr-defined]
    return optax.GradientTransformationExtraArgs(init, update)


class SlowParamsState(NamedTuple):
    """The state of `optax.lookahead`, with the slow parameters."""

    inner: Any
    slow: Any


def _probe(tx: optax.GradientTransformation, names: tuple[str, ...], params: Any) -> Any:
    """Runs an update with stand-ins for the arguments of the given names."""

    def value_fn(params: Any) -> jax.Array:
        return sum((jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params)), jnp.zeros(()))

    offers = {
        "value": jnp.zeros(()),
        "grad": params,
        "value_fn": value_fn,
        "obj_fn": value_fn,
        "grad_fn": lambda params, *_: params,
        "key": jax.random.key(0),
    }
    extra = {name: offers[name] for name in names}
    return tx.update(params, tx.init(params), params, **extra)


def _parameters(tx: optax.GradientTransformation) -> set[str]:
    """Returns the names of all parameters of `update` and of the updates within it."""
    return {
        name for function in _updates(tx, set()) for name in inspect.signature(function).parameters
    }


def _wants_pair(tx: optax.GradientTransformation) -> bool:
    """Whether it works on `optax.LookaheadParams`."""
    annotations = [
        inspect.signature(function).parameters["params"].annotation
        for function in _updates(tx, set(), into_plain=False)
        if "params" in inspect.signature(function).parameters
    ]
    return optax.LookaheadParams in annotations or "LookaheadParams" in annotations


def _updates(value: Any, seen: set[int], into_plain: bool = True) -> Iterator[Callable[..., Any]]:
    """Yields a transformation's `update` and those of the transformations that it closes over.

    Without `into_plain`, none of those within `with_plain_params`.
    """
    if id(value) in seen or (getattr(value, "plain", False) and not into_plain):
        return
    seen.add(id(value))
    if isinstance(value, optax.GradientTransformation):
        yield from _updates(value.update, seen, into_plain)
    elif isinstance(value, functools.partial):
        yield from _updates(value.func, seen, into_plain)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _updates(item, seen, into_plain)
    elif isinstance(value, dict):
        yield from _updates(list(value.values()), seen, into_plain)
    elif inspect.ismethod(value):
        yield from _updates(value.__func__, seen, into_plain)
        yield from _updates(list(vars(value.__self__).values()), seen, into_plain)
    elif inspect.isfunction(value):
        if "state" in inspect.signature(value).parameters:
            yield value
        for cell in value.__closure__ or ():
            with contextlib.suppress(ValueError):  # a cell that is still empty
                yield from _updates(cell.cell_contents, seen, into_plain)
