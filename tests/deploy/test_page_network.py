"""The network of the page, in JavaScript, against the network in JAX."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn.data.dataset import load_data
from jaxcnn.deploy import page_data
from jaxcnn.networks import inspect
from jaxcnn.recipes import named
from jaxcnn.storage import checkpoint
from jaxcnn.train.fit import fit
from jaxcnn.train.setup import make_model
from jaxcnn.train.trained import Trained, load_trained
from tests import saved
from tests.deploy.engine import Engine, floats

pytestmark = pytest.mark.loose_promotion  # optax mixes dtypes

TOLERANCE = 1e-4  # float32 keeps seven digits; a sum of 1,000 products loses one or two of them
COUNT = 5
# The network of `data`, with its weights.
MAKE = """
    const network = new Network(data.network, await unpackWeights(data.weights));
"""


@pytest.fixture
def network(networks: dict[str, Trained], name: str) -> Trained:
    return networks[name]


@pytest.fixture
def images(network: Trained) -> np.ndarray:
    shape = (COUNT, *network.image_shape)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def data(network: Trained) -> dict[str, Any]:
    return page_data.page_data(network, None)


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether two arrays differ by at most the tolerance, relative to the largest value."""
    assert found.shape == expected.shape
    return bool(abs(found - expected).max() <= TOLERANCE * abs(expected).max())


def logits(engine: Engine, network: Trained, images: np.ndarray) -> np.ndarray:
    body = f"{MAKE} return values(network.logits(pixels(images)));"
    return floats(engine.run(body, data=data(network), images=images), len(images), -1)


def test_logits(engine: Engine, network: Trained, images: np.ndarray) -> None:
    expected = saved.exact_logits(network.recipe, network.variables, images)
    assert abs(expected).max() > 0.1
    assert abs(logits(engine, network, images) - expected).max() < TOLERANCE


def test_other_shapes_and_classes(engine: Engine, network: Trained) -> None:
    """Of a run on data of one's own."""
    network, images = other_network(network)
    apply = jax.jit(network.model.clone(staged=False).apply)
    expected = np.asarray(apply(network.variables, normalized(network, images)))
    assert abs(logits(engine, network, images) - expected).max() < TOLERANCE


def other_network(network: Trained) -> tuple[Trained, np.ndarray]:
    mnist = network.recipe.network == "mnist"
    shape, classes = ((12, 20, 2), "abc") if mnist else ((16, 24, 1), "abcdefg")
    recipe = network.recipe.replace(mean=(0.4,), std=(0.3,))  # one for all channels
    model = make_model(recipe, len(classes), shape)
    random = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: (
            random.uniform(0.1, 0.2, leaf.shape).astype(np.float32)
            * random.choice(np.float32([-1, 1]), leaf.shape) ** (leaf.ndim > 1)
        ),
        inspect.variable_shapes(model, shape),
    )
    changed = dataclasses.replace(
        network,
        recipe=recipe,
        model=model,
        image_shape=shape,
        class_names=tuple(classes),
        variables=variables,
    )
    return changed, np.random.default_rng(1).integers(0, 256, (3, *shape), np.uint8)


def normalized(network: Trained, images: np.ndarray) -> np.ndarray:
    return (images / 255.0 - network.recipe.mean) / network.recipe.std


@pytest.mark.slow
def test_feature_maps(engine: Engine, network: Trained, images: np.ndarray) -> None:
    plain = network.model.clone(staged=False)
    maps = jax.jit(functools.partial(inspect.feature_maps, plain))
    for name, expected in maps(network.variables, normalized(network, images)).items():
        number = name.removeprefix("conv")
        cifar_third = network.recipe.network == "cifar10" and name == "conv3"
        layer = f"batch_norm{number}" if cifar_third else f"relu{number}"
        body = f"""{MAKE}
            const pass = network.forward(pixels(images));
            return values(pass.activations[network.index(layer)]);"""
        text = engine.run(body, data=data(network), images=images, layer=layer)
        assert close(floats(text, *expected.shape), np.asarray(expected)), name


def test_a_zeroed_map_is_one_without_weights(
    engine: Engine, images: np.ndarray, network: Trained
) -> None:
    body = f"""{MAKE}
        const zeroed = network.logits(pixels(images), {{ edit: zeroMaps({{ conv2: [3] }}) }});
        const before = network.logits(pixels(images));
        for (const name of ["conv2/kernel", "conv2/bias"]) {{
            const weight = network.weights[name];
            for (let i = 3; i < weight.length; i += 8) weight[i] = 0;
        }}
        return [zeroed, network.logits(pixels(images)), before].map(values);"""
    texts = engine.run(body, data=data(network), images=images)
    zeroed, without, before = (floats(text) for text in texts)
    assert np.array_equal(zeroed, without)
    assert not np.array_equal(zeroed, before)


Intercepted = Callable[[str, jax.Array], jax.Array]


def exact(network: Trained, change: Intercepted, train: bool) -> Callable[..., Any]:
    """Returns the network in float64, of XLA's operations, with the outputs of layers changed."""
    model = network.model.clone(dtype=jnp.float64, staged=False)

    def intercept(next_function: Any, args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module.name
        if isinstance(context.module, nn.Dropout):
            return change("dropout", args[0])
        output = next_function(*args, **kwargs)
        return change(layer, output) if context.method_name == "__call__" else output

    def apply(variables: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        with nn.intercept_methods(intercept):
            return model.apply(variables, x, train=train, mutable=["batch_stats"])

    return apply


def double(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


def test_gradients_of_training(engine: Engine, network: Trained, images: np.ndarray) -> None:
    """And the loss, and the running statistics after a step."""
    labels = np.arange(COUNT) * 3 % 10
    mask = np.random.default_rng(1).integers(0, 2, (COUNT, 512), np.uint8)
    body = f"""{MAKE}
        const options = {{ training: true, masks: {{ dropout: pixels(mask) }} }};
        const pass = network.forward(pixels(images), options);
        const loss = network.backward(pass, labels);
        const texts = (arrays) => Object.fromEntries(
            Object.entries(arrays).map(([name, array]) => [name, values(array)]));
        return [loss, texts(network.gradients), texts(network.weights)];"""
    loss, gradients, weights = engine.run(
        body, data=data(network), images=images, labels=labels.tolist(), mask=mask
    )

    def drop(layer: str, output: jax.Array) -> jax.Array:
        return output * mask / (1 - network.recipe.dropout) if layer == "dropout" else output

    with jax.enable_x64(True):
        variables = double(network.variables)
        x = normalized(network, images)
        apply = exact(network, drop, train=True)

        def mean_loss(params: Any) -> tuple[jax.Array, Any]:
            predicted, state = apply({**variables, "params": params}, x)
            return optax.losses.softmax_cross_entropy_with_integer_labels(
                predicted.astype(jnp.float64), labels
            ).mean(), state

        run = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))
        computed = run(variables["params"])
        (expected, state), expected_gradients = jax.tree.map(np.asarray, computed)
    assert loss == pytest.approx(float(expected), rel=TOLERANCE)
    assert len(gradients) == len(jax.tree.leaves(expected_gradients))
    largest = max(abs(leaf).max() for leaf in jax.tree.leaves(expected_gradients))
    for layer, leaves in expected_gradients.items():
        for leaf, array in leaves.items():
            found = floats(gradients[f"{layer}/{leaf}"], *array.shape)
            assert abs(found - array).max() <= TOLERANCE * largest, f"{layer}/{leaf}"
    for layer, leaves in state.get("batch_stats", {}).items():
        for leaf, array in leaves.items():
            assert close(floats(weights[f"{layer}/{leaf}"], *array.shape), array), layer


def test_gradients_of_activations(engine: Engine, network: Trained, images: np.ndarray) -> None:
    label = 4
    body = f"""{MAKE}
        const pass = network.forward(pixels(images));
        return values(network.activationGradient(pass, label, "conv2"));"""
    text = engine.run(body, data=data(network), images=images, label=label)
    with jax.enable_x64(True):
        x = normalized(network, images)
        height, width, _ = network.image_shape
        side = 2 if network.recipe.network == "mnist" else 1
        zero = np.zeros((COUNT, height // side, width // side, 8))

        def logit(difference: jax.Array) -> jax.Array:
            apply = exact(
                network,
                lambda layer, output: output + difference if layer == "conv2" else output,
                train=False,
            )
            return apply(double(network.variables), x)[0][:, label].sum()

        expected = np.asarray(jax.jit(jax.grad(logit))(zero))
    assert abs(expected).max() > 0
    assert close(floats(text, *expected.shape), expected)


@pytest.mark.parametrize("initialization", ["flax", "pytorch"])
def test_initialization(engine: Engine, networks: dict[str, Trained], initialization: str) -> None:
    packed = data(networks["cifar10"])
    packed["network"]["initialization"] = initialization
    body = f"""{MAKE}
        return [7, 7, 8].map((seed) => {{
            network.initialize(seed);
            const entries = Object.entries(network.weights);
            return entries.map(([name, array]) => [name, values(array)]);
        }});"""
    one, same, other = (
        {name: floats(text) for name, text in weights} for weights in engine.run(body, data=packed)
    )
    for name, values in one.items():
        layer, leaf = name.split("/")
        assert np.array_equal(values, same[name])
        if "batch_norm" in layer:
            assert set(values) == {float(leaf in ("scale", "var"))}
        elif leaf == "bias" and initialization == "flax":
            assert not values.any()
        else:
            assert not np.array_equal(values, other[name])
    kernel = one["fc1/kernel"]  # 524,288 values, of 1,024 inputs
    bound = 1 / 32
    if initialization == "flax":
        assert kernel.std() == pytest.approx(bound, rel=0.01)
        assert abs(kernel).max() == pytest.approx(2 * bound / 0.8796, rel=0.01)
    else:
        assert kernel.std() == pytest.approx(bound / np.sqrt(3), rel=0.01)
        assert abs(kernel).max() == pytest.approx(bound, rel=0.001)
    assert abs(kernel.mean()) < 0.01 * bound


@pytest.mark.parametrize(
    ("made", "tx"),
    [
        ("new Sgd({learningRate: 0.05, momentum: 0.8})", optax.sgd(0.05, momentum=0.8)),
        ("new Adam({learningRate: 0.05})", optax.adam(0.05)),
    ],
)
def test_optimizers(engine: Engine, made: str, tx: optax.GradientTransformation) -> None:
    body = f"""
        const weights = {{ w: new Float32Array([1, -2, 3]) }}, optimizer = {made};
        for (let step = 0; step < 5; step++) {{
            optimizer.step(weights, {{ w: weights.w.map((value, i) => value * (i + 1)) }});
        }}
        return values(weights.w);"""
    w = jnp.array([1.0, -2.0, 3.0])
    state = tx.init(w)
    for _ in range(5):
        updates, state = tx.update(w * jnp.array([1.0, 2.0, 3.0]), state, w)
        w = optax.apply_updates(w, updates)
    assert floats(engine.run(body)) == pytest.approx(np.asarray(w), rel=1e-5)


def real_network(name: str, folder: Path, real_data: Path) -> tuple[Trained, Any]:
    source = {"archive_dir": real_data / "archives"} if name == "mnist" else {}
    dataset = load_data(
        name, data_dir=real_data / "tfds" if name == "cifar10" else folder, **source
    )
    recipe = named.recipe(name, "sprint").replace(epochs=1)
    fit(recipe, dataset, checkpoints=checkpoint.Policy(folder / "checkpoints", keep=1))
    return load_trained(folder), dataset


@pytest.mark.slow
def test_logits_of_real_images(engine: Engine, name: str, tmp_path: Path, real_data: Path) -> None:
    network, dataset = real_network(name, tmp_path, real_data)
    images = np.asarray(dataset.test.images[:1_000])
    expected = saved.exact_logits(network.recipe, network.variables, images)
    assert abs(logits(engine, network, images) - expected).max() < TOLERANCE
