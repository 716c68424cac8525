import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxcnn import pooling


@pytest.mark.loose_promotion  # Flax divides by an integer
@pytest.mark.parametrize(
    ("ours", "flax"), [(pooling.max_pool, nn.max_pool), (pooling.avg_pool, nn.avg_pool)]
)
def test_value_and_gradient_are_those_of_flax(ours: object, flax: object) -> None:
    images = jax.random.normal(jax.random.key(0), (3, 8, 6, 5))
    weights = jax.random.normal(jax.random.key(1), (3, 4, 3, 5))

    def loss(pool: object, *window: object) -> jax.Array:
        return lambda x: (pool(x, *window) * weights).sum()

    one = jax.value_and_grad(loss(ours))(images)
    other = jax.value_and_grad(loss(flax, (2, 2), (2, 2)))(images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), one, other)
