import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcnn.networks.cpu import blocks
from jaxcnn.networks.cpu.stages import Stage

STAGES = [
    Stage(),
    Stage(tile=2),
    Stage(tile=2, relu_before=True, sums=True),
    Stage(tile=2, relu_before=True, relu_after=True, sums=True, max_after=True),
    Stage(tile=1, average_before=True, sums=True, max_after=True),
    Stage(tile=2, relu_before=True, average_before=True, relu_after=True, max_after=True),
]
# Kernel size, whether there are scale, shift and sign, and the tile of the input.
SETTINGS = [(3, True, 2), (5, True, 1), (3, False, 1)]
# Every stage in one setting is quick, in the others slow; of the second the others do all.
CASES = [
    pytest.param(
        stage,
        *setting,
        marks=()
        if place % 3 == other and place != 1
        else (pytest.mark.slow, pytest.mark.lightly_compiled),
        id=f"{place}-{other}",
    )
    for place, stage in enumerate(STAGES)
    for other, setting in enumerate(SETTINGS)
]
BATCH = 66  # two slices


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
    x = lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ) + channels(bias)
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


def to_images(x: jax.Array) -> jax.Array:
    """Undoes `to_slices`."""
    slices, tile, _, channels, height, width, size = x.shape
    return x.transpose(0, 6, 4, 1, 5, 2, 3).reshape(
        slices * size, height * tile, width * tile, channels
    )


def integers(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(-3, 4, shape).astype(np.float64)


def arguments(kernel_size: int, affine: bool) -> tuple[Any, ...]:
    return (
        integers(0, BATCH, 8, 12, 3),
        integers(1, kernel_size, kernel_size, 3, 5),
        integers(2, 5),
        np.array([2.0, -1.0, 3.0]) if affine else None,
        integers(4, 3) if affine else None,
        np.array([1.0, -1.0, 1.0, -1.0, -1.0]) if affine else None,
    )


def outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """The value, and the derivatives of a mix of everything that comes out."""

    def loss(*args: Any) -> Any:
        out, sums = function(*args)
        mix = jnp.sum(out * integers(7, *out.shape))
        return mix + sum(jnp.sum(s * integers(8, 5)) for s in sums), (out, sums)

    wanted = [i for i, arg in enumerate(args) if arg is not None and i < 5]
    return jax.grad(loss, argnums=wanted, has_aux=True)(*args)


def staged(stage: Stage, input_tile: int) -> Callable[..., Any]:
    """The stage as a function of NHWC images."""

    def function(images: jax.Array, *rest: Any) -> Any:
        out, sums = stage(blocks.to_slices(images, input_tile), *rest)
        return to_images(out), sums

    return function


@pytest.mark.usefixtures("_x64")
@pytest.mark.parametrize(("stage", "kernel_size", "affine", "input_tile"), CASES)
def test_value_and_gradients_are_those_of_the_definition(
    stage: Stage, affine: bool, kernel_size: int, input_tile: int
) -> None:
    # Integers, and quarters of them, are exact in float64 in whatever order they are added; and
    # with them values tie and lie on a relu's edge.
    args = arguments(kernel_size, affine)
    ours, expected = jax.jit(
        lambda args: (
            outcome(staged(stage, input_tile), args),
            outcome(lambda *args: reference(stage, *args), args),
        )
    )(args)
    jax.tree.map(np.testing.assert_array_equal, ours, expected)
    assert all((np.asarray(grad) != 0).any() for grad in ours[0])


def test_a_stage_is_a_convolution_alone_by_default() -> None:
    assert dataclasses.astuple(Stage()) == (1, False, False, False, False, False)


@pytest.mark.usefixtures("_x64")
def test_members_of_an_ensemble_equal_single_stages() -> None:
    stage = STAGES[2]
    args = arguments(3, True)
    kernels = integers(9, 3, 3, 3, 3, 5)

    def run(kernel: jax.Array) -> Any:
        return outcome(staged(stage, 2), (args[0], kernel, *args[2:]))

    together, alone = jax.jit(lambda k: (jax.vmap(run)(k), run(k[1])))(kernels)
    jax.tree.map(lambda many, one: np.testing.assert_array_equal(many[1], one), together, alone)


@pytest.mark.usefixtures("_x64")
def test_a_tie_goes_to_the_first_corner_as_in_pytorch() -> None:
    stage = Stage(tile=2, max_after=True)
    kernel = np.zeros((3, 3, 1, 1))
    kernel[1, 1] = 1.0

    def total(images: jax.Array) -> jax.Array:
        out, _ = stage(blocks.to_slices(images, 2), kernel, np.zeros(1))
        return jnp.sum(out)

    grad = jax.jit(jax.grad(total))(np.ones((1, 4, 4, 1)))[0, :, :, 0]
    np.testing.assert_array_equal(grad, np.kron(np.ones((2, 2)), [[1, 0], [0, 0]]))
