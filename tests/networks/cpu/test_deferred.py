from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcnn.networks.cpu import library
from jaxcnn.networks.cpu.substitution import fastest, substitute

IMAGES = jax.random.normal(jax.random.key(1), (6, 8, 8, 3))
KERNELS = [
    0.3 * jax.random.normal(jax.random.key(2 + i), (3, 3, channels, 4))
    for i, channels in enumerate((3, 4, 4))
]
CHANNELS = jnp.array([0.5, -1.0, 1.5, 2.0]).reshape(1, 1, 1, 4)


def convolve(images: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    strides = stride, stride
    return lax.conv_general_dilated(images, kernel, strides, "SAME", dimension_numbers=layout)


def normalized(x: jax.Array) -> jax.Array:
    mean, squares = x.mean((0, 1, 2)), jnp.square(x).mean((0, 1, 2))
    return (x - mean[None, None, None]) * lax.rsqrt(squares - mean**2 + 1e-5)[None, None, None]


def total(x: jax.Array) -> jax.Array:
    """The sums over all pixels, in a form that XLA takes from the stage."""
    return x.sum((0, 1, 2))[None, None, None]


@jax.custom_jvp
def relu(x: jax.Array) -> jax.Array:
    """As `jax.nn.relu`, but for its derivative."""
    return jax.jit(lambda x: jnp.maximum(x, 0), inline=False)(x)


@relu.defjvp
def _relu_jvp(primals: tuple[jax.Array], tangents: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    return relu(*primals), tangents[0]


def mix(x: jax.Array) -> jax.Array:
    """Weights of a sum."""
    return jax.random.normal(jax.random.key(9), x.shape)


BETWEEN: dict[str, Callable[[jax.Array], jax.Array]] = {
    "nothing": lambda x: x,
    "BatchNorm": lambda x: nn.relu(normalized(x) * CHANNELS + CHANNELS),
    "BatchNorm without relu": lambda x: normalized(x) * CHANNELS - CHANNELS,
    "bias": lambda x: nn.relu(CHANNELS + x),
    "scale": lambda x: CHANNELS * x,
    "relu": nn.relu,
    "relu, then scaled": lambda x: nn.relu(x + CHANNELS) * CHANNELS,
    "maximum, whose derivative at 0 is a half": lambda x: jnp.maximum(x * 0, 0) + x,
    "a derivative of its own": lambda x: relu(x),
    "images from channels": lambda x: CHANNELS - x,
    "another factor": lambda x: x * jnp.linspace(0, 2, len(x[0]))[None, :, None, None],
    "squares": jnp.square,
    "squares, and their sum": lambda x: jnp.square(x) / total(jnp.square(x)),
    "its own sums only": lambda x: jnp.ones_like(x) * total(x) / 100,
    "sums before and after relu": lambda x: x * (total(x) + total(nn.relu(x))) / 100,
    "other sums": lambda x: x * x.sum((1, 2), keepdims=True) / 100,
    "a product with itself": lambda x: x * x,
    "beside itself": lambda x: x + nn.relu(normalized(x)),
    "within a function": lambda x: jax.jit(lambda x: nn.relu(x * CHANNELS))(x),
}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("name", BETWEEN)
def test_value_and_gradients_are_those_of_the_operations(name: str, stride: int) -> None:
    def network(images: jax.Array, kernels: Any) -> jax.Array:
        x = BETWEEN[name](convolve(images, kernels[0]))
        y = BETWEEN[name](convolve(x, kernels[1], stride))
        return convolve(y, kernels[2]), y

    def outcome(network: Any) -> Any:
        def loss(*args: Any) -> Any:
            out, y = network(*args)
            return jnp.vdot(mix(out), out) + jnp.vdot(mix(y), y), out

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(IMAGES, KERNELS)

    ours, theirs = outcome(substitute(network)), outcome(network)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        # Sums of some hundred products, each rounded by 6e-8, of numbers that cancel.
        np.testing.assert_allclose(one, other, rtol=0, atol=3e-5 * np.abs(other).max())


def images_computed(network: Any) -> int:
    """The number of arrays of images that are computed outside kernels."""
    program = jax.make_jaxpr(network)(IMAGES, KERNELS)
    return sum(
        e.primitive.name != "ffi_call"
        and any(v.aval.ndim == 4 and v.aval.size > 99 for v in e.outvars)
        for e in inlined(program.jaxpr)
    )


def inlined(jaxpr: Any) -> Any:
    """All operations, those of functions with a derivative of their own among them."""
    for equation in jaxpr.eqns:
        inner = [equation.params[n] for n in ("jaxpr", "call_jaxpr") if n in equation.params]
        for one in inner:
            yield from inlined(getattr(one, "jaxpr", one))
        if not inner:
            yield equation


@pytest.mark.parametrize("name", ["nothing", "BatchNorm", "bias", "scale", "relu"])
def test_nothing_is_computed_between_two_stages(name: str) -> None:
    def network(images: jax.Array, kernels: Any) -> jax.Array:
        x = BETWEEN[name](convolve(images, kernels[0]))
        x = BETWEEN[name](convolve(x, kernels[1], 2))
        return convolve(x, kernels[2]).sum((1, 2))

    assert images_computed(substitute(network)) == 0
    assert images_computed(network) >= 3


class Residual(nn.Module):
    """A residual block (arXiv 1512.03385), whose input is seen twice."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(8, (3, 3), use_bias=False)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x))
        y = nn.Conv(16, (3, 3), 2, use_bias=False)(x)
        y = nn.relu(nn.BatchNorm(use_running_average=not train)(y))
        y = nn.BatchNorm(use_running_average=not train)(nn.Conv(16, (3, 3), use_bias=False)(y))
        x = nn.relu(nn.Conv(16, (1, 1), 2)(x) + y)
        return nn.Dense(10)(x.mean((1, 2)))


def test_a_residual_block() -> None:
    variables = Residual().init(jax.random.key(0), IMAGES)

    def outcome(model: Any) -> Any:
        def loss(params: Any) -> Any:
            given = variables | {"params": params}
            logits, changed = model.apply(given, IMAGES, train=True, mutable=["batch_stats"])
            return jnp.sin(logits).sum(), (logits, changed, model.apply(given, IMAGES))

        return jax.jit(jax.grad(loss, has_aux=True))(variables["params"])

    ours, theirs = outcome(fastest(Residual())), outcome(Residual())
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-4 * np.abs(other).max())
    program = jax.jit(fastest(Residual()).apply).lower(variables, IMAGES).as_text()
    assert program.count(f"@{library.FORWARD}") == 4
    assert "sliced_out = true" in program
