import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.errors import UserError
from jaxcnn.networks.cnn import CNN, Cifar10CNN, MnistCNN
from jaxcnn.networks.inspect import count_parameters, feature_maps
from jaxcnn.recipes import named
from jaxcnn.train.setup import make_model
from tests import original

NETWORKS = [
    pytest.param(MnistCNN(), (28, 28, 1), 207_258, id="mnist"),
    pytest.param(Cifar10CNN(), (32, 32, 3), 554_890, id="cifar10"),
]


IDS = {"argnames": ("model", "shape", "parameters"), "argvalues": NETWORKS}


def test_networks_train_in_stages_by_default() -> None:
    assert MnistCNN().staged
    assert Cifar10CNN().staged


@functools.cache
def initial_variables(model: nn.Module) -> dict:
    """Numbers like those of PyTorch's initialisation, with scales of one and means of zero."""
    shape = (28, 28, 1) if isinstance(model, MnistCNN) else (32, 32, 3)
    blank = jax.eval_shape(model.init, jax.random.key(0), images(shape))
    random = np.random.RandomState(0)

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        if path[-1].key in ("scale", "var"):
            return np.ones(leaf.shape, np.float32)
        bound = 1 / np.sqrt(np.prod(leaf.shape[:-1])) if path[-1].key == "kernel" else 0
        return random.uniform(-bound, bound, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, blank)


def images(shape: tuple[int, ...], batch: int | None = None) -> np.ndarray:
    batch = batch or (64 if shape == (28, 28, 1) else 16)
    return np.random.RandomState(9).standard_normal((batch, *shape)).astype(np.float32)


@functools.cache
def maps_of(model: nn.Module) -> Callable[..., dict[str, jax.Array]]:
    return jax.jit(functools.partial(feature_maps, model))


@functools.cache
def applied(model: nn.Module) -> Callable[..., tuple[jax.Array, dict]]:
    """Logits, and what dense layers, dropout and BatchNorm did: one program for many tests."""

    def apply(variables: dict, images: jax.Array, train: bool, seed: int) -> tuple:
        return model.apply(
            variables,
            images,
            train=train,
            rngs={"dropout": jax.random.key(seed)},
            capture_intermediates=lambda module, _: isinstance(module, nn.Dense | nn.Dropout),
            mutable=["batch_stats", "intermediates"],
        )

    return jax.jit(apply, static_argnums=2)


@pytest.mark.loose_promotion  # Flax's BatchNorm mixes float32 with bfloat16
@pytest.mark.parametrize(**IDS)
def test_parameters_and_logits(model: nn.Module, shape: tuple[int, ...], parameters: int) -> None:
    x = images(shape, 4)
    variables = jax.eval_shape(model.init, jax.random.key(0), x)
    assert count_parameters(variables["params"]) == parameters
    assert set(variables) <= {"params", "batch_stats"}
    for net in (model, model.clone(dtype=jnp.bfloat16)):
        logits = jax.eval_shape(net.apply, variables, x)
        assert logits.shape == (4, 10)
        assert logits.dtype == jnp.float32


def test_the_third_block_of_cifar10_has_relu_before_batch_norm() -> None:
    model = Cifar10CNN()
    variables = initial_variables(model)
    params = variables["params"] | {
        "batch_norm3": {"scale": np.ones(16, np.float32), "bias": np.full(16, -1, np.float32)}
    }
    maps = maps_of(model)({**variables, "params": params}, images((32, 32, 3)))
    assert (maps["conv3"] < 0).any()
    assert not any((maps[f"conv{layer}"] < 0).any() for layer in (1, 2, 4, 5))


@pytest.mark.parametrize(**IDS)
def test_dropout_only_in_training(
    model: nn.Module, shape: tuple[int, ...], parameters: int
) -> None:
    def logits(train: bool, seed: int) -> jax.Array:
        return applied(model)(initial_variables(model), images(shape), train, seed)[0]

    np.testing.assert_array_equal(logits(False, 0), logits(False, 1))
    assert (logits(True, 0) != logits(True, 1)).any()
    np.testing.assert_array_equal(logits(True, 0), logits(True, 0))


def test_dropout_drops_half_of_the_hidden_units_and_doubles_the_rest() -> None:
    model = MnistCNN()
    _, seen = applied(model)(initial_variables(model), images((28, 28, 1)), True, 1)
    hidden = np.maximum(seen["intermediates"]["fc1"]["__call__"][0], 0)
    dropped = np.asarray(seen["intermediates"]["dropout"]["__call__"][0])
    kept = dropped != 0
    np.testing.assert_allclose(dropped[kept], 2 * hidden[kept], rtol=1e-6)
    # Of 16,000 units; the standard deviation is 0.004, and the key draws the same bits everywhere.
    assert (hidden > 0).sum() > 10_000
    assert float(np.mean(kept[hidden > 0])) == pytest.approx(0.5, abs=0.02)


def test_batch_statistics_move_only_in_training() -> None:
    model = Cifar10CNN()
    variables, x = initial_variables(model), images((32, 32, 3))
    _, still = applied(model)(variables, x, False, 1)
    jax.tree.map(np.testing.assert_array_equal, still["batch_stats"], variables["batch_stats"])
    _, moved = applied(model)(variables, x, True, 1)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (1, 2))
    kernel = variables["params"]["conv1"]["kernel"]
    before = np.einsum("nhwcij,ijco->nhwo", patches, kernel, dtype=np.float64)
    stats = moved["batch_stats"]["batch_norm1"]
    # Means of 16,384 values of size 1: float32 may be off by 1e-6 where they cancel.
    np.testing.assert_allclose(stats["mean"], 0.1 * before.mean((0, 1, 2)), rtol=1e-4, atol=1e-6)
    expected = 0.9 * 1.0 + 0.1 * before.var((0, 1, 2))
    np.testing.assert_allclose(stats["var"], expected, rtol=1e-4)
    assert all(
        (moved["batch_stats"][layer][leaf] != value).all()
        for layer, leaves in variables["batch_stats"].items()
        for leaf, value in leaves.items()
    )


@pytest.mark.parametrize("network", ["mnist", "cifar10"])
def test_reference_starts_as_pytorch_does(network: str) -> None:
    recipe = named.recipe(network, "reference")
    assert recipe.initialization == "pytorch"
    net = make_model(recipe)
    images = jnp.zeros((1, *original.SHAPES[network]))
    params = jax.jit(net.init)(jax.random.key(0), images)["params"]
    for layer, leaves in params.items():
        if layer.startswith("batch_norm"):
            np.testing.assert_array_equal(leaves["scale"], 1)
            np.testing.assert_array_equal(leaves["bias"], 0)
            continue
        bound = 1 / np.sqrt(np.prod(leaves["kernel"].shape[:-1]))
        for leaf in leaves.values():
            assert np.abs(leaf).max() <= bound
            if leaf.size > 500:  # uniform: standard deviation bound / sqrt(3), and near its ends
                assert np.std(leaf) == pytest.approx(bound / np.sqrt(3), rel=0.05)
                assert np.abs(leaf).max() > 0.98 * bound
            if leaf.size >= 100:  # that none of n is so near an end has a chance of exp(-9)
                assert np.abs(leaf).max() > (1 - 9 / leaf.size) * bound
        assert np.abs(leaves["bias"]).max() > 0


@pytest.mark.parametrize(
    ("kind", "shape", "flattened"),
    [(MnistCNN, (20, 36, 3), 5 * 9 * 8), (Cifar10CNN, (24, 40, 1), 3 * 5 * 64)],
)
def test_other_images_and_classes(
    kind: type[CNN], shape: tuple[int, int, int], flattened: int
) -> None:
    """Layers adapt to them, and the kernels on CPU compute the same as XLA."""
    model = kind(classes=12, image_shape=shape, initialization="pytorch")
    images = jnp.asarray(np.random.default_rng(0).normal(size=(5, *shape)).astype(np.float32))
    variables = jax.jit(model.init)(jax.random.key(0), images)
    params = variables["params"]
    assert params["fc1"]["kernel"].shape == (flattened, 512)
    assert params["fc2"]["bias"].shape == (12,)
    assert params["conv1"]["kernel"].shape[2] == shape[2]
    assert np.abs(params["fc1"]["bias"]).max() <= 1 / np.sqrt(flattened)
    logits = jax.jit(model.apply)(variables, images)
    plain = jax.jit(model.clone(staged=False).apply)(variables, images)
    assert logits.shape == (5, 12)
    np.testing.assert_allclose(logits, plain, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "shape", "factor"),
    [(MnistCNN, (28, 30, 1), 4), (Cifar10CNN, (36, 32, 3), 8), (Cifar10CNN, (0, 32, 3), 8)],
)
def test_images_that_cannot_be_pooled(
    kind: type[CNN], shape: tuple[int, int, int], factor: int
) -> None:
    model = kind(image_shape=shape)
    with pytest.raises(UserError, match=rf"{kind.__name__} halves .* multiples of {factor}"):
        model.init(jax.random.key(0), jnp.zeros((1, *shape)))
