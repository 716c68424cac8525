from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.networks.cpu import library
from jaxcnn.networks.cpu.group_norm import by_kernel, group_norm

pytestmark = pytest.mark.skipif(not library.in_use(), reason="there are no kernels here")


def random_variables(module: nn.Module, x: jax.Array) -> Any:
    variables = module.init(jax.random.key(1), x)
    noise = jax.random.normal(jax.random.key(2), x.shape[-1:])
    return jax.tree.map(lambda value: value + 0.3 * noise, variables)


def intercepted(module: nn.Module, variables: Any, *args: Any, **kwargs: Any) -> Any:
    with nn.intercept_methods(by_kernel):
        return module.apply(variables, *args, **kwargs)


@pytest.mark.parametrize(
    ("shape", "module"),
    [
        ((3, 4, 4, 4), nn.GroupNorm(2)),
        ((1, 5, 3, 40), nn.GroupNorm(5, use_bias=False, epsilon=0.1)),
        ((35, 2, 2, 12), nn.GroupNorm(None, group_size=3, use_scale=False)),
        ((64, 6, 6, 24), nn.GroupNorm(1)),
        ((2, 7, 33), nn.GroupNorm(33)),
        ((2, 2, 3, 2, 17), nn.GroupNorm(17, use_bias=False, use_scale=False)),
    ],
)
def test_the_kernel_computes_what_flax_does(shape: tuple[int, ...], module: nn.GroupNorm) -> None:
    x = 2 * jax.random.normal(jax.random.key(0), shape) + 1
    weight = jax.random.normal(jax.random.key(3), shape)
    variables = random_variables(module, x) if module.use_bias or module.use_scale else {}

    def loss(call: Any) -> Any:
        def value(variables: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = call(variables, x)
            return (out * weight).sum(), out

        return jax.jit(jax.value_and_grad(value, (0, 1), has_aux=True))(variables, x)

    (_, ours), gradients = loss(lambda *args: intercepted(module, *args))
    (_, flax), expected = loss(module.apply)
    for one, other in zip(
        jax.tree.leaves((ours, gradients)), jax.tree.leaves((flax, expected)), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * np.abs(other).max())
    program = str(jax.make_jaxpr(lambda x: intercepted(module, variables, x))(x))
    assert library.GROUP_NORM in program


def test_all_pixels_alike_give_the_bias_and_nan_stays_nan() -> None:
    ones = jnp.ones(4)
    out = group_norm(jnp.full((2, 3, 3, 4), 7.0), ones, ones, 2, 1e-6)
    np.testing.assert_allclose(out, 1, atol=1e-3)
    out = group_norm(jnp.ones((2, 3, 3, 4)).at[0, 0, 0, 0].set(jnp.nan), ones, ones, 2, 1e-6)
    assert np.isnan(out[0, :, :, :2]).all()
    assert np.isfinite(out[0, :, :, 2:]).all()
    assert np.isfinite(out[1]).all()


def test_an_ensemble_normalizes_member_after_member() -> None:
    x = jax.random.normal(jax.random.key(0), (3, 2, 4, 4, 8))
    scale = jax.random.normal(jax.random.key(1), (3, 8))
    normalize = jax.vmap(lambda x, scale: group_norm(x, scale, jnp.zeros(8), 2, 1e-6))
    one = group_norm(x[1], scale[1], jnp.zeros(8), 2, 1e-6)
    np.testing.assert_array_equal(normalize(x, scale)[1], one)


@pytest.mark.loose_promotion  # Flax mixes dtypes
@pytest.mark.parametrize(
    ("module", "kwargs"),
    [
        (nn.GroupNorm(2, dtype=jnp.bfloat16), {}),
        (nn.GroupNorm(2, use_fast_variance=False), {}),
        (nn.GroupNorm(2, reduction_axes=(0, 1, 2, 3)), {}),
        (nn.GroupNorm(2), {"mask": jnp.ones((2, 3, 3, 4), bool)}),
        (nn.LayerNorm(), {}),
    ],
)
def test_what_stays_as_it_is_written(module: Any, kwargs: Any) -> None:
    x = jax.random.normal(jax.random.key(0), (2, 3, 3, 4))
    variables = module.init(jax.random.key(1), x)
    np.testing.assert_array_equal(
        intercepted(module, variables, x, **kwargs), module.apply(variables, x, **kwargs)
    )
    program = jax.make_jaxpr(lambda x: intercepted(module, variables, x, **kwargs))(x)
    assert library.GROUP_NORM not in str(program)


def test_groups_that_do_not_divide_the_channels_are_flaxs_error() -> None:
    module = nn.GroupNorm(3)
    with pytest.raises(ValueError, match="does not divide"):
        intercepted(module, {"params": {}}, jnp.ones((2, 3, 3, 4)))


@pytest.mark.parametrize(
    ("changed", "message"),
    [({"scale": 3}, "scale and bias"), ({"bias": 3}, "bias"), ({"groups": 3}, "groups")],
)
def test_wrong_shapes_are_errors(changed: dict[str, int], message: str) -> None:
    sizes = {"scale": 4, "bias": 4, "groups": 2} | changed
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        group_norm(
            jnp.ones((2, 3, 4)), jnp.ones(sizes["scale"]), jnp.ones(sizes["bias"]),
            sizes["groups"], 1e-6,
        ).block_until_ready()  # fmt: skip
