import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.landscape.loss import mean_over
from jaxcnn.landscape.slices import losses_along, losses_on_plane, random_direction

POSITIONS = jnp.array([-1.0, 0.0, 0.5])
BATCHES = jnp.arange(6.0).reshape(3, 2)


def _loss(params: jax.Array, batch: jax.Array) -> jax.Array:
    return jnp.sum((params - batch) ** 2)


def test_along_a_line() -> None:
    params, direction = jnp.array([1.0, 2.0]), jnp.array([0.5, -1.0])
    losses = losses_along(_loss, params, direction, POSITIONS, BATCHES)
    for position, loss in zip(POSITIONS, losses, strict=True):
        moved = np.asarray(params + position * direction)
        np.testing.assert_allclose(
            loss, np.mean(np.sum((moved - np.asarray(BATCHES)) ** 2, -1)), rtol=1e-6
        )
    np.testing.assert_allclose(losses[1], mean_over(_loss, params, BATCHES), rtol=1e-6)


def test_on_a_plane() -> None:
    """Rows are positions along the second direction, columns along the first."""
    params, first, second = jnp.array([1.0, 2.0]), jnp.array([0.5, 0.0]), jnp.array([0.0, 3.0])
    losses = losses_on_plane(_loss, params, (first, second), POSITIONS, BATCHES)
    along_first = losses_along(_loss, params, first, POSITIONS, BATCHES)
    along_second = losses_along(_loss, params, second, POSITIONS, BATCHES)
    np.testing.assert_allclose(losses[1], along_first, rtol=1e-6)
    np.testing.assert_allclose(losses[:, 1], along_second, rtol=1e-6)


def test_random_filters_have_the_norms_of_the_parameters() -> None:
    scales = jnp.arange(4.0).reshape(1, 1, 1, 4)  # a filter of zeros is not moved
    kernel = scales * jax.random.normal(jax.random.key(1), (3, 3, 2, 4))
    params = {"conv": {"kernel": kernel, "bias": jnp.ones(4)}}
    drawn = random_direction(jax.random.key(0), params)
    norms = jnp.sqrt(jnp.sum(drawn["conv"]["kernel"] ** 2, (0, 1, 2)))
    np.testing.assert_allclose(norms, jnp.sqrt(jnp.sum(kernel**2, (0, 1, 2))), rtol=1e-5)
    assert not drawn["conv"]["bias"].any()
    other = random_direction(jax.random.key(2), params)
    assert not np.allclose(drawn["conv"]["kernel"], other["conv"]["kernel"])
