import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn import state, steps
from jaxcnn.data import Dataset
from jaxcnn.data.augment import make_augment, make_normalize
from jaxcnn.models import Cifar10CNN, MnistCNN
from jaxcnn.training import eval_batches

NORMALIZE = make_normalize((0.1307,), (0.3081,))


MODELS = {"mnist": MnistCNN(), "cifar10": Cifar10CNN()}
SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
LEARNING_RATE = 0.01
TX = optax.sgd(LEARNING_RATE, momentum=0.9)


@functools.cache
def initial_state(name: str) -> state.TrainState:
    return state.init(jax.random.key(0), MODELS[name], TX, SHAPES[name])


@functools.cache
def train_step(name: str, augment: str = "none", label_smoothing: float = 0.0) -> steps.TrainStep:
    """One for all tests: compiling takes longer than anything that they do."""
    return steps.make_train_step(
        MODELS[name],
        TX,
        normalize=NORMALIZE,
        augment=make_augment(augment),
        label_smoothing=label_smoothing,
    )


def start(name: str) -> state.TrainState:
    """A state to be donated."""
    return jax.tree.map(jnp.copy, initial_state(name))


def batch(dataset: Dataset, size: int, start: int = 0) -> dict[str, jax.Array]:
    part = slice(start, start + size)
    return {
        "image": jnp.array(dataset.train.images[part]),
        "label": jnp.array(dataset.train.labels[part]),
    }


@pytest.fixture(params=["mnist", "cifar10"])
def dataset(request: pytest.FixtureRequest, tiny_mnist: Dataset, tiny_cifar10: Dataset) -> Dataset:
    return {"mnist": tiny_mnist, "cifar10": tiny_cifar10}[request.param]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_a_step_is_gradient_descent_on_the_mean_cross_entropy(
    dataset: Dataset, label_smoothing: float
) -> None:
    # Few pictures: among many, one value may lie so close to a relu's edge or to another in its
    # square of a pool that the rounding of one of the two programs sends its gradient elsewhere.
    before = initial_state(dataset.name)
    step = train_step(dataset.name, label_smoothing=label_smoothing)
    after, metrics = step(start(dataset.name), batch(dataset, 4))
    _, dropout_key = jax.random.split(jax.random.fold_in(before.key, 0))

    def loss(params: object) -> tuple[jax.Array, jax.Array]:
        logits, _ = MODELS[dataset.name].apply(
            {"params": params, "batch_stats": before.batch_stats},
            NORMALIZE(batch(dataset, 4)["image"]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": dropout_key},
        )
        labels = jax.nn.one_hot(batch(dataset, 4)["label"], 10)
        losses = [
            -(target * jax.nn.log_softmax(logits)).sum(-1).mean()
            for target in (optax.smooth_labels(labels, label_smoothing), labels)
        ]
        return losses[0], losses[1]

    (_, value), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(before.params)
    assert float(metrics["loss_sum"]) / 4 == pytest.approx(float(value), rel=1e-5)
    jax.tree.map(
        lambda new, old, grad: np.testing.assert_allclose(
            new, old - LEARNING_RATE * grad, rtol=1e-4, atol=1e-6
        ),
        after.params,
        before.params,
        grads,
    )
    assert int(after.step) == 1
    assert int(metrics["count"]) == 4


def test_the_state_is_donated(dataset: Dataset) -> None:
    before = start(dataset.name)
    train_step(dataset.name)(before, batch(dataset, 16))
    assert before.params["fc1"]["kernel"].is_deleted()


def test_training_learns(dataset: Dataset) -> None:
    current, losses = start(dataset.name), []
    for _ in range(60):
        current, metrics = train_step(dataset.name)(current, batch(dataset, 16))
        losses.append(float(metrics["loss_sum"]) / 16)
    assert np.median(losses[-9:]) < 0.7 * np.median(losses[:9])


def test_what_a_step_draws_depends_on_its_number(tiny_mnist: Dataset) -> None:
    def loss(step: int) -> float:
        at = start("mnist").replace(step=jnp.array(step, jnp.int32))
        _, metrics = train_step("mnist", "shift")(at, batch(tiny_mnist, 16))
        return float(metrics["loss_sum"])

    assert loss(3) == loss(3)
    assert loss(3) != loss(4)


def test_many_steps_equal_single_ones(dataset: Dataset) -> None:
    step = train_step(dataset.name)
    stacked = jax.tree.map(
        lambda *leaves: jnp.stack(leaves), *(batch(dataset, 16, 16 * k) for k in range(5))
    )
    many = steps.make_train_steps(step)
    for count in (5, 3):
        together, sums = many(start(dataset.name), stacked, count)
        current, total = start(dataset.name), 0.0
        for k in range(count):
            current, metrics = step(current, batch(dataset, 16, 16 * k))
            total += float(metrics["loss_sum"])
        assert int(together.step) == count
        assert int(sums["count"]) == 16 * count
        assert float(sums["loss_sum"]) == pytest.approx(total, rel=1e-4)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=1e-4),
            together.params,
            current.params,
        )
    assert many._cache_size() == 1  # every count runs the same program


def test_many_runs_are_one_vmap(tiny_mnist: Dataset) -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[start("mnist")] * 3)
    states = states.replace(key=keys)
    step, fixed = train_step("mnist"), batch(tiny_mnist, 16)
    together, metrics = jax.jit(jax.vmap(step, in_axes=(0, None)))(states, fixed)
    assert metrics["loss_sum"].shape == (3,)
    alone, one = step(start("mnist").replace(key=keys[2]), fixed)
    assert float(one["loss_sum"]) == pytest.approx(float(metrics["loss_sum"][2]), rel=1e-4)
    np.testing.assert_allclose(
        together.params["fc2"]["kernel"][2], alone.params["fc2"]["kernel"], rtol=1e-3, atol=1e-5
    )


@pytest.mark.parametrize("batch_size", [1, 7, 30, 1000])
def test_evaluation_scores_every_picture_at_any_batch_size(
    dataset: Dataset, batch_size: int
) -> None:
    model, variables = MODELS[dataset.name], initial_state(dataset.name).variables
    eval_steps = steps.make_eval_steps(steps.make_eval_step(model, normalize=NORMALIZE))
    sums = eval_steps(variables, eval_batches(dataset.test, batch_size))
    logits = jax.jit(model.apply)(variables, NORMALIZE(jnp.array(dataset.test.images)))
    labels = jnp.array(dataset.test.labels)
    assert int(sums["count"]) == len(dataset.test)
    assert int(sums["correct"]) == int((logits.argmax(-1) == labels).sum())
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    assert float(sums["loss_sum"]) == pytest.approx(float(losses.sum()), rel=1e-4)


def test_views_are_averaged(dataset: Dataset) -> None:
    model, variables = MODELS[dataset.name], initial_state(dataset.name).variables

    def views(images: jax.Array) -> jax.Array:
        return jnp.stack([images, images[:, :, ::-1], images[:, ::-1]])

    predict = steps.make_predict(model, normalize=NORMALIZE, views=views)
    images = jnp.array(dataset.test.images[:9])
    each = [jax.nn.softmax(model.apply(variables, NORMALIZE(view))) for view in views(images)]
    np.testing.assert_allclose(jnp.exp(predict(variables, images)), sum(each) / 3, rtol=1e-4)
    eval_step = steps.make_eval_step(model, normalize=NORMALIZE, views=views)
    masked = batch(dataset, 9) | {"mask": jnp.ones(9, bool)}
    expected = jax.jit(predict)(variables, masked["image"]).argmax(-1) == masked["label"]
    assert int(eval_step(variables, masked)["correct"]) == int(expected.sum())


def test_masked_pictures_count_for_nothing(tiny_mnist: Dataset) -> None:
    variables = initial_state("mnist").variables
    eval_step = steps.make_eval_step(MODELS["mnist"], normalize=NORMALIZE)
    whole = eval_step(variables, batch(tiny_mnist, 8) | {"mask": jnp.ones(8, bool)})
    padded = batch(tiny_mnist, 12) | {"mask": jnp.arange(12) < 8}
    # What is masked out has the labels that the network answers: it would count as right.
    answers = MODELS["mnist"].apply(variables, NORMALIZE(padded["image"])).argmax(-1)
    padded["label"] = jnp.where(padded["mask"], padded["label"], answers.astype(jnp.int32))
    masked = eval_step(variables, padded)
    assert int(masked["count"]) == 8
    assert int(masked["correct"]) == int(whole["correct"])
    assert float(masked["loss_sum"]) == pytest.approx(float(whole["loss_sum"]), rel=1e-5)
