from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcnn import blocks
from jaxcnn.models import Cifar10CNN, MnistCNN
from jaxcnn.pooling import avg_pool
from jaxcnn.stages import Stage

NETWORKS = {"mnist": (MnistCNN, (28, 28, 1)), "cifar10": (Cifar10CNN, (32, 32, 3))}

STAGES = [
    Stage(),
    Stage(tile=2),
    Stage(tile=2, relu_before=True, sums=True),
    Stage(tile=2, relu_before=True, relu_after=True, sums=True, max_after=True),
    Stage(tile=1, average_before=True, sums=True, max_after=True),
    Stage(tile=2, relu_before=True, average_before=True, relu_after=True, max_after=True),
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
    """The stage by its definition, on NHWC images and with XLA's own convolution and pooling."""

    def channels(x: jax.Array) -> jax.Array:
        return x.reshape(1, 1, 1, -1)

    x = images
    if scale is not None and shift is not None:
        x = x * channels(scale) + channels(shift)
    x = nn.relu(x) if stage.relu_before else x
    x = avg_pool(x) if stage.average_before else x
    x = lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    ) + channels(bias)
    x = nn.relu(x) if stage.relu_after else x
    sums = (x.sum((0, 1, 2)), (x * x).sum((0, 1, 2))) if stage.sums else ()
    if stage.max_after:
        signs = channels(jnp.ones_like(bias) if sign is None else sign)
        x = nn.max_pool(x * signs, (2, 2), (2, 2)) * signs
    return x, sums


def to_images(x: jax.Array) -> jax.Array:
    """Undoes `to_slices`."""
    slices, tile, _, channels, height, width, size = x.shape
    return x.transpose(0, 6, 4, 1, 5, 2, 3).reshape(
        slices * size, height * tile, width * tile, channels
    )


def arguments(kernel_size: int, batch: int, affine: bool) -> tuple[Any, ...]:
    keys = jax.random.split(jax.random.key(batch), 6)
    return (
        jax.random.normal(keys[0], (batch, 8, 12, 3)),
        jax.random.normal(keys[1], (kernel_size, kernel_size, 3, 5)) / kernel_size,
        jax.random.normal(keys[2], (5,)),
        jax.random.normal(keys[3], (3,)) if affine else None,
        jax.random.normal(keys[4], (3,)) if affine else None,
        jnp.array([1.0, -1.0, 1.0, -1.0, -1.0]) if affine else None,
    )


def outcome(function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """The value, and the derivatives of a mix of everything that comes out."""

    def loss(*args: Any) -> Any:
        out, sums = function(*args)
        total = jnp.sum(jnp.sin(out)) + sum(jnp.sum(jnp.cos(s / 100)) for s in sums)
        return total, (out, sums)

    wanted = [i for i, arg in enumerate(args[:5]) if arg is not None]
    return jax.jit(jax.grad(loss, argnums=wanted, has_aux=True))(*args)


@pytest.mark.parametrize("stage", STAGES, ids=str)
@pytest.mark.parametrize(
    ("kernel_size", "affine", "input_tile"), [(3, False, 1), (3, True, 2), (5, True, 1)]
)
def test_value_and_gradients_are_those_of_the_definition(
    stage: Stage, affine: bool, kernel_size: int, input_tile: int
) -> None:
    args = arguments(kernel_size, 6, affine)

    def staged(images: jax.Array, *rest: Any) -> Any:
        out, sums = stage(blocks.to_slices(images, input_tile), *rest)
        return to_images(out), sums

    grads, value = outcome(staged, args)
    expected_grads, expected = outcome(lambda *args: reference(stage, *args), args)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-5), value, expected
    )
    for grad, wanted in zip(grads, expected_grads, strict=True):
        size = np.abs(wanted).max()
        np.testing.assert_allclose(grad / size, wanted / size, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 3, 64, 96, 127])  # 1 slice, but for 96: 2 of 48
def test_networks_train_in_stages_as_in_layers(name: str, batch: int) -> None:
    network, shape = NETWORKS[name]
    variables = jax.jit(network().init)(jax.random.key(0), jnp.zeros((1, *shape)))
    if name == "cifar10":  # a negative scale turns the largest value into the smallest
        for layer in ("batch_norm3", "batch_norm5"):
            scale = variables["params"][layer]["scale"]
            variables["params"][layer]["scale"] = scale.at[::3].set(-0.7)
    images = jax.random.normal(jax.random.key(1), (batch, *shape))

    def run(staged: bool) -> Any:
        def loss(params: Any, images: jax.Array) -> Any:
            logits, changed = network(staged=staged).apply(
                {**variables, "params": params},
                images,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(2)},
            )
            return jnp.sum(jnp.sin(logits)), (logits, changed)

        return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True))(variables["params"], images)

    ((grads, image_grads), value), ((expected, expected_images), expected_value) = (
        run(True),
        run(False),
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), value, expected_value
    )
    # Compared by their norms: now and then rounding decides which way one gradient goes in a relu
    # or a pool, in either program. A bias before BatchNorm has no gradient but rounding.
    for layer, leaves in expected.items():
        scale = np.linalg.norm(leaves.get("kernel", leaves["bias"]))
        for leaf, wanted in leaves.items():
            assert np.linalg.norm(grads[layer][leaf] - wanted) <= 0.01 * scale, (layer, leaf)
    difference = np.linalg.norm(image_grads - expected_images)
    assert difference <= 0.01 * np.linalg.norm(expected_images)


def test_a_tie_goes_to_the_first_corner_as_in_pytorch() -> None:
    stage = Stage(tile=2, max_after=True)
    kernel = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)

    def total(images: jax.Array) -> jax.Array:
        out, _ = stage(blocks.to_slices(images, 2), kernel, jnp.zeros(1))
        return jnp.sum(out)

    grad = jax.grad(total)(jnp.ones((1, 4, 4, 1)))[0, :, :, 0]
    np.testing.assert_array_equal(grad, np.kron(np.ones((2, 2)), [[1, 0], [0, 0]]))


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
    images = jnp.ones((2, 28, 28, 1))
    model = MnistCNN(dropout_rate=0.0, staged=False)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    apply = jax.jit(lambda x: model.apply(variables, x, train=True))
    _, tangent = jax.jvp(apply, (images,), (images,))
    assert jnp.isfinite(tangent).all()
