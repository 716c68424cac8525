import dataclasses
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcnn.networks.cpu import library
from jaxcnn.networks.cpu.stages import Stage
from tests.conftest import REPOSITORY

STAGES = [
    Stage(),
    Stage(relu_after=True, sums=True),
    Stage(relu_before=True, sums=True),
    Stage(relu_before=True, relu_after=True, sums=True, max_after=True),
    Stage(average_before=True, sums=True, max_after=True),
    Stage(relu_before=True, average_before=True, relu_after=True, max_after=True),
    Stage(stride=2),
    Stage(stride=2, padding=0, relu_before=True, average_before=True, sums=True),
    Stage(stride=2, relu_before=True, relu_after=True, sums=True, max_after=True),
]
# Images (1, 2 and 3 slices, of which the last may be shorter), kernel size, channels and features;
# those of the last three are large enough for Winograd's products.
SIZES = [
    (1, 3, 3, 5),
    (4, 5, 3, 8),
    (35, 3, 3, 17),
    (6, 1, 3, 4),
    (3, 7, 3, 3),
    (33, 3, 8, 17),
    (9, 3, 9, 8),
    (30, 3, 8, 9),
]


def reference(
    stage: Stage,
    images: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    scale: jax.Array | None,
    shift: jax.Array | None,
    sign: jax.Array | None,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The stage by its definition, on NHWC images and with XLA's own convolution."""

    def channels(x: jax.Array) -> jax.Array:
        return x.reshape(1, 1, 1, -1)

    x = images
    if scale is not None and shift is not None:
        x = x * channels(scale) + channels(shift)
    x = nn.relu(x) if stage.relu_before else x
    x = squares(x).mean(-1) if stage.average_before else x
    before = len(kernel) // 2 if stage.padding is None else stage.padding
    pair = before, max(0, len(kernel) - stage.stride - before)
    strides, layout = (stage.stride, stage.stride), ("NHWC", "HWIO", "NHWC")
    x = lax.conv_general_dilated(x, kernel, strides, (pair, pair), dimension_numbers=layout)
    x = x + channels(bias)
    x = nn.relu(x) if stage.relu_after else x
    sums = (x.sum((0, 1, 2)), (x * x).sum((0, 1, 2))) if stage.sums else ()
    if stage.max_after:
        signs = channels(jnp.ones_like(bias) if sign is None else sign)
        corners = squares(x)
        first = jnp.argmax(corners * signs[..., None], axis=-1, keepdims=True)  # of those that tie
        x = jnp.take_along_axis(corners, first, axis=-1)[..., 0]
    return x, sums


def squares(x: jax.Array) -> jax.Array:
    """The four corners of each 2 x 2 square: [B, H, W, C] -> [B, H/2, W/2, C, 4]."""
    return jnp.stack([x[:, a::2, b::2] for a in (0, 1) for b in (0, 1)], axis=-1)


def integers(seed: int, *shape: int) -> np.ndarray:
    """Exact in float32, and so is whatever is added up of them here: they tie, and lie on edges."""
    return np.random.RandomState(seed).randint(-2, 3, shape).astype(np.float32)


def weights(seed: int, *shape: int) -> np.ndarray:
    """Integers that stay exact when Winograd's products divide them by 24."""
    return 24 * integers(seed, *shape)


def arguments(
    batch: int, kernel_size: int, channels: int, features: int, affine: bool = True
) -> tuple[Any, ...]:
    return (
        integers(0, batch, 8, 12, channels) * 4,  # means of four are integers
        weights(1, kernel_size, kernel_size, channels, features),
        integers(2, features),
        np.resize(np.array([2, -1, 1], np.float32), channels) if affine else None,
        4 * integers(4, channels) if affine else None,
        np.where(integers(5, features) < 0, -1, 1).astype(np.float32) if affine else None,
    )


def outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """The value, and the derivatives of a mix of everything that comes out."""

    def loss(*args: Any) -> Any:
        out, sums = function(*args)
        mix = jnp.sum(out * integers(7, *out.shape))
        weights = integers(8, args[2].size)
        return mix + sum(jnp.sum(s * weights) for s in sums), (out, sums)

    wanted = [i for i, arg in enumerate(args) if arg is not None and i < 5]
    return jax.grad(loss, argnums=wanted, has_aux=True)(*args)


def exact(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """The outcome in float64."""
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        wide = [None if arg is None else np.float64(arg) for arg in args]
        return jax.jit(lambda args: outcome(function, args))(wide)


def assert_equal(ours: Any, expected: Any) -> None:
    """Equal but for the rounding of sums that float32 cannot hold exactly."""

    def compare(one: Any, other: Any) -> None:
        largest = np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6 * largest)

    jax.tree.map(compare, ours, expected)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("batch", "kernel_size", "channels", "features"), SIZES)
@pytest.mark.parametrize("stage", STAGES)
def test_value_and_gradients_are_those_of_the_definition(
    stage: Stage, batch: int, kernel_size: int, channels: int, features: int, affine: bool
) -> None:
    args = arguments(batch, kernel_size, channels, features, affine)
    ours = jax.jit(lambda args: outcome(stage, args))(args)
    assert_equal(ours, exact(lambda *args: reference(stage, *args), args))
    assert all((np.asarray(grad) != 0).any() for grad in ours[0])


def test_an_odd_width() -> None:
    args = (integers(0, 10, 5, 9, 8), weights(1, 3, 3, 8, 9), integers(2, 9), None, None, None)
    ours = jax.jit(lambda args: outcome(Stage(), args))(args)
    assert_equal(ours, exact(lambda *args: reference(Stage(), *args), args))


@pytest.mark.parametrize(("batch", "features"), [(1, 5), (5, 5), (40, 5), (10, 8), (40, 8)])
def test_sliced_images_pass_from_stage_to_stage(batch: int, features: int) -> None:
    first = Stage(sums=True, relu_after=True, max_after=True)
    second = Stage(average_before=True, sums=True)
    third = Stage(relu_before=True, max_after=True)
    args = arguments(batch, 3, 3, features)
    kernels = [integers(seed, 3, 3, features, features) for seed in (20, 21)]
    images = args[0].repeat(2, axis=1).repeat(2, axis=2)

    def chain(sliced: bool, run: Callable[..., Any]) -> Callable[..., Any]:
        def function(images: Any, kernel: Any, bias: Any, *affine: Any) -> Any:
            own = [jnp.asarray(kernel, images.dtype) for kernel in kernels]
            a, b = ({"sliced_out": sliced}, {"sliced_in": sliced})
            x, (total, _) = run(dataclasses.replace(first, **a), images, kernel, bias, *affine)
            x, _ = run(dataclasses.replace(second, **a, **b), x, own[0], bias, None, None, None)
            last = dataclasses.replace(third, **b)
            return run(last, x, own[1], bias, None, None, affine[2])[0], (total,)

        return function

    start = (images, *args[1:])
    expected = exact(chain(False, reference), start)
    for sliced in (True, False):
        run = chain(sliced, lambda stage, *rest: stage(*rest))
        assert_equal(jax.jit(lambda args, run=run: outcome(run, args))(start), expected)


@pytest.mark.parametrize(("batch", "channels", "features"), [(4, 3, 5), (8, 8, 8)])
def test_gradients_that_nobody_wants_are_not_computed(
    batch: int, channels: int, features: int
) -> None:
    args = arguments(batch, 3, channels, features)
    stage = STAGES[3]

    def loss(kernel: jax.Array, images: jax.Array) -> jax.Array:
        return jnp.sum(stage(images, kernel, *args[2:])[0])

    alone = jax.jit(jax.grad(loss))
    both = jax.jit(jax.grad(loss, argnums=(0, 1)))
    np.testing.assert_array_equal(alone(args[1], args[0]), both(args[1], args[0])[0])
    pixels = "x".join(map(str, args[0].shape))
    texts = [f.lower(args[1], args[0]).as_text() for f in (alone, both)]
    assert [f"-> (tensor<{pixels}xf32>" in text for text in texts] == [False, True]


def test_a_stage_is_a_convolution_alone_by_default() -> None:
    images, kernel = integers(0, 2, 8, 8, 3), integers(1, 3, 3, 3, 5)
    out, sums = Stage()(images, kernel, np.zeros(5, np.float32))
    layout = ("NHWC", "HWIO", "NHWC")
    alone = lax.conv_general_dilated(images, kernel, (1, 1), "SAME", dimension_numbers=layout)
    np.testing.assert_array_equal(out, alone)
    assert sums == ()


def test_members_of_an_ensemble_equal_single_stages() -> None:
    stage = STAGES[3]
    args = arguments(4, 3, 3, 5)
    kernels = integers(9, 3, 3, 3, 3, 5)

    def run(kernel: jax.Array) -> Any:
        return outcome(stage, (args[0], kernel, *args[2:]))

    together, alone = jax.jit(lambda k: (jax.vmap(run)(k), run(k[1])))(kernels)
    jax.tree.map(lambda many, one: np.testing.assert_array_equal(many[1], one), together, alone)


def test_a_tie_goes_to_the_first_corner_as_in_pytorch() -> None:
    stage = Stage(max_after=True)
    kernel = np.zeros((3, 3, 1, 1), np.float32)
    kernel[1, 1] = 1.0

    def total(images: jax.Array) -> jax.Array:
        return jnp.sum(stage(images, kernel, np.zeros(1, np.float32))[0])

    grad = jax.jit(jax.grad(total))(np.ones((1, 4, 4, 1), np.float32))[0, :, :, 0]
    np.testing.assert_array_equal(grad, np.kron(np.ones((2, 2)), [[1, 0], [0, 0]]))


def test_nan_spreads_as_in_xla() -> None:
    images = integers(0, 2, 8, 8, 1)
    images[1, 3, 3] = np.nan
    kernel, bias = integers(1, 3, 3, 1, 4), np.zeros(4, np.float32)
    stage = Stage(relu_before=True, relu_after=True, max_after=True)
    ours, _ = jax.jit(stage)(images, kernel, bias)
    theirs, _ = jax.jit(lambda *args: reference(stage, *args, None, None, None))(
        images, kernel, bias
    )
    np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kernel": (2, 2, 3, 5)}, "odd"),
        ({"kernel": (3, 5, 3, 5)}, "square"),
        ({"kernel": (3, 3, 4, 5)}, "channels"),
        ({"bias": (4,)}, "bias"),
        ({"scale": (2,), "shift": (2,)}, "scale"),
        ({"scale": (3,), "shift": (0,)}, "shift"),
        ({"sign": (3,)}, "sign"),
        ({"x": (2, 7, 8, 3)}, "pooling"),
        ({"x": (0, 8, 8, 3), "out": (0, 4, 4, 5), "y": (0, 8, 8, 5)}, "empty"),
        ({"x": (8, 8, 3)}, "axes"),
        ({"out": (2, 4, 4, 4)}, "output"),
        ({"y": (2, 4, 4, 5)}, "kept"),
        ({"sums": (5,)}, "sums"),
    ],
)
def test_a_wrong_shape_is_an_error(change: dict[str, tuple[int, ...]], message: str) -> None:
    shapes = {
        "x": (2, 8, 8, 3), "kernel": (3, 3, 3, 5), "bias": (5,), "scale": (3,), "shift": (3,),
        "sign": (5,), "out": (2, 4, 4, 5), "y": (2, 8, 8, 5), "sums": (2, 5),
    } | change  # fmt: skip
    assert library.in_use()
    results = [jax.ShapeDtypeStruct(shapes[name], np.float32) for name in ("out", "y", "sums")]
    given = [np.zeros(shapes[n], np.float32) for n in "x kernel bias scale shift sign".split()]
    call = jax.ffi.ffi_call(library.FORWARD, results)
    stage = Stage(relu_after=True, max_after=True)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message):
        jax.block_until_ready(call(*given, **stage._layers(3)))


def test_the_number_of_threads_changes_no_bit() -> None:
    code = """
import hashlib, os, sys
if sys.argv[1:] and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax
from tests.networks.cpu import test_stages as tests

args = [tests.arguments(100, 3, channels, 17) for channels in (3, 8)]
args = jax.tree.map(lambda x: x * 0.37, args)
found = jax.jit(lambda args: [tests.outcome(tests.STAGES[3], each) for each in args])(args)
bits = b"".join(leaf.tobytes() for leaf in jax.device_get(jax.tree.leaves(found)))
print(hashlib.sha256(bits).hexdigest())
"""
    command = [sys.executable, "-c", code]
    found = [
        subprocess.check_output([*command, *one], cwd=REPOSITORY, text=True)
        for one in ([], ["one"])
    ]
    assert found[0] == found[1]
