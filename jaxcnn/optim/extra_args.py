"""Extra arguments: what a training step passes to an optimizer's `update` beside the gradient.

In optax's protocol, `update(updates, state, params, **extra_args)`, a transformation takes those
that it needs and ignores the others. So a training step passes all of `NAMES` to every optimizer.
Some refuse what they do not need (`optax.contrib.sam`, and line searches such as `optax.lbfgs`),
and `optax.lookahead` works on a pair of parameters. Those that are made by name are adapted where
they are made, in `jaxcnn.optim.named`; those that a user gives, by `normalize`.
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxcnn.errors import UserError

# What a training step passes:
#   value     float32[], the batch's loss
#   grad      the gradient before any transformation
#   value_fn  params -> the same batch's loss, with the same dropout and BatchNorm state
#   obj_fn    the same, which can also be differentiated in forward mode
#   grad_fn   (params, ...) -> the gradient of value_fn
#   key       PRNG key[], another one every step
NAMES = ("value", "grad", "value_fn", "obj_fn", "grad_fn", "key")
# All that optax's line searches and its sharpness-aware minimization accept.
LINE_SEARCH = ("value", "grad", "value_fn")
SHARPNESS_AWARE = ("grad_fn",)


class Normalized(optax.GradientTransformationExtraArgs):
    """An optimizer of the parameters themselves whose `update` accepts every extra argument."""


def normalize(tx: optax.GradientTransformation) -> Normalized:
    """Returns an optimizer as training steps use it, whatever its `update` accepts.

    What that is can depend on the parameters, so it is found out when `init` or `update` is traced.
    An optimizer that is normalized already, as those of `make_optimizer` are, is returned as it is.

    Args:
        tx: the optimizer; its `update` may refuse extra arguments or work on
            `optax.LookaheadParams`.

    Returns:
        The optimizer. Tracing it raises `UserError` where a training step cannot give it what it
        needs. Its state is that of `tx`, or a `SlowParamsState`.

    Raises:
        TypeError: it has no `init` and `update`.
    """
    if isinstance(tx, Normalized):
        return tx
    if not (callable(getattr(tx, "init", None)) and callable(getattr(tx, "update", None))):
        raise TypeError(f"{type(tx).__name__} is not an optax.GradientTransformation")

    def init(params: Any) -> Any:
        return _adapt(tx, params).init(params)

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        return _adapt(tx, params).update(updates, state, params, **extra)

    return Normalized(init, update)


def check_update(tx: optax.GradientTransformation, params: Any) -> None:
    """Traces an optimizer's first step, without running it.

    Args:
        tx: the optimizer.
        params: of the network; only shapes and dtypes matter.

    Raises:
        UserError: it cannot be traced; the message says why.
    """
    try:
        jax.eval_shape(functools.partial(_first_update, normalize(tx)), params)
    except UserError:
        raise
    except Exception as error:  # whatever it is, it is the optimizer's
        raise _unusable(error) from error


def accept_only(
    tx: optax.GradientTransformation, names: Sequence[str]
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer that passes on some extra arguments and drops all others.

    Args:
        tx: the optimizer.
        names: of the extra arguments that its `update` accepts.
    """

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> tuple[Any, Any]:
        accepted = {name: value for name, value in extra.items() if name in names}
        return tx.update(updates, state, params, **accepted)

    return optax.GradientTransformationExtraArgs(tx.init, update)


class SlowParamsState(NamedTuple):
    """The state of `optax.lookahead`, with the slow parameters."""

    inner: Any
    slow: Any


def with_slow_params(
    tx: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer of the fast parameters, with the slow ones in its state.

    Args:
        tx: `optax.lookahead`, or a chain with it: an optimizer of `optax.LookaheadParams`.
    """
    tx = optax.with_extra_args_support(tx)

    def init(params: Any) -> SlowParamsState:
        return SlowParamsState(tx.init(optax.LookaheadParams(params, params)), params)

    def update(
        updates: Any, state: SlowParamsState, params: Any = None, **extra: Any
    ) -> tuple[Any, SlowParamsState]:
        pair = optax.LookaheadParams(params, state.slow)
        updates, inner = tx.update(updates, state.inner, pair, **extra)
        slow = optax.apply_updates(state.slow, updates.slow)
        return updates.fast, SlowParamsState(inner, slow)

    return optax.GradientTransformationExtraArgs(init, update)


def _adapt(tx: Any, params: Any) -> optax.GradientTransformationExtraArgs:
    """Returns a user's optimizer with the extra arguments that its `update` accepts.

    First those in its signature are tried: all, if it ends in `**extra_args`. Where these are
    handed on to a transformation that refuses some: those of line searches, each alone, none.
    """
    if _looks_ahead(tx, params):
        tx = with_slow_params(tx)
    parameters = inspect.signature(tx.update).parameters
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    in_signature = tuple(name for name in NAMES if open_ended or name in parameters)
    errors = []
    for names in (in_signature, LINE_SEARCH, *((name,) for name in NAMES), ()):
        adapted = accept_only(tx, names)
        try:
            jax.eval_shape(functools.partial(_first_update, adapted), params)
        except Exception as error:  # whatever it is, it is the optimizer's
            errors.append(error)
        else:
            return adapted
    raise _unusable(errors[0]) from errors[0]


def _looks_ahead(tx: Any, params: Any) -> bool:
    """Whether it works on `optax.LookaheadParams`: `optax.lookahead`'s state lies in its own."""
    kinds = (optax.LookaheadState, SlowParamsState)
    try:
        state = jax.eval_shape(tx.init, optax.LookaheadParams(params, params))
    except Exception:  # what it does take is found out by tracing its update
        return False
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, kinds))
    return any(isinstance(node, optax.LookaheadState) for node in nodes)


def _first_update(tx: optax.GradientTransformationExtraArgs, params: Any) -> Any:
    """Updates with every extra argument, of the types that a training step passes."""

    def value_fn(params: Any) -> jax.Array:
        return sum((jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params)), jnp.zeros(()))

    return tx.update(
        params,
        tx.init(params),
        params,
        value=jnp.zeros(()),
        grad=params,
        value_fn=value_fn,
        obj_fn=value_fn,
        grad_fn=lambda params, *_: params,
        key=jax.random.key(0),
    )


def _unusable(error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:300].rstrip(".")
    return UserError(
        f"the optimizer cannot be used with this training step: {reason}; take another one, or let "
        "its update accept **extra_args"
    )
