import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn import models
from jaxcnn.models import Cifar10CNN, MnistCNN

NETWORKS = [
    pytest.param(MnistCNN(), (28, 28, 1), 207_258, id="mnist"),
    pytest.param(Cifar10CNN(), (32, 32, 3), 554_890, id="cifar10"),
]


@functools.cache
def initial_variables(model: nn.Module) -> dict:
    shape = (28, 28, 1) if isinstance(model, MnistCNN) else (32, 32, 3)
    return jax.jit(model.init)(jax.random.key(0), images(shape))


def images(shape: tuple[int, ...], batch: int = 4) -> jax.Array:
    return jax.random.normal(jax.random.key(9), (batch, *shape))


@pytest.mark.parametrize(("model", "shape", "parameters"), NETWORKS)
def test_parameters_and_logits(model: nn.Module, shape: tuple[int, ...], parameters: int) -> None:
    variables = initial_variables(model)
    assert models.count_parameters(variables["params"]) == parameters
    assert set(variables) <= {"params", "batch_stats"}
    logits = model.apply(variables, images(shape))
    assert logits.shape == (4, 10)
    assert logits.dtype == jnp.float32


@pytest.mark.parametrize(("model", "shape", "parameters"), NETWORKS)
def test_summary(model: nn.Module, shape: tuple[int, ...], parameters: int) -> None:
    text = models.summary(model, images(shape, 1))
    assert text.count(f"{parameters:,}") == 2  # the table's total and the closing line
    assert text.endswith(f"Parameters: {parameters:,}\n")
    assert "\x1b" not in text
    for layer in initial_variables(model)["params"]:
        assert re.search(rf"\b{layer}\b", text)


@pytest.mark.parametrize(
    ("model", "shape", "expected"),
    [
        (MnistCNN(), (28, 28, 1), [(28, 28, 4), (14, 14, 8)]),
        (
            Cifar10CNN(),
            (32, 32, 3),
            [(32, 32, 4), (32, 32, 8), (32, 32, 16), (16, 16, 32), (8, 8, 64)],
        ),
    ],
    ids=["mnist", "cifar10"],
)
def test_feature_maps(
    model: nn.Module, shape: tuple[int, ...], expected: list[tuple[int, ...]]
) -> None:
    variables = initial_variables(model)
    maps = models.feature_maps(model, variables, images(shape))
    assert list(maps) == [f"conv{layer}" for layer in range(1, len(expected) + 1)]
    assert [value.shape[1:] for value in maps.values()] == expected
    first = nn.relu(maps["conv1"])  # after relu, so relu changes nothing
    np.testing.assert_array_equal(first, maps["conv1"])
    assert (maps["conv1"] > 0).any()


def test_the_third_block_of_cifar10_has_relu_before_batch_norm() -> None:
    model = Cifar10CNN()
    variables = initial_variables(model)
    variables = jax.tree.map(lambda leaf: leaf, variables)  # a copy to change
    variables["params"]["batch_norm3"]["bias"] -= 1.0
    maps = models.feature_maps(model, variables, images((32, 32, 3)))
    assert (maps["conv3"] < 0).any()
    assert not any((maps[f"conv{layer}"] < 0).any() for layer in (1, 2, 4, 5))


@pytest.mark.parametrize(("model", "shape", "parameters"), NETWORKS)
def test_dropout_only_in_training(
    model: nn.Module, shape: tuple[int, ...], parameters: int
) -> None:
    variables = initial_variables(model)

    def logits(train: bool, seed: int) -> jax.Array:
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(
            variables, images(shape), train=train, rngs=rngs, mutable=["batch_stats"]
        )[0]

    np.testing.assert_array_equal(logits(False, 0), logits(False, 1))
    assert (logits(True, 0) != logits(True, 1)).any()
    np.testing.assert_array_equal(logits(True, 0), logits(True, 0))


def test_dropout_drops_half_of_the_hidden_units_and_doubles_the_rest() -> None:
    model = MnistCNN()
    variables = initial_variables(model)
    _, seen = model.apply(
        variables,
        images((28, 28, 1), 64),
        train=True,
        rngs={"dropout": jax.random.key(1)},
        capture_intermediates=lambda module, _: isinstance(module, nn.Dense | nn.Dropout),
        mutable=["intermediates"],
    )
    hidden = nn.relu(seen["intermediates"]["fc1"]["__call__"][0])
    dropped = seen["intermediates"]["dropout"]["__call__"][0]
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], 2 * hidden[kept], rtol=1e-6)
    assert float(jnp.mean(kept[hidden > 0])) == pytest.approx(0.5, abs=0.02)


def test_batch_statistics_move_only_in_training() -> None:
    model = Cifar10CNN()
    variables = initial_variables(model)
    options = {"rngs": {"dropout": jax.random.key(1)}, "mutable": ["batch_stats"]}
    _, still = model.apply(variables, images((32, 32, 3)), train=False, **options)
    jax.tree.map(np.testing.assert_array_equal, still["batch_stats"], variables["batch_stats"])
    _, moved = model.apply(variables, images((32, 32, 3)), train=True, **options)
    before = nn.Conv(4, (3, 3), padding=1).apply(
        {"params": variables["params"]["conv1"]}, images((32, 32, 3))
    )
    stats = moved["batch_stats"]["batch_norm1"]
    np.testing.assert_allclose(stats["mean"], 0.1 * before.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    expected = 0.9 * 1.0 + 0.1 * before.var((0, 1, 2))
    np.testing.assert_allclose(stats["var"], expected, rtol=1e-4)
