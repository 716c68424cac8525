import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from jaxcnn.optim.averages import averaged, eval_params

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

PARAMS = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}


@pytest.mark.parametrize("place", ["alone", "chained", "masked"])
def test_schedule_free_is_evaluated_at_its_average(place: str) -> None:
    tx = contrib.schedule_free_sgd(0.1)
    if place == "chained":
        tx = optax.chain(optax.clip_by_global_norm(100.0), tx)
    elif place == "masked":
        tx = optax.masked(tx, {"kernel": True, "bias": False})
    alone = contrib.schedule_free_sgd(0.1)
    params, opt_state = PARAMS, tx.init(PARAMS)
    kernel, other = PARAMS["kernel"], alone.init(PARAMS["kernel"])
    for scale in (1.0, 0.5, -0.2):
        grads = jax.tree.map(lambda leaf, s=scale: s * leaf, PARAMS)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        update, other = alone.update(grads["kernel"], other, kernel)
        kernel = optax.apply_updates(kernel, update)
    found = eval_params(opt_state, params)
    expected = contrib.schedule_free_eval_params(other, kernel)
    np.testing.assert_allclose(found["kernel"], expected, rtol=1e-6)
    assert not np.allclose(found["kernel"], params["kernel"])
    assert np.array_equal(found["bias"], params["bias"]) == (place == "masked")


def test_averages() -> None:
    tx = averaged(optax.sgd(1.0), 0.9)
    params, opt_state = jnp.zeros(()), tx.init(jnp.zeros(()))
    assert float(eval_params(opt_state, params)) == 0
    seen = []
    for grad in (-1.0, -2.0, 1.0):
        updates, opt_state = tx.update(jnp.float32(grad), opt_state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float(params))
        weights = 0.1 * 0.9 ** np.arange(len(seen))[::-1]
        expected = np.sum(weights * seen) / weights.sum()
        assert float(eval_params(opt_state, params)) == pytest.approx(expected, rel=1e-6)


def test_sharpness_aware_steps_are_evaluated_at_their_centre() -> None:
    tx = contrib.sam(optax.sgd(0.1), optax.sgd(1.0))
    params, opt_state = jnp.ones(2), tx.init(jnp.ones(2))
    updates, opt_state = tx.update(jnp.ones(2), opt_state, params)
    params = optax.apply_updates(params, updates)
    assert not np.allclose(params, 1.0)
    np.testing.assert_allclose(eval_params(opt_state, params), 1.0)
    updates, opt_state = tx.update(jnp.ones(2), opt_state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(eval_params(opt_state, params), params)
    np.testing.assert_allclose(params, 0.9, rtol=1e-6)
