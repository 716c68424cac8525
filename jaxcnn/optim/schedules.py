"""The learning rate as a function of the step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcnn.recipes.recipe import Recipe


def make_schedule(recipe: Recipe, total_steps: int, *, learning_rate: Any = None) -> optax.Schedule:
    """Returns the learning rate as a function of the step.

    It rises linearly over the first `recipe.warmup` of the steps. Over the remaining steps:

    - "constant": it stays at the peak;
    - "cosine": it falls to zero along half a cosine (https://arxiv.org/abs/1608.03983);
    - "linear": it falls to zero along a line;
    - "trapezoid": it stays, and falls to zero along a line over the last fifth
      (https://arxiv.org/abs/2405.18392);
    - "exponential": it falls by a constant factor per step, to a hundredth of the peak;
    - "steps": it is divided by ten after a half and after three quarters.

    "onecycle" (https://arxiv.org/abs/1708.07120) rises from a 25th of the peak over
    `recipe.warmup` of the steps, or 30 % of them if that is 0, and falls along half a cosine to a
    250,000th of the peak.

    Args:
        recipe: with `learning_rate`, `schedule` and `warmup`.
        total_steps: of the whole run.
        learning_rate: float32[], the peak, in place of the recipe's.

    Returns:
        `schedule(step)`: int32[], counted from 0, -> float32[], the learning rate of that step.
    """
    given = recipe.learning_rate if learning_rate is None else learning_rate

    def peak() -> jax.Array:
        # Hidden from the compiler, which rounds differently where it knows the number: so a run by
        # itself is bit-identical to one in an ensemble, where the number is an argument.
        return jax.lax.optimization_barrier(jnp.asarray(given, jnp.float32))

    share = recipe.warmup
    if recipe.schedule == "onecycle":
        unit = optax.cosine_onecycle_schedule(max(2, total_steps), 1.0, pct_start=share or 0.3)
        return lambda step: peak() * unit(step)
    warmup_steps = round(share * total_steps)
    rest = max(1, total_steps - warmup_steps)
    # With a peak of one, scaled at the end, so that the peak may be traced.
    after = {
        "constant": optax.constant_schedule(1.0),
        "cosine": optax.cosine_decay_schedule(1.0, rest),
        "linear": optax.linear_schedule(1.0, 0.0, rest),
        "trapezoid": optax.linear_schedule(1.0, 0.0, -(-rest // 5), rest - -(-rest // 5)),
        "exponential": optax.exponential_decay(1.0, rest, 0.01),
        "steps": optax.piecewise_constant_schedule(1.0, {rest // 2: 0.1, rest * 3 // 4: 0.1}),
    }[recipe.schedule]
    if warmup_steps:
        # From 1 / warmup_steps rather than zero, so that the first step counts.
        rise = optax.linear_schedule(1 / warmup_steps, 1.0, warmup_steps - 1)
        after = optax.join_schedules([rise, after], [warmup_steps])
    return lambda step: peak() * jnp.asarray(after(step), jnp.float32)
