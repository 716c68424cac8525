import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcnn.networks.cnn import Cifar10CNN, MnistCNN
from jaxcnn.networks.cpu import blocks
from jaxcnn.networks.cpu.stages import Stage

NETWORKS = {"mnist": (MnistCNN, (28, 28, 1)), "cifar10": (Cifar10CNN, (32, 32, 3))}

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


@pytest.fixture
def _x64() -> Iterator[None]:
    """Float64 as the judge: rounding is so small that no relu or pool decides otherwise by it."""
    with jax.enable_x64(True):
        yield


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


def network_outcome(features: Callable[..., Any], variables: Any, images: np.ndarray) -> Any:
    """Features and running statistics, and the derivatives of a mix of the features."""

    def loss(params: Any, images: jax.Array) -> Any:
        found, batch_stats = features({**variables, "params": params}, images)
        return jnp.sum(jnp.sin(found)), (found, batch_stats)

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], images)


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.usefixtures("_x64")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 3, 64, 96, 127])  # 1 slice, but for 96: 2 of 48
def test_networks_train_in_stages_as_in_layers(name: str, batch: int) -> None:
    network, shape = NETWORKS[name]
    model = network(dtype=jnp.float64)
    random = np.random.RandomState(0)
    images = random.standard_normal((batch, *shape))
    blank = jax.eval_shape(network().init, jax.random.key(0), np.zeros((1, *shape), np.float32))
    # A negative scale turns the largest value into the smallest.
    variables = jax.tree.map(lambda leaf: random.uniform(-0.5, 0.5, leaf.shape), blank)
    variables["params"] = {k: v for k, v in variables["params"].items() if not k.startswith("fc")}

    def layers(variables: Any, images: jax.Array) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # Flax asks what float32 and float64 make
            features, changed = model.apply(
                variables, images, True, method="features", mutable=["batch_stats"]
            )
        return features, changed.get("batch_stats", {})

    ours, expected = jax.jit(
        lambda *args: (network_outcome(model._stages, *args), network_outcome(layers, *args))
    )(variables, images)
    # Float64 rounds to 1e-16. A hundred thousand terms, and a variance that may be ten thousand
    # times smaller than the mean's square, leave nine digits.
    (_, value), (_, expected_value) = ours, expected
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-8), value, expected_value
    )
    (grads, image_grads), (expected_grads, expected_images) = ours[0], expected[0]
    for layer, leaves in expected_grads.items():
        # A bias before BatchNorm has no gradient but rounding.
        scale = np.linalg.norm(leaves.get("kernel", leaves["bias"]))
        for leaf, wanted in leaves.items():
            assert np.linalg.norm(grads[layer][leaf] - wanted) <= 1e-8 * scale, (layer, leaf)
    difference = np.linalg.norm(image_grads - expected_images)
    assert difference <= 1e-8 * np.linalg.norm(expected_images)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 3, 64, 96, 127])
def test_networks_in_stages_round_no_worse_than_in_layers(name: str, batch: int) -> None:
    network, shape = NETWORKS[name]
    variables = jax.jit(network().init)(jax.random.key(0), jnp.zeros((1, *shape)))
    if name == "cifar10":
        for layer in ("batch_norm3", "batch_norm5"):
            scale = variables["params"][layer]["scale"]
            variables["params"][layer]["scale"] = scale.at[::3].set(-0.7)
    images = jax.random.normal(jax.random.key(1), (batch, *shape))

    def run(staged: bool, dtype: Any = jnp.float32) -> tuple[np.ndarray, ...]:
        model = network(dropout_rate=0.0, staged=staged, dtype=dtype)
        apply = jax.jit(lambda *args: model.apply(*args, train=True, mutable=["batch_stats"]))
        return tuple(map(np.asarray, jax.tree.leaves(apply(variables, images))))

    ours, layers = run(True), run(False)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        exact = run(False, jnp.float64)
    # Values depend on their inputs continuously: no relu or pool makes one jump. The largest of
    # ten errors or more is much the same in any order of summation; one in the last digit is free.
    for one, other, value in zip(ours, layers, exact, strict=True):
        free = 4 * np.finfo(np.float32).eps * np.abs(value).max()
        assert np.abs(one - value).max() <= 8 * np.abs(other - value).max() + free


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


@pytest.mark.slow
def test_members_of_an_ensemble_equal_single_runs() -> None:
    model = Cifar10CNN(dropout_rate=0.0)
    images = jax.random.normal(jax.random.key(1), (8, 32, 32, 3))
    keys = jax.random.split(jax.random.key(0), 3)
    variables = jax.jit(jax.vmap(lambda key: model.init(key, images)))(keys)

    def logits(variables: Any) -> jax.Array:
        return model.apply(variables, images, train=True, mutable=["batch_stats"])[0]

    together = jax.jit(jax.vmap(logits))(variables)
    for member in range(3):
        alone = jax.jit(logits)(jax.tree.map(lambda leaf, i=member: leaf[i], variables))
        # Seven layers of up to a thousand terms, with an eps of 1e-7: off by 1e-6 or so.
        np.testing.assert_allclose(together[member], alone, rtol=1e-4, atol=1e-5)


def test_only_cpu_trains_in_stages() -> None:
    model = MnistCNN()
    images = jnp.zeros((2, 28, 28, 1))
    variables = jax.eval_shape(model.init, jax.random.key(1), images)

    def loss(variables: Any) -> jax.Array:
        rngs = {"dropout": jax.random.key(0)}
        return jnp.sum(model.apply(variables, images, train=True, rngs=rngs))

    traced = jax.jit(jax.grad(loss)).trace(variables)
    assert "stablehlo.convolution" not in traced.lower(lowering_platforms=("cpu",)).as_text()
    cuda = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.convolution" in cuda
    assert "optimization_barrier" not in cuda  # which only the stages have


def test_layers_have_a_forward_mode_derivative() -> None:
    images = jnp.ones((2, 8, 8, 1))
    model = MnistCNN(dropout_rate=0.0)
    blank = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.1, np.float32), blank)

    def tangent(images: jax.Array, staged: bool) -> jax.Array:
        run = model.clone(staged=staged)
        return jax.jvp(lambda x: run.apply(variables, x, train=True), (images,), (images,))[1]

    assert jnp.isfinite(jax.jit(tangent, static_argnums=1)(images, False)).all()
    with pytest.raises(TypeError, match="forward-mode"):  # so the argument `staged` is needed
        jax.jit(tangent, static_argnums=1).lower(images, True)
