import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.convolution import conv_general_dilated


def conv(kernel_size: int, ours: bool, **options: object) -> nn.Conv:
    hook = {"conv_general_dilated": conv_general_dilated} if ours else {}
    return nn.Conv(
        6, (kernel_size, kernel_size), **{"padding": kernel_size // 2, **options}, **hook
    )


@pytest.mark.parametrize(
    ("kernel_size", "options"),
    [
        (3, {}),
        (5, {}),
        (3, {"padding": "VALID"}),
        (4, {"padding": "SAME"}),
        (3, {"padding": ((2, 0), (0, 1))}),
        (3, {"strides": 2}),
        (3, {"kernel_dilation": 2}),
        (3, {"feature_group_count": 2}),
    ],
)
def test_value_and_gradients_are_those_of_the_native_one(
    kernel_size: int, options: dict[str, object]
) -> None:
    images = jax.random.normal(jax.random.key(0), (3, 9, 8, 4))
    variables = conv(kernel_size, False, **options).init(jax.random.key(1), images)

    def loss(variables: object, images: jax.Array, ours: bool) -> jax.Array:
        out = conv(kernel_size, ours, **options).apply(variables, images)
        return jnp.sum(jnp.sin(out))

    results = [
        jax.jit(jax.value_and_grad(loss, argnums=(0, 1)), static_argnums=2)(variables, images, ours)
        for ours in (True, False)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *results)


def test_vmap_over_kernels() -> None:
    images = jax.random.normal(jax.random.key(0), (3, 8, 8, 4))
    keys = jax.random.split(jax.random.key(1), 5)
    module = conv(3, True)
    variables = jax.vmap(lambda key: module.init(key, images))(keys)
    together = jax.vmap(lambda v: module.apply(v, images))(variables)
    for index in range(5):
        one = module.apply(jax.tree.map(lambda leaf, i=index: leaf[i], variables), images)
        np.testing.assert_allclose(together[index], one, rtol=1e-4, atol=1e-5)


def test_cpu_runs_no_convolution() -> None:
    images = jnp.zeros((2, 8, 8, 4))
    module = conv(3, True)
    variables = jax.eval_shape(module.init, jax.random.key(1), images)
    loss = jax.grad(lambda v: jnp.sum(module.apply(v, images)))
    cpu = jax.jit(loss).trace(variables).lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.convolution" not in cpu
    assert "stablehlo.dot_general" in cpu
    gpu = jax.jit(loss).trace(variables).lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.convolution" in gpu
