import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.landscape.noise import GradientNoise, gradient_noise

MEAN = np.array([0.3, -0.4], np.float32)  # |G|^2 = 0.25
DEVIATIONS = np.array([1.0, 2.0], np.float32)  # tr(Sigma) = 5


def _linear(params: jax.Array, batch: jax.Array) -> jax.Array:
    """The gradient of an example is the example."""
    return jnp.mean(batch @ params)


def test_the_known_covariance_is_found() -> None:
    examples = np.random.default_rng(0).normal(size=(4000, 10, 2)) * DEVIATIONS + MEAN
    noise = gradient_noise(_linear, jnp.zeros(2), jnp.asarray(examples, jnp.float32), 10)
    # Their standard errors are below 0.005 and 0.06.
    assert noise.squared_norm == pytest.approx(0.25, abs=0.02)
    assert noise.trace == pytest.approx(5, abs=0.25)
    assert noise.scale == pytest.approx(20, rel=0.1)


def test_few_examples_are_right_on_average() -> None:
    """Two batches of five: the plain |G|^2 would be 0.5 too large."""
    draws = np.random.default_rng(1).normal(size=(4000, 2, 5, 2)) * DEVIATIONS + MEAN
    found = jax.vmap(lambda batches: gradient_noise(_linear, jnp.zeros(2), batches, 5))(
        jnp.asarray(draws, jnp.float32)
    )
    # Their standard errors are 0.015 and 0.1.
    assert np.mean(found.squared_norm) == pytest.approx(0.25, abs=0.07)
    assert np.mean(found.trace) == pytest.approx(5, abs=0.5)


def test_what_is_not_resolved_has_no_scale() -> None:
    assert GradientNoise(jnp.float32(-1), jnp.float32(2)).scale is None
    assert GradientNoise(jnp.float32(2), jnp.float32(-1)).scale is None
