import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.networks.cnn import Cifar10CNN, MnistCNN
from jaxcnn.networks.cpu import features

NETWORKS = {
    "mnist": (MnistCNN, (28, 28, 1), features.mnist_stages),
    "cifar10": (
        Cifar10CNN,
        (32, 32, 3),
        functools.partial(features.cifar10_stages, momentum=0.9, epsilon=1e-5),
    ),
}


def outcome(compute: Callable[..., Any], variables: Any, images: np.ndarray) -> Any:
    """Features and running statistics, and the derivatives of a mix of the features."""

    def loss(params: Any, images: jax.Array) -> Any:
        found, batch_stats = compute({**variables, "params": params}, images)
        return jnp.sum(jnp.sin(found)), (found, batch_stats)

    return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables["params"], images)


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.usefixtures("_x64")
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 3, 64, 96, 127])  # 1 slice, except 96: 2 of 48
def test_networks_train_in_stages_as_in_layers(name: str, batch: int) -> None:
    network, shape, stages = NETWORKS[name]
    model = network(dtype=jnp.float64)
    random = np.random.RandomState(0)
    images = random.standard_normal((batch, *shape))
    blank = jax.eval_shape(network().init, jax.random.key(0), np.zeros((1, *shape), np.float32))
    # A negative scale turns the largest value into the smallest.
    variables = jax.tree.map(lambda leaf: random.uniform(-0.5, 0.5, leaf.shape), blank)
    variables["params"] = {k: v for k, v in variables["params"].items() if not k.startswith("fc")}

    def layers(variables: Any, images: jax.Array) -> Any:
        with jax.numpy_dtype_promotion("standard"):  # Flax asks what float32 and float64 make
            found, changed = model.apply(
                variables, images, True, method="features", mutable=["batch_stats"]
            )
        return found, changed.get("batch_stats", {})

    ours, expected = jax.jit(lambda *args: (outcome(stages, *args), outcome(layers, *args)))(
        variables, images
    )
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
    network, shape, _ = NETWORKS[name]
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
    with pytest.raises(TypeError, match="forward-mode"):  # so `staged=False` is needed
        jax.jit(tangent, static_argnums=1).lower(images, True)
