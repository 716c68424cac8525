import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxcnn.errors import UserError
from jaxcnn.landscape.curvature import extreme_eigenvalues, hessian_product
from jaxcnn.landscape.loss import mean_over

EIGENVALUES = np.concatenate([[-3.0], np.linspace(0.1, 1, 26), [5.0, 7.0, 11.0]])


def _quadratic(params: dict, batch: jax.Array) -> jax.Array:
    """Half of `x' A x`; the batch is a part of A."""
    flat = jnp.concatenate([params["a"].reshape(-1), params["b"]])
    return 0.5 * flat @ batch @ flat


def _case() -> tuple[dict, jax.Array, np.ndarray]:
    """Parameters, two batches, and their mean, of the eigenvalues above."""
    random = np.random.default_rng(0)
    basis, _ = np.linalg.qr(random.normal(size=(30, 30)))
    matrix = (basis * EIGENVALUES) @ basis.T
    part = random.normal(size=(30, 30))
    part = part + part.T
    batches = jnp.asarray(np.stack([matrix + part, matrix - part]), jnp.float32)
    return {"a": jnp.ones((4, 5)), "b": jnp.ones(10)}, batches, matrix


def test_a_quadratic_has_its_eigenvalues() -> None:
    params, batches, _ = _case()
    smallest, largest = extreme_eigenvalues(_quadratic, params, batches, 3)
    assert smallest == pytest.approx(-3, rel=1e-3)
    np.testing.assert_allclose(largest, [11, 7, 5], rtol=1e-3)


def test_a_convex_loss_has_a_smallest_eigenvalue_of_zero() -> None:
    """Of rank two, so no tolerance relative to the smallest eigenvalue could be reached."""
    data = jax.random.normal(jax.random.key(0), (1, 2, 40))
    loss = lambda params, batch: jnp.sum((batch @ params) ** 2)  # noqa: E731
    smallest, largest = extreme_eigenvalues(loss, jnp.ones(40), data, 1)
    assert abs(smallest) < 2e-3 * largest[0]


def test_a_loss_that_is_not_finite() -> None:
    loss = lambda params, batch: jnp.sum(params**2) * batch  # noqa: E731
    with pytest.raises(UserError, match="do not converge"):
        extreme_eigenvalues(loss, jnp.ones(40), jnp.array([jnp.nan]), 1)


def test_the_product_is_that_of_the_mean() -> None:
    params, batches, matrix = _case()
    vector = jax.tree.map(lambda leaf: jnp.arange(leaf.size, dtype=jnp.float32), params)
    vector = jax.tree.map(lambda leaf, like: leaf.reshape(like.shape), vector, params)
    product = ravel_pytree(hessian_product(_quadratic, params, vector, batches))[0]
    expected = matrix @ np.asarray(ravel_pytree(vector)[0], float)
    np.testing.assert_allclose(product, expected, rtol=1e-3, atol=1e-3)


def _network_loss(params: dict, batch: jax.Array) -> jax.Array:
    hidden = jnp.tanh(batch @ params["first"])
    return jnp.mean(jax.nn.logsumexp(hidden @ params["second"], axis=-1) - hidden[:, 0])


def test_a_network_has_the_eigenvalues_of_its_dense_hessian() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "first": jax.random.normal(keys[0], (3, 4)),
        "second": jax.random.normal(keys[1], (4, 3)),
    }
    batches = jax.random.normal(keys[2], (4, 5, 3))
    flat, unravel = ravel_pytree(params)
    dense = jax.hessian(lambda x: mean_over(_network_loss, unravel(x), batches))(flat)
    expected = np.linalg.eigvalsh(np.asarray(dense, float))
    smallest, largest = extreme_eigenvalues(_network_loss, params, batches, 2)
    assert smallest == pytest.approx(expected[0], rel=2e-3)
    np.testing.assert_allclose(largest, expected[:-3:-1], rtol=2e-3)
