"""The state of a training run: a tree of arrays, and nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxcnn.optim.averages import eval_params
from jaxcnn.optim.extra_args import normalize


class TrainState(flax.struct.PyTreeNode):
    """All that changes while a network trains.

    It holds arrays only, so it can be mapped, sharded, donated and saved.

    Attributes:
        step: int32[], optimizer steps taken.
        params: the network's parameters.
        batch_stats: BatchNorm's running statistics; empty for a network without.
        opt_state: of the optimizer.
        key: PRNG key[], never changed; what a step draws depends on it and on `step`.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any
    key: jax.Array

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes, with the parameters that are trained."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def eval_variables(self) -> dict[str, Any]:
        """The same with the parameters that the optimizer says to evaluate at.

        BatchNorm's running statistics are those of the parameters that are trained.
        """
        params = eval_params(self.opt_state, self.params)
        return {"params": params, "batch_stats": self.batch_stats}


def init_state(
    key: jax.Array,
    model: nn.Module,
    tx: optax.GradientTransformation,
    input_shape: Sequence[int],
    start: Mapping[str, Any] | None = None,
) -> TrainState:
    """Initialises a network and its optimizer.

    Args:
        key: PRNG key[]; the same key gives the same state.
        model: the network.
        tx: the optimizer.
        input_shape: of one image, (H, W, C).
        start: arrays to begin with, by their path in the variables, "params/conv1/kernel" say;
            the others are random.
    """

    def build(key: jax.Array, given: dict[str, Any]) -> TrainState:
        params_key, step_key = jax.random.split(key)
        variables = model.init(params_key, jnp.zeros((1, *input_shape), jnp.float32))
        if given:
            variables = unflatten_dict(flatten_dict(dict(variables), sep="/") | given, sep="/")
        start = TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=normalize(tx).init(variables["params"]),
            key=step_key,
        )
        # Some optimizers start from weakly typed numbers, and steps return strongly typed ones: a
        # second program would be compiled for the second step.
        return jax.tree.map(lambda leaf: jax.lax.convert_element_type(leaf, leaf.dtype), start)

    # One program rather than a hundred small ones, each compiled by itself.
    return jax.jit(build)(key, dict(start or {}))
