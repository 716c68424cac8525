import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn.train.state import init_state
from tests.conformance import SHAPE, SmallCNN


@pytest.mark.loose_promotion  # SmallCNN pools with Flax, which divides by an integer
def test_init() -> None:
    tx = optax.sgd(0.1, momentum=0.9)
    made = init_state(jax.random.key(0), SmallCNN(), tx, SHAPE)
    assert made.step == 0
    assert made.step.dtype == jnp.int32
    assert set(made.variables) == {"params", "batch_stats"}
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(made))
    assert made.variables == {"params": made.params, "batch_stats": made.batch_stats}
    assert made.eval_variables == made.variables
    expected = jax.eval_shape(tx.init, made.params)
    assert jax.tree.structure(made.opt_state) == jax.tree.structure(expected)


@pytest.mark.loose_promotion  # lookahead multiplies by a boolean
def test_evaluation_is_at_the_parameters_that_the_optimizer_says() -> None:
    tx = optax.lookahead(optax.sgd(0.1), sync_period=2, slow_step_size=0.5)
    made = init_state(jax.random.key(0), nn.Dense(3), tx, (4,))
    moved = made.replace(params=jax.tree.map(jnp.zeros_like, made.params))
    assert moved.variables["params"] is moved.params
    jax.tree.map(
        np.testing.assert_array_equal,
        moved.eval_variables,
        {"params": made.params, "batch_stats": {}},
    )


def test_init_is_a_function_of_its_key() -> None:
    def kernel(seed: int) -> jax.Array:
        made = init_state(jax.random.key(seed), nn.Dense(3), optax.sgd(0.1), (4,))
        return made.params["kernel"]

    np.testing.assert_array_equal(kernel(0), kernel(0))
    assert (kernel(0) != kernel(1)).any()


def test_one_line_makes_many() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    many = jax.vmap(lambda key: init_state(key, nn.Dense(3), optax.sgd(0.1), (4,)))(keys)
    one = init_state(keys[1], nn.Dense(3), optax.sgd(0.1), (4,))
    np.testing.assert_allclose(many.params["kernel"][1], one.params["kernel"])
    assert many.batch_stats == {}
