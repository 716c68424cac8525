"""The updates of an optimizer, one gradient after the other."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import optax


def updates_of(
    tx: optax.GradientTransformation, params: Any, grads: Sequence[Any], **extra: Any
) -> list[Any]:
    """The updates for one gradient after the other, in one program."""

    def step(carry: Any, grad: Any) -> Any:
        params, opt_state = carry
        updates, opt_state = tx.update(grad, opt_state, params, **extra)
        return (optax.apply_updates(params, updates), opt_state), updates

    def run(params: Any, grads: Any) -> Any:
        return jax.lax.scan(step, (params, tx.init(params)), grads)[1]

    stacked = jax.jit(run)(params, jax.tree.map(lambda *leaves: np.stack(leaves), *grads))
    stacked = jax.tree.map(np.asarray, stacked)
    return [jax.tree.map(lambda leaf, i=index: leaf[i], stacked) for index in range(len(grads))]
