from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn import optimizers, recipes, state, steps
from jaxcnn.data import Dataset
from jaxcnn.data.augment import make_normalize
from jaxcnn.models import MnistCNN

BASE = recipes.get("mnist", "reference")

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_schedules(schedule: str, warmup: float) -> None:
    recipe = BASE.replace(schedule=schedule, warmup=warmup, learning_rate=0.5)
    rates = np.array([optimizers.make_schedule(recipe, 100)(step) for step in range(101)])
    assert rates.max() == pytest.approx(0.5)
    if warmup:
        np.testing.assert_allclose(rates[:10], 0.05 * np.arange(1, 11), rtol=1e-5)
    else:
        assert rates[0] == pytest.approx(0.5)
    rest = np.arange(101 - 100 * warmup) / (100 - 100 * warmup)
    expected = {
        "constant": np.ones_like(rest),
        "cosine": (1 + np.cos(np.pi * rest)) / 2,
        "linear": 1 - rest,
    }[schedule]
    np.testing.assert_allclose(rates[round(100 * warmup) :], 0.5 * expected, atol=1e-6)


def test_a_run_of_one_step() -> None:
    recipe = BASE.replace(schedule="linear", warmup=0.9)
    assert float(optimizers.make_schedule(recipe, 1)(0)) > 0


def test_reference_is_plain_sgd_with_momentum() -> None:
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    ours, plain = optimizers.make_optimizer(BASE, 100), optax.sgd(0.001, momentum=0.9)
    states = [tx.init(params) for tx in (ours, plain)]
    grads = jax.tree.map(lambda leaf: 3.0 * leaf, params)
    for _ in range(3):
        one, states[0] = ours.update(grads, states[0], params)
        other, states[1] = plain.update(grads, states[1], params)
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", get_args(recipes.OptimizerName))
def test_weight_decay_shrinks_kernels_alone(name: str) -> None:
    recipe = BASE.replace(optimizer=name, weight_decay=0.1, learning_rate=0.1)
    params = {"kernel": jnp.full((3, 3, 2, 4), 0.5), "bias": jnp.ones(4)}
    tx = optimizers.make_optimizer(recipe, 10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    assert (updates["kernel"] < 0).all()
    np.testing.assert_array_equal(updates["bias"], 0)


def test_muon_orthogonalises_convolution_kernels() -> None:
    recipe = BASE.replace(optimizer="muon", weight_decay=0.0, learning_rate=0.1)
    params = {"conv": jax.random.normal(jax.random.key(0), (3, 3, 8, 16))}
    # One direction far above the others, which neither scaling nor signs would level.
    random = np.random.RandomState(0)
    grad = 2 * np.outer(random.randn(72), random.randn(16)) + random.randn(72, 16)
    grads = {"conv": jnp.asarray(grad.reshape(3, 3, 8, 16), jnp.float32)}
    tx = optimizers.make_optimizer(recipe, 10)
    updates, _ = tx.update(grads, tx.init(params), params)
    singular = np.linalg.svd(np.array(updates["conv"]).reshape(72, 16), compute_uv=False)
    assert singular.max() / singular.min() < 2.5
    for plain in (grad, np.sign(grad)):
        singular = np.linalg.svd(plain, compute_uv=False)
        assert singular.max() / singular.min() > 5


@pytest.mark.parametrize("name", get_args(recipes.OptimizerName))
def test_every_optimizer_learns_with_its_defaults(name: str, tiny_mnist: Dataset) -> None:
    recipe = recipes.get("mnist", "fast").replace(optimizer=name, schedule="constant", warmup=0.0)
    model, tx = MnistCNN(), optimizers.make_optimizer(recipe, 60)
    current = state.init(jax.random.key(0), model, tx, (28, 28, 1))
    train_step = steps.make_train_step(model, tx, normalize=make_normalize((0.1307,), (0.3081,)))
    many = steps.make_train_steps(train_step)
    images = jnp.array(tiny_mnist.train.images[:320]).reshape(5, 64, 28, 28, 1)
    batches = {"image": images, "label": jnp.array(tiny_mnist.train.labels[:320]).reshape(5, 64)}
    losses = []
    for _ in range(12):
        current, sums = many(current, batches, 5)
        losses.append(float(sums["loss_sum"]) / 320)
    assert losses[-1] < 0.7 * losses[0]
    assert many._cache_size() == 1


def test_every_name_has_a_factory_and_defaults() -> None:
    names = set(get_args(recipes.OptimizerName))
    assert names == set(optimizers.FACTORIES) == set(recipes.OPTIMIZER_DEFAULTS)
