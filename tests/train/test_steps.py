import functools
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn.data.augment import make_augment, make_normalize
from jaxcnn.data.dataset import Dataset
from jaxcnn.networks.cnn import Cifar10CNN, MnistCNN
from jaxcnn.train import steps
from jaxcnn.train.evaluate import eval_batches
from jaxcnn.train.state import TrainState, init_state

NORMALIZE = make_normalize((0.1307,), (0.3081,))
LEARNING_RATE = 0.01
TX = optax.sgd(LEARNING_RATE, momentum=0.9)


@jax.custom_vjp
def staged_tanh(x: jax.Array) -> jax.Array:
    """As the stages, it has no forward-mode derivative."""
    return jnp.tanh(x)


staged_tanh.defvjp(lambda x: (jnp.tanh(x),) * 2, lambda y, dy: ((1 - y * y) * dy,))


class SmoothNetwork(nn.Module):
    """A network with neither relu nor pool, so that rounding cannot decide anything."""

    staged: bool = True

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Dense(8)(images[:, ::3, ::3].reshape(images.shape[0], -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = staged_tanh(x) if self.staged and train else nn.tanh(x)
        return nn.Dense(10)(nn.Dropout(0.2)(x, deterministic=not train))


# In float64 rounding is a billion times smaller, and so is the chance that it decides something.
MODELS: dict[str, nn.Module] = {
    "smooth": SmoothNetwork(),
    "mnist": MnistCNN(),
    "cifar10": Cifar10CNN(),
    "mnist64": MnistCNN(dtype=jnp.float64),
    "cifar64": Cifar10CNN(dtype=jnp.float64),
}
LIGHT = (pytest.mark.slow, pytest.mark.lightly_compiled)
every = pytest.mark.parametrize(
    "network",
    ["smooth", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mnist", "cifar10"))],
)
every_exactly = pytest.mark.parametrize(
    "network",
    ["smooth", *(pytest.param(name, marks=LIGHT) for name in ("mnist64", "cifar64"))],
)


@pytest.fixture
def dataset(
    network: str, tiny_mnist: Dataset, tiny_cifar10: Dataset, request: pytest.FixtureRequest
) -> Iterator[Dataset]:
    double = network.endswith("64")
    promotion = "standard" if double else "strict"  # of the float32 parameters
    with jax.enable_x64(double), jax.numpy_dtype_promotion(promotion):
        yield tiny_cifar10 if network.startswith("cifar") else tiny_mnist


@functools.cache
def initial_state(network: str) -> TrainState:
    shape = (32, 32, 3) if network.startswith("cifar") else (28, 28, 1)
    made = init_state(jax.random.key(0), MODELS[network], TX, shape)
    if network.endswith("64"):  # a step returns them so
        exact = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), made.batch_stats)
        made = made.replace(batch_stats=exact)
    return made


@functools.cache
def train_step(network: str, augment: str = "none", label_smoothing: float = 0.0) -> Any:
    """One for all tests: compiling takes longer than anything that they do."""
    return steps.make_train_step(
        MODELS[network],
        TX,
        normalize=NORMALIZE,
        augment=make_augment(augment),
        label_smoothing=label_smoothing,
    )


@jax.jit
def copied(tree: Any) -> Any:
    return jax.tree.map(jnp.copy, tree)


def start(network: str) -> TrainState:
    """A state to be donated."""
    return copied(initial_state(network))


def batch(dataset: Dataset, size: int, start: int = 0) -> dict[str, jax.Array]:
    part = slice(start, start + size)
    return {
        "image": jnp.asarray(dataset.train.images[part]),
        "label": jnp.asarray(dataset.train.labels[part]),
    }


@functools.cache
def gradient(network: str) -> Any:
    """What a step has to do, once more, on images that are shifted if label smoothing is used."""

    def loss(
        params: Any, current: TrainState, batch: steps.Batch, label_smoothing: jax.Array
    ) -> Any:
        augment_key, dropout_key = jax.random.split(jax.random.fold_in(current.key, current.step))
        shifted = make_augment("shift")(augment_key, batch["image"])
        logits, changed = MODELS[network].apply(
            {"params": params, "batch_stats": current.batch_stats},
            NORMALIZE(jnp.where(label_smoothing > 0, shifted, batch["image"])),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        labels = jax.nn.one_hot(batch["label"], 10, dtype=jnp.float32)
        smooth = labels * (1 - label_smoothing) + label_smoothing / 10
        smoothed, plain = (
            -(target * jax.nn.log_softmax(logits)).sum(-1).mean() for target in (smooth, labels)
        )
        return smoothed, (plain, logits, changed.get("batch_stats", {}))

    return jax.jit(jax.grad(loss, has_aux=True))


@every_exactly
@pytest.mark.parametrize(("augment", "label_smoothing"), [("none", 0.0), ("shift", 0.2)])
def test_a_step_is_gradient_descent_on_the_mean_cross_entropy(
    network: str, dataset: Dataset, augment: str, label_smoothing: float
) -> None:
    before, fixed = initial_state(network), batch(dataset, 16)
    after, metrics = train_step(network, augment, label_smoothing)(start(network), fixed)
    grads, (value, logits, batch_stats) = gradient(network)(
        before.params, before, fixed, np.float32(label_smoothing)
    )
    # Float32 with sums of a thousand terms: off by 1e-5 at the most where nothing is decided.
    assert float(metrics["loss_sum"]) / 16 == pytest.approx(float(value), rel=1e-5)
    jax.tree.map(
        lambda new, old, grad: np.testing.assert_allclose(
            new, old - LEARNING_RATE * grad, rtol=1e-4, atol=1e-6
        ),
        after.params,
        before.params,
        grads,
    )
    jax.tree.map(
        lambda new, wanted: np.testing.assert_allclose(new, wanted, rtol=1e-4, atol=1e-6),
        after.batch_stats,
        batch_stats,
    )
    assert int(after.step) == 1
    assert int(metrics["count"]) == 16
    assert clear(logits)
    assert int(metrics["correct"]) == int((logits.argmax(-1) == fixed["label"]).sum())


def clear(logits: jax.Array) -> bool:
    """Whether the prediction is the same whatever rounding does, which is less than 1e-5."""
    largest = np.sort(np.asarray(logits))[:, -2:]
    return bool((largest[:, 1] - largest[:, 0] > 1e-4).all())


@every
def test_the_state_is_donated(network: str, dataset: Dataset) -> None:
    before = start(network)
    train_step(network)(before, batch(dataset, 16))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))


@every
def test_training_learns(network: str, dataset: Dataset) -> None:
    current, losses = start(network), []
    for _ in range(60):
        current, metrics = train_step(network)(current, batch(dataset, 16))
        losses.append(float(metrics["loss_sum"]) / 16)
    assert np.median(losses[-9:]) < 0.7 * np.median(losses[:9])


@pytest.mark.parametrize("network", ["smooth", pytest.param("mnist", marks=pytest.mark.slow)])
def test_what_a_step_draws_depends_on_its_number(network: str, dataset: Dataset) -> None:
    def loss(step: int) -> float:
        at = start(network).replace(step=jnp.asarray(np.int32(step)))
        _, metrics = train_step(network, "shift", 0.2)(at, batch(dataset, 16))
        return float(metrics["loss_sum"])

    assert loss(3) == loss(3)
    assert loss(3) != loss(4)


@every_exactly
def test_many_steps_equal_single_ones(network: str, dataset: Dataset) -> None:
    step = train_step(network)
    stacked = jax.tree.map(
        lambda *leaves: np.stack(leaves), *(batch(dataset, 16, 16 * k) for k in range(5))
    )
    many = steps.make_train_chunk(step)
    for count in (5, 3):
        together, sums = many(start(network), stacked, np.int32(count))
        current, total = start(network), 0.0
        for k in range(count):
            current, metrics = step(current, batch(dataset, 16, 16 * k))
            total += float(metrics["loss_sum"])
        assert int(together.step) == count
        assert int(sums["count"]) == 16 * count
        assert float(sums["loss_sum"]) == pytest.approx(total, rel=1e-4)
        assert int(sums["nonfinite_step"]) == steps.NEVER
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4),
            together.params,
            current.params,
        )
    assert many._cache_size() == 1  # every count runs the same program


def test_the_first_loss_that_is_not_finite_is_found() -> None:
    def train_step(current: TrainState, batch: steps.Batch) -> tuple[Any, steps.Metrics]:
        metrics = {"loss_sum": batch["loss"], "correct": jnp.int32(2), "count": jnp.int32(3)}
        return current.replace(step=current.step + 1), metrics

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    many = steps.make_train_chunk(train_step, device)
    made = TrainState(jnp.asarray(np.int32(10)), {}, {}, {}, jnp.asarray(np.float32(0)))
    losses = {"loss": np.array([1, np.nan, 2, np.inf], np.float32)}
    current, first = many(made, losses, np.int32(1))
    assert (int(current.step), int(first["nonfinite_step"])) == (11, steps.NEVER)
    assert {name: float(first[name]) for name in ("loss_sum", "correct", "count")} == {
        "loss_sum": 1,
        "correct": 2,
        "count": 3,
    }
    current, second = many(current, losses, np.int32(4), first)
    assert int(current.step) == 15
    assert int(second["nonfinite_step"]) == 13  # the second of these
    assert (int(second["correct"]), int(second["count"])) == (10, 15)
    current, third = many(current, losses, np.int32(4), second)
    assert int(third["nonfinite_step"]) == 13
    assert third["count"].sharding == device


@pytest.mark.parametrize("network", ["smooth", pytest.param("mnist64", marks=LIGHT)])
def test_many_runs_are_one_vmap(network: str, dataset: Dataset) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.jit(
        lambda tree: jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (3, *leaf.shape)), tree)
    )(initial_state(network))
    states = states.replace(key=keys)
    step, fixed = train_step(network), batch(dataset, 16)
    together, metrics = jax.jit(jax.vmap(step, in_axes=(0, None)))(states, fixed)
    assert metrics["loss_sum"].shape == (3,)
    alone, one = step(start(network).replace(key=jnp.copy(keys[2])), fixed)
    assert float(one["loss_sum"]) == pytest.approx(float(metrics["loss_sum"][2]), rel=1e-4)
    jax.tree.map(
        lambda many, one: np.testing.assert_allclose(many[2], one, rtol=1e-3, atol=1e-5),
        together.params,
        alone.params,
    )


def test_an_optimizer_is_given_what_it_asks_for(tiny_mnist: Dataset) -> None:
    def dot(one: Any, other: Any) -> Any:
        return sum(jax.tree.leaves(jax.tree.map(jnp.vdot, one, other)))

    def update(
        updates: Any,
        opt_state: Any,
        params: Any,
        *,
        value: jax.Array,
        grad: Any,
        value_fn: Any,
        obj_fn: Any,
        grad_fn: Any,
        key: jax.Array,
    ) -> tuple[Any, Any]:
        seen = {
            "value": jnp.stack([value, value_fn(params), obj_fn(params)]),
            "square": jnp.stack(
                [dot(grad, grad_fn(params)), jax.jvp(obj_fn, (params,), (grad,))[1]]
            ),
            "grad": grad,
            "key": jax.random.key_data(key),
        }
        return jax.tree.map(jnp.zeros_like, updates), seen

    tx = optax.GradientTransformationExtraArgs(lambda params: (), update)
    step = steps.make_train_step(MODELS["smooth"], tx, normalize=NORMALIZE)
    after, metrics = step(start("smooth").replace(opt_state=()), batch(tiny_mnist, 16))
    seen = after.opt_state
    # The same loss, with the same dropout, three times; float32 rounds to 1e-5 or better. The third
    # is differentiated forwards, for which the network may not be staged.
    loss = float(metrics["loss_sum"]) / 16
    np.testing.assert_allclose(seen["value"], loss, rtol=1e-5)
    square = sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(seen["grad"]))
    assert square > 0.01
    np.testing.assert_allclose(seen["square"], square, rtol=1e-4)
    drawn = jax.random.fold_in(jax.random.fold_in(after.key, 0), 2)
    np.testing.assert_array_equal(seen["key"], jax.random.key_data(drawn))


@every
@pytest.mark.parametrize(
    "batch_size", [7, 1000, *(pytest.param(size, marks=pytest.mark.slow) for size in (1, 30))]
)
def test_evaluation_scores_every_picture_at_any_batch_size(
    network: str, dataset: Dataset, batch_size: int
) -> None:
    model, variables = MODELS[network], initial_state(network).variables
    eval_steps = steps.make_eval_chunk(steps.make_eval_step(model, normalize=NORMALIZE))
    sums = eval_steps(variables, eval_batches(dataset.test, batch_size))
    logits = predict(network)(variables, jnp.asarray(dataset.test.images))
    labels = jnp.asarray(dataset.test.labels)
    assert clear(logits)
    assert int(sums["count"]) == len(dataset.test)
    assert int(sums["correct"]) == int((logits.argmax(-1) == labels).sum())
    losses = -np.asarray(jax.nn.log_softmax(logits))[np.arange(len(labels)), labels]
    assert float(sums["loss_sum"]) == pytest.approx(float(losses.sum()), rel=1e-4)


@functools.cache
def predict(network: str) -> Any:
    return jax.jit(lambda variables, images: MODELS[network].apply(variables, NORMALIZE(images)))


@every
def test_views_are_averaged(network: str, dataset: Dataset) -> None:
    model, variables = MODELS[network], initial_state(network).variables

    def views(images: jax.Array) -> jax.Array:
        return jnp.stack([images, images[:, :, ::-1], images[:, ::-1]])

    whole = jax.jit(steps.make_predict(model, normalize=NORMALIZE, views=views))
    images = dataset.train.images[:9]
    logits = [predict(network)(variables, view) for view in np.asarray(views(images))]
    # Softmax over ten logits, whose rounding of less than 1e-5 is relative here.
    expected = (
        sum(np.exp(x) / np.exp(x).sum(-1, keepdims=True) for x in map(np.asarray, logits)) / 3
    )
    found = whole(variables, images)
    np.testing.assert_allclose(np.exp(found), expected, rtol=1e-4)
    eval_step = steps.make_eval_step(model, normalize=NORMALIZE, views=views)
    masked = batch(dataset, 9) | {"mask": jnp.ones(9, bool)}
    assert clear(found)
    right = np.asarray(found).argmax(-1) == dataset.train.labels[:9]
    assert int(eval_step(variables, masked)["correct"]) == int(right.sum())


@pytest.mark.parametrize("network", ["smooth", pytest.param("mnist", marks=pytest.mark.slow)])
def test_masked_pictures_count_for_nothing(network: str, dataset: Dataset) -> None:
    variables = initial_state(network).variables
    eval_step = steps.make_eval_step(MODELS[network], normalize=NORMALIZE)
    padded = batch(dataset, 12)
    answers = np.asarray(predict(network)(variables, padded["image"])).argmax(-1)
    # What is masked out has the labels that the network answers: it would count as right.
    labels = np.where(np.arange(12) < 8, dataset.train.labels[:12], answers).astype(np.int32)
    padded |= {"label": jnp.asarray(labels), "mask": jnp.arange(12) < 8}
    masked = eval_step(variables, padded)
    whole = eval_step(variables, batch(dataset, 8) | {"mask": jnp.ones(8, bool)})
    assert int(masked["count"]) == 8
    assert int(masked["correct"]) == int(whole["correct"])
    assert float(masked["loss_sum"]) == pytest.approx(float(whole["loss_sum"]), rel=1e-5)
