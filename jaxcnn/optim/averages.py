"""Weight averaging, and evaluation parameters: those that an optimizer is evaluated at."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from jaxcnn.optim.extra_args import Normalized, SlowParamsState, normalize
from jaxcnn.optim.frozen import FrozenState, merged, trainable


class AverageState(NamedTuple):
    """The state of `averaged`.

    Attributes:
        inner: the state of the optimizer itself.
        total: weighted sum of the parameters after every step.
        weight: float32[], the sum of the weights.
    """

    inner: Any
    total: Any
    weight: jax.Array


def averaged(tx: optax.GradientTransformation, decay: Any) -> Normalized:
    """Returns an optimizer that is evaluated at an exponential moving average of its parameters.

    The average is without bias towards zero: its weights sum to one at every step.

    Args:
        tx: the optimizer.
        decay: of the average, per step, 0..1; float32[] if traced.
    """
    tx = normalize(tx)

    def init(params: Any) -> AverageState:
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AverageState(tx.init(params), zeros, jnp.zeros((), jnp.float32))

    def update(
        updates: Any, state: AverageState, params: Any = None, **extra: Any
    ) -> tuple[Any, AverageState]:
        updates, inner = tx.update(updates, state.inner, params, **extra)
        latest = eval_params(inner, optax.apply_updates(params, updates))
        rest = jnp.asarray(1.0 - decay, jnp.float32)
        total = jax.tree.map(
            lambda sum_, leaf: (1.0 - rest) * sum_ + rest * leaf, state.total, latest
        )
        return updates, AverageState(inner, total, (1.0 - rest) * state.weight + rest)

    return Normalized(init, update)


def eval_params(opt_state: Any, params: Any) -> Any:
    """Returns the evaluation parameters, of an optimizer by itself or anywhere in a chain.

    Args:
        opt_state: of the optimizer.
        params: the trained parameters.

    Returns:
        A pytree like `params`: the averages of the schedule-free family and of `averaged`, the slow
        parameters of lookahead, the centre of sharpness-aware minimization; else `params`. Those
        of frozen parameters are the parameters.
    """
    kinds: tuple[type, ...] = (contrib.ScheduleFreeState, contrib.SAMState)
    kinds += (SlowParamsState, AverageState, FrozenState)

    def known(node: Any) -> bool:
        return isinstance(node, kinds)

    for node in jax.tree.leaves(opt_state, is_leaf=known):
        if isinstance(node, FrozenState):
            part = eval_params(node.inner, trainable(params, node.paths))
            params = merged(part, params)
        elif isinstance(node, SlowParamsState):
            params = node.slow
        elif isinstance(node, AverageState):
            started = node.weight > 0
            weight = jnp.where(started, node.weight, 1.0)
            params = jax.tree.map(
                lambda total, leaf, w=weight, s=started: jnp.where(s, total / w, leaf),
                node.total,
                params,
            )
        elif isinstance(node, contrib.ScheduleFreeState):
            params = _schedule_free(node, params)
        elif isinstance(node, contrib.SAMState):
            if node.cache is not None:  # between its two steps, params are the adversarial ones
                centred = node.steps_since_sync == 0
                params = jax.tree.map(
                    lambda leaf, cached, c=centred: jnp.where(c, leaf, cached), params, node.cache
                )
            params = eval_params(node.opt_state, params)
    return params


def _schedule_free(state: Any, params: Any) -> Any:
    """Undoes the interpolation y = b1 x + (1 - b1) z, https://arxiv.org/abs/2405.15682, eq. 1.

    Parameters that the transformation was masked off stay as they are.
    """

    def masked(leaf: Any) -> bool:
        return isinstance(leaf, optax.MaskedNode)

    return jax.tree.map(
        lambda z, y: y if masked(z) else (y - (1.0 - state.b1) * z) / state.b1,
        state.z,
        params,
        is_leaf=masked,
    )
