from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.networks.cpu import library
from jaxcnn.networks.cpu.convolution import conv_general_dilated


def conv(kernel_size: int, ours: bool, **options: Any) -> nn.Conv:
    hook = {"conv_general_dilated": conv_general_dilated} if ours else {}
    return nn.Conv(
        6, (kernel_size, kernel_size), **{"padding": kernel_size // 2, **options}, **hook
    )


def integers(seed: int, *shape: int) -> np.ndarray:
    """Exact in float32, and so is whatever is added up of them here."""
    return np.random.RandomState(seed).randint(-3, 4, shape).astype(np.float32)


@pytest.mark.parametrize(
    ("kernel_size", "options"),
    [
        (3, {}),
        (5, {}),
        (3, {"padding": "VALID"}),
        (4, {"padding": "SAME"}),
        (3, {"padding": ((2, 0), (0, 1))}),
        (3, {"strides": 2}),
        (3, {"strides": (1, 2)}),
        (3, {"strides": 3}),
        (3, {"input_dilation": 2}),
        (3, {"kernel_dilation": 2}),
        (3, {"feature_group_count": 2}),
    ],
)
def test_value_and_gradients_are_those_of_the_native_one(
    kernel_size: int, options: dict[str, Any]
) -> None:
    images = integers(0, 3, 9, 8, 4)
    groups = options.get("feature_group_count", 1)
    kernel = integers(1, kernel_size, kernel_size, 4 // groups, 6)
    variables = {"params": {"kernel": kernel, "bias": integers(2, 6)}}

    def outcome(variables: Any, images: jax.Array, ours: bool) -> Any:
        def loss(variables: Any, images: jax.Array) -> Any:
            out = conv(kernel_size, ours, **options).apply(variables, images)
            return jnp.sum(out * integers(3, *out.shape)), out

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(variables, images)

    ours, native = jax.jit(lambda *args: [outcome(*args, ours) for ours in (True, False)])(
        variables, images
    )
    jax.tree.map(np.testing.assert_array_equal, ours, native)


# The second is the size of squares of values and images that are transposed at once.
@pytest.mark.parametrize("shape", [(3, 8, 6, 4), (33, 4, 8, 5)])
@pytest.mark.parametrize(
    ("kernel_size", "padding"),
    [(1, (0, 0)), (2, (0, 0)), (3, (0, 1)), (3, (1, 1)), (3, (2, 0)), (5, (1, 2)), (7, (3, 3))],
)
def test_stride_2_that_halves_the_size(
    kernel_size: int, padding: tuple[int, int], shape: tuple[int, ...]
) -> None:
    images, kernel = integers(0, *shape), integers(1, kernel_size, kernel_size, shape[-1], 6)
    arguments = (2, 2), (padding, padding)
    gradient = integers(2, shape[0], shape[1] // 2, shape[2] // 2, 6)

    def native(images: jax.Array, kernel: jax.Array) -> jax.Array:
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(images, kernel, *arguments, dimension_numbers=layout)

    def ours(images: jax.Array, kernel: jax.Array) -> jax.Array:
        return conv_general_dilated(images, kernel, *arguments)

    def outcome(convolve: Any) -> Any:
        out, transpose = jax.vjp(convolve, images, kernel)
        return out, transpose(gradient)

    assert library.FORWARD in jax.jit(ours).lower(images, kernel).as_text()
    jax.tree.map(np.testing.assert_array_equal, outcome(ours), outcome(native))


def test_vmap_over_kernels() -> None:
    images, module = integers(0, 3, 8, 8, 4), conv(3, True)
    variables = {"params": {"kernel": integers(1, 5, 3, 3, 4, 6), "bias": integers(2, 5, 6)}}

    def apply(variables: Any) -> jax.Array:
        return module.apply(variables, images)

    together, each = jax.jit(lambda v: (jax.vmap(apply)(v), jax.lax.map(apply, v)))(variables)
    np.testing.assert_array_equal(together, each)


def test_cpu_runs_no_convolution() -> None:
    images = jnp.zeros((2, 8, 8, 4))
    module = conv(3, True)
    variables = jax.eval_shape(module.init, jax.random.key(1), images)
    traced = jax.jit(jax.grad(lambda v: jnp.sum(module.apply(v, images)))).trace(variables)
    cpu = traced.lower(lowering_platforms=("cpu",)).as_text()
    assert "stablehlo.convolution" not in cpu
    assert library.FORWARD in cpu
    gpu = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.convolution" in gpu


def test_without_kernels_a_product_convolves_which_has_all_derivatives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, kernel = integers(0, 3, 8, 8, 4), integers(1, 3, 3, 4, 6)
    same = ((1, 1), (1, 1))

    def run(kernels: bool) -> Any:
        def convolve(images: jax.Array) -> jax.Array:
            return conv_general_dilated(images, kernel, (1, 1), same, kernels=kernels)

        return jax.jit(lambda x: jax.jvp(convolve, (x,), (x,))[1])

    with pytest.raises(TypeError, match="forward-mode"):
        run(True).lower(images)
    text = run(False).lower(images).as_text()
    assert "stablehlo.dot_general" in text
    monkeypatch.setenv(library.VARIABLE, "xla")
    np.testing.assert_array_equal(run(True)(images), run(False)(images))


def test_precision_and_dtype_reach_the_product() -> None:
    def run(images: jax.Array, kernel: jax.Array) -> jax.Array:
        options = {"precision": "highest", "preferred_element_type": jnp.float32}
        return conv_general_dilated(images, kernel, (1, 1), ((1, 1), (1, 1)), **options)

    shapes = [jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in ((2, 8, 8, 4), (3, 3, 4, 6))]
    for platform in ("cpu", "cuda"):
        lowered = jax.jit(run).trace(*shapes).lower(lowering_platforms=(platform,))
        assert (lowered.out_info.shape, lowered.out_info.dtype) == ((2, 8, 8, 6), jnp.float32)
        assert "HIGHEST" in lowered.as_text()
