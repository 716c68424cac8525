"""A new optimizer in a few lines, compared with SGD and AdamW on MNIST.

    python experiments/my_optimizer.py

About a minute on two CPU cores.
"""

import sys
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcnn.cli.study import main


def soft_sign_sgd(
    learning_rate: optax.ScalarOrSchedule, momentum: float = 0.9, softness: float = 0.1
) -> optax.GradientTransformation:
    """Moves every parameter by its momentum over the momentum's typical size in the same array."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        def soften(leaf: jax.Array) -> jax.Array:
            return leaf / (jnp.abs(leaf) + softness * jnp.sqrt(jnp.mean(leaf**2)) + 1e-12)

        return jax.tree.map(soften, updates), state

    soft_sign = optax.GradientTransformation(lambda params: optax.EmptyState(), update)
    return optax.chain(
        optax.trace(momentum), soft_sign, optax.scale_by_learning_rate(learning_rate)
    )


if __name__ == "__main__":
    compared = "--optimizers sgd adamw my_optimizer:soft_sign_sgd"
    main([*f"{compared} --seeds 3 --tune-seeds 1 --epochs 2".split(), *sys.argv[1:]])
