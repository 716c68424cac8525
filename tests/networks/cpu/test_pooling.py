from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxcnn.networks.cpu import pooling


@pytest.mark.loose_promotion  # Flax divides by an integer
@pytest.mark.parametrize(
    ("ours", "flax"), [(pooling.max_pool, nn.max_pool), (pooling.avg_pool, nn.avg_pool)]
)
def test_value_and_gradient_are_those_of_flax(
    ours: Callable[..., jax.Array], flax: Callable[..., jax.Array]
) -> None:
    # Integers, all different, so that none tie; they and quarters of their sums are exact.
    random = np.random.RandomState(0)
    images = random.permutation(3 * 8 * 6 * 5).reshape(3, 8, 6, 5).astype(np.float32)
    weights = random.randint(-9, 10, (3, 4, 3, 5)).astype(np.float32)

    def outcome(pool: Callable[..., jax.Array], *window: object) -> Callable[..., object]:
        def loss(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            pooled = pool(x, *window)
            return (pooled * weights).sum(), pooled

        return jax.value_and_grad(loss, has_aux=True)

    one, other = jax.jit(lambda x: (outcome(ours)(x), outcome(flax, (2, 2), (2, 2))(x)))(images)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("best", [(0, 1, 2, 3), (1, 2), (2, 3), (1, 3), (0, 3), (3,)])
def test_a_tie_goes_to_the_first(best: tuple[int, ...]) -> None:
    square = np.zeros(4, np.float32)
    square[list(best)] = 2.0
    expected = np.zeros(4)
    expected[best[0]] = 1.0
    pooled, grad = jax.value_and_grad(lambda x: pooling.max_pool(x).sum())(
        square.reshape(1, 2, 2, 1)
    )
    assert pooled == 2.0
    np.testing.assert_array_equal(grad.ravel(), expected)
