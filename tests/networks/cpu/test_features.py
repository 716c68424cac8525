from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.networks.cnn import Cifar10CNN, MnistCNN
from jaxcnn.networks.cpu import library

NETWORKS = {"mnist": (MnistCNN, (28, 28, 1)), "cifar10": (Cifar10CNN, (32, 32, 3))}


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("batch", [1, 4, pytest.param(33, marks=pytest.mark.slow)])
def test_networks_in_stages_round_no_worse_than_in_layers(
    name: str, batch: int, train: bool
) -> None:
    network, shape = NETWORKS[name]
    variables = jax.jit(network().init)(jax.random.key(0), jnp.zeros((1, *shape)))
    if name == "cifar10":
        # A negative scale turns the largest value into the smallest.
        for layer in ("batch_norm3", "batch_norm5"):
            scale = variables["params"][layer]["scale"]
            variables["params"][layer]["scale"] = scale.at[::3].set(-0.7)
    images = jax.random.normal(jax.random.key(1), (batch, *shape))

    def run(staged: bool, dtype: Any = jnp.float32) -> Any:
        model = network(dropout_rate=0.0, staged=staged, dtype=dtype)

        def loss(params: Any, images: jax.Array) -> Any:
            logits, changed = model.apply(
                {**variables, "params": params}, images, train=train, mutable=["batch_stats"]
            )
            return jnp.sum(jnp.sin(logits)), (logits, changed)

        grad = jax.grad(loss, argnums=(0, 1), has_aux=True)
        return jax.device_get(jax.jit(grad)(variables["params"], images))

    ours, layers = run(True), run(False)
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        exact = run(False, jnp.float64)
    (grads, image_grads), values = ours
    _, layer_values = layers
    (exact_grads, exact_images), exact_values = exact
    # Values depend on their inputs continuously: no relu or pool makes one jump. The largest of
    # ten errors or more is much the same in any order of summation; one in the last digit is free.
    together = map(jax.tree.leaves, (values, layer_values, exact_values))
    for one, other, value in zip(*together, strict=True):
        free = 4 * np.finfo(np.float32).eps * np.abs(value).max()
        assert np.abs(one - value).max() <= 8 * np.abs(other - value).max() + free
    # Gradients jump where a relu or a pool decides otherwise, which is rare.
    np.testing.assert_allclose(image_grads, exact_images, atol=1e-3 * np.abs(exact_images).max())
    for layer, leaves in exact_grads.items():
        # A bias before BatchNorm has no gradient in training but rounding.
        scale = np.abs(leaves.get("kernel", leaves["bias"])).max()
        for leaf, wanted in leaves.items():
            assert np.abs(grads[layer][leaf] - wanted).max() <= 1e-3 * scale, (layer, leaf)


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


def test_only_cpu_computes_in_stages() -> None:
    model = MnistCNN()
    images = jnp.zeros((2, 28, 28, 1))
    variables = jax.eval_shape(model.init, jax.random.key(1), images)

    def loss(variables: Any) -> jax.Array:
        rngs = {"dropout": jax.random.key(0)}
        return jnp.sum(model.apply(variables, images, train=True, rngs=rngs))

    traced = jax.jit(jax.grad(loss)).trace(variables)
    assert library.BACKWARD in traced.lower(lowering_platforms=("cpu",)).as_text()
    cuda = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.convolution" in cuda
    assert library.BACKWARD not in cuda


def test_intermediate_values_are_computed_in_layers() -> None:
    model, images = MnistCNN(), jnp.zeros((2, 28, 28, 1))
    variables = jax.eval_shape(model.init, jax.random.key(1), images)

    def text(mutable: Any, images: Any) -> str:
        run = jax.jit(lambda variables, images: model.apply(variables, images, mutable=mutable))
        return run.trace(variables, images).lower(lowering_platforms=("cpu",)).as_text()

    assert library.FORWARD in text(False, images)
    assert library.FORWARD not in text(["intermediates"], images)


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
