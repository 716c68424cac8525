from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.networks.cnn import MnistCNN
from jaxcnn.networks.cpu import library, pooling, substitution
from jaxcnn.networks.cpu.substitution import Substituted, fastest, slow_in_loops

# Flax's average pooling mixes dtypes.
pytestmark = pytest.mark.loose_promotion


class Everything(nn.Module):
    """Convolutions and poolings that have a fast form, and such that have none."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.relu(nn.Conv(4, (3, 3))(images))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.GroupNorm(2)(nn.BatchNorm(use_running_average=not train)(x))
        x = nn.max_pool(nn.Conv(4, (3, 3), strides=2)(x), (2, 2))  # overlapping
        x = nn.Conv(4, (3, 3), feature_group_count=2)(nn.avg_pool(x, (2, 2)))
        x = nn.Dropout(0.5)(x, deterministic=not train)
        return nn.Dense(10)(x.reshape(len(x), -1))


class Fast(nn.Module):
    """What has a fast form only, a convolution with strides among it."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.max_pool(nn.Conv(4, (3, 3), strides=2)(images), (2, 2), (2, 2))
        x = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
        return nn.Dense(10)(nn.Dropout(0.5)(x.reshape(len(x), -1), deterministic=not train))


IMAGES = jax.random.normal(jax.random.key(1), (6, 12, 12, 3))


def gradients(model: Any, variables: Any) -> Any:
    """The loss, the new statistics, and the gradients for parameters and images."""

    def loss(params: Any, images: jax.Array) -> tuple[jax.Array, Any]:
        logits, changed = model.apply(
            variables | {"params": params},
            images,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(2)},
        )
        return (logits**2).sum(), changed

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(variables["params"], IMAGES)


def test_a_network_computes_the_same() -> None:
    model = Everything()
    fast = fastest(model)
    assert isinstance(fast, Substituted)
    variables = fast.init(jax.random.key(0), IMAGES)
    for one, other in zip(
        jax.tree.leaves(gradients(fast, variables)),
        jax.tree.leaves(gradients(model, variables)),
        strict=True,
    ):
        # Sums of at most a thousand products, of which each is rounded by 6e-8 at most.
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4 * np.abs(other).max())
    logits = fast.apply(variables, IMAGES)
    assert logits.shape == (6, 10)


def test_only_what_has_a_fast_form_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    pooled: list[tuple[int, ...]] = []

    def watched(images: jax.Array) -> jax.Array:
        pooled.append(images.shape)
        return pooling.max_pool(images)

    monkeypatch.setattr(substitution, "max_pool", watched)
    model = Everything()
    variables = model.init(jax.random.key(0), IMAGES)
    program = str(jax.make_jaxpr(fastest(model).apply)(variables, IMAGES))
    assert program.count("jaxcnn_forward") == 2  # not the one in groups
    assert set(pooled) == {(6, 12, 12, 4)}
    assert "axes=(1, 2, 4)" not in program  # GroupNorm's sums, in two
    # As it is written where forward-mode derivatives are wanted.
    plain = str(jax.make_jaxpr(fastest(model).clone(staged=False).apply)(variables, IMAGES))
    assert plain == str(jax.make_jaxpr(model.apply)(variables, IMAGES))
    assert "jaxcnn_forward" not in plain
    assert "axes=(1, 2, 4)" in plain


def test_what_stays_as_it_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    staged, own = MnistCNN(), Everything()
    assert fastest(staged) is staged
    assert slow_in_loops(fastest(own), IMAGES.shape[1:])  # a convolution in groups
    assert not slow_in_loops(fastest(Fast()), IMAGES.shape[1:])
    assert slow_in_loops(Fast(), IMAGES.shape[1:])
    assert not slow_in_loops(staged, (28, 28, 1))
    monkeypatch.setenv(library.VARIABLE, "xla")
    assert fastest(own) is own
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not slow_in_loops(own, IMAGES.shape[1:])


def test_a_function_of_pytrees() -> None:
    def function(tree: Any) -> Any:
        return {"sum": tree["a"] + tree["a"], "same": tree["a"], "one": jnp.float32(1)}

    out = substitution.substitute(function)({"a": jnp.arange(3.0)})
    assert out["sum"].tolist() == [0, 2, 4]
    assert out["same"].tolist() == [0, 1, 2]
    assert out["one"] == 1
