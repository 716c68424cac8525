import functools
import re
import warnings
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn.data.augment import make_normalize
from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import UserError
from jaxcnn.networks.cnn import MnistCNN
from jaxcnn.optim.averages import eval_params
from jaxcnn.optim.extra_args import NAMES
from jaxcnn.optim.factory import make_optimizer
from jaxcnn.recipes import named, optimizer_defaults
from jaxcnn.train import steps
from jaxcnn.train.state import init_state
from tests.linear import Linear
from tests.updates import updates_of

BASE = named.recipe("mnist", "reference")

USABLE = [name for name, defaults in optimizer_defaults.OPTIMIZERS.items() if not defaults.refused]
# The extra arguments that some need.
EXTRA = {
    "lbfgs": ("value", "grad", "value_fn"),
    "momo": ("value",),
    "momo_adam": ("value",),
    "polyak_sgd": ("value",),
    "reduce_on_plateau": ("value",),
    "sam": ("grad_fn",),
    "sophia": ("obj_fn",),
}
MAIN = ("sgd", "adam", "adamw", "lion", "muon", "rmsprop")
PARAMS = {"kernel": jnp.full((3, 3, 2, 4), 0.5), "bias": jnp.ones(4)}

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion


@pytest.fixture(autouse=True)
def _named_by_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes a test may run what is in it."""
    monkeypatch.setattr(
        "jaxcnn.recipes.optimizer_defaults.is_trusted",
        lambda name: name.startswith(("tests.", "math:")),
    )


def test_reference_is_plain_sgd_with_momentum() -> None:
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    ours, plain = make_optimizer(BASE, 100), optax.sgd(0.001, momentum=0.9)
    states = [tx.init(params) for tx in (ours, plain)]
    grads = jax.tree.map(lambda leaf: 3.0 * leaf, params)
    for _ in range(3):
        one, states[0] = ours.update(grads, states[0], params)
        other, states[1] = plain.update(grads, states[1], params)
        jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("name", USABLE)
def test_a_step_of_every_optimizer_can_be_traced(name: str) -> None:
    """Without compiling it, which the slow tests of `tests.conformance` do."""
    recipe = named.recipe("mnist", "fast").replace(optimizer=name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*optimistic_adam.* is deprecated")
        tx = make_optimizer(recipe, 10)
    extra = {"value": 1.0, "grad": PARAMS, "value_fn": total, "obj_fn": total}
    extra |= {"grad_fn": lambda params, *_: params, "key": jax.random.key(0)}
    assert tuple(extra) == NAMES

    def step(params: Any, opt_state: Any, without: str = "") -> Any:
        given = {name: value for name, value in extra.items() if name != without}
        updates, opt_state = tx.update(params, opt_state, params, **given)
        params = optax.apply_updates(params, updates)
        return params, opt_state, eval_params(opt_state, params)

    opt_state = jax.eval_shape(tx.init, PARAMS)
    params, after, evaluated = jax.eval_shape(step, PARAMS, opt_state)
    for tree in (params, evaluated):
        assert shapes(tree) == shapes(PARAMS)
    assert shapes(after) == shapes(opt_state)
    for needed in EXTRA.get(name, ()):
        with pytest.raises((TypeError, ValueError), match=f"missing.*{needed}|{needed} must be"):
            jax.eval_shape(functools.partial(step, without=needed), PARAMS, opt_state)
    extra = {name: extra[name] for name in EXTRA.get(name, ())}
    jax.eval_shape(step, PARAMS, opt_state)


def total(params: Any) -> jax.Array:
    """A loss."""
    return sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params))


def shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


# With a mask, added to the gradient, in an optimizer for the kernels alone, and all three inside.
@pytest.mark.parametrize("name", [*MAIN, "novograd", "schedule_free_sgd", "prodigy", "sam"])
def test_weight_decay_shrinks_kernels_alone(name: str) -> None:
    recipe = BASE.replace(optimizer=name, weight_decay=0.1, learning_rate=0.1)
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    extra = {"grad_fn": lambda params, *_: zeros} if name == "sam" else {}
    (updates,) = updates_of(make_optimizer(recipe, 10), PARAMS, [zeros], **extra)
    assert (updates["kernel"] < 0).all()
    np.testing.assert_array_equal(updates["bias"], 0)


def losses_of(name: str, model: Any, dataset: Dataset) -> list[float]:
    """Trains for twelve epochs of five steps in one program."""
    recipe = named.recipe("mnist", "fast").replace(optimizer=name, schedule="constant", warmup=0.0)
    tx = make_optimizer(recipe, 60)
    current = init_state(jax.random.key(0), model, tx, (28, 28, 1))
    # Of little contrast: with MNIST's two numbers stripes are so bright that sgd is on the edge.
    train_step = steps.make_train_step(model, tx, normalize=make_normalize((0.5,), (1.0,)))
    many = steps.make_train_chunk(train_step)
    images = jnp.array(dataset.train.images[:320]).reshape(5, 64, 28, 28, 1)
    batches = {"image": images, "label": jnp.array(dataset.train.labels[:320]).reshape(5, 64)}
    losses = []
    for _ in range(12):
        current, sums = many(current, batches, 5)
        losses.append(float(sums["loss_sum"]) / 320)
    assert many._cache_size() == 1
    return losses


@pytest.mark.slow
@pytest.mark.parametrize("name", MAIN)
def test_every_optimizer_trains_the_mnist_network_with_its_defaults(
    name: str, tiny_mnist: Dataset
) -> None:
    losses = losses_of(name, MnistCNN(), tiny_mnist)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("name", ["sgd", "muon"])
def test_optimizers_train_a_small_network_with_their_defaults(
    name: str, tiny_mnist: Dataset
) -> None:
    losses = losses_of(name, Linear(), tiny_mnist)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize(
    "name", ["novograd", "schedule_free_sgd", "sgd", "lars", "adafactor", "sam"]
)
def test_a_default_weight_decay_can_be_turned_off(name: str) -> None:
    recipe = BASE.replace(optimizer=name, weight_decay=0.0, schedule="constant")
    zeros = jax.tree.map(jnp.zeros_like, PARAMS)
    extra = {"grad_fn": lambda params, *_: zeros} if name == "sam" else {}
    updates = updates_of(make_optimizer(recipe, 10), PARAMS, [zeros], **extra)
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, 0), updates)


def test_arguments_reach_the_optimizer() -> None:
    recipe = BASE.replace(optimizer="adam", optimizer_args={"b1": 0.5}, learning_rate=0.1)
    grads = [{"bias": jnp.arange(4.0) + step} for step in range(3)]
    params = {"bias": jnp.ones(4)}
    ours = updates_of(make_optimizer(recipe, 10), params, grads)
    theirs = updates_of(optax.adam(0.1, b1=0.5), params, grads)
    # A dozen operations on single numbers, 6e-8 each.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, theirs)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("adam", {"b3": 1}, "b3: adam has no such argument; it takes b1, b2"),
        ("adam", {"b1": "high"}, "b1: adam takes a number here, got 'high'"),
        ("sgd", {"momentum": "high"}, "momentum: sgd takes a number here, got 'high'"),
        ("adam", {"learning_rate": 1}, "learning_rate: give --learning-rate instead"),
        ("adamw", {"weight_decay": 1}, "weight_decay: give --weight-decay instead"),
        ("lookahead", {"fast_optimizer": "sdg"}, "optax has no optimizer 'sdg'"),
        ("lookahead", {"sync_period": -1}, "lookahead cannot be made"),
        ("lbfgs", {}, "give --clip 0 --weight-decay 0"),
        ("math:hypot", {}, "has no signature that can be read"),
        ("tests.optim.test_factory:without_rate", {}, "has no parameter learning_rate"),
        ("tests.optim.test_factory:without_return", {}, "NoneType is not an optax."),
        (
            "tests.optim.test_factory:without_update",
            {},
            "SimpleNamespace is not an optax.",
        ),
        ("tests.optim.test_factory:two_numbers", {}, "needs beta; give it as beta=VALUE"),
        ("tests.optim.test_factory:missing", {}, "has no function missing"),
        ("tests.no_module:make", {}, "cannot import tests.no_module"),
    ],
)
def test_mistakes(name: str, args: dict, message: str) -> None:
    recipe = BASE.replace(optimizer=name, optimizer_args=args, clip=1.0)
    with pytest.raises(UserError, match=re.escape(message)):
        make_optimizer(recipe, 10)


def without_rate(lr: float = 0.1) -> optax.GradientTransformation:
    """An optimizer that would not be told its learning rate."""
    return optax.sgd(lr)


def without_return(learning_rate: float) -> None:
    """An optimizer whose author forgot to return it."""


def without_update(learning_rate: float) -> SimpleNamespace:
    """An optimizer of which half is missing."""
    return SimpleNamespace(init=lambda params: ())


def noisy(learning_rate: float, key: jax.Array, seed: int = 0) -> optax.GradientTransformation:
    """An optimizer that is given a key."""
    return optax.chain(optax.add_noise(0.1, 0.5, key), optax.scale(-learning_rate * (seed + 1)))


def test_keys_are_given() -> None:
    recipe = BASE.replace(optimizer="tests.optim.test_factory:noisy", optimizer_args={"seed": 3})
    updates = []
    for key in (None, jax.random.key(1), jax.random.key(2)):
        tx = make_optimizer(recipe, 10, key=key)
        updates += map(float, updates_of(tx, jnp.ones(()), [jnp.ones(())]))
    assert len(set(updates)) == 3


def test_a_clip_of_nothing_clips_nothing_where_it_is_traced() -> None:
    def norm(clip: jax.Array) -> jax.Array:
        recipe = BASE.replace(learning_rate=1.0, optimizer_args={"momentum": 0.0})
        tx = make_optimizer(recipe, 10, hyperparameters={"clip": clip})
        return jnp.linalg.norm(tx.update(jnp.full(4, 10.0), tx.init(jnp.ones(4)), jnp.ones(4))[0])

    norms = jax.jit(jax.vmap(norm))(jnp.array([0.0, 2.0, 50.0]))
    np.testing.assert_allclose(norms, [20.0, 2.0, 20.0], rtol=1e-6)  # a sum of four squares


def test_a_members_momentum_reaches_every_optimizer() -> None:
    def after(momentum: jax.Array) -> list[jax.Array]:
        ends = []
        for name in ("sgd", "lars", "madgrad", "sm3"):
            recipe = BASE.replace(optimizer=name, optimizer_args={"momentum": 0.1})
            tx = make_optimizer(recipe, 10, hyperparameters={"momentum": momentum})
            params, opt_state = jnp.ones((2, 2)), tx.init(jnp.ones((2, 2)))
            for _ in range(2):
                updates, opt_state = tx.update(params, opt_state, params)
                params = optax.apply_updates(params, updates)
            ends.append(params[0, 0])
        return ends

    for ends in jax.jit(jax.vmap(after))(jnp.array([0.5, 0.9])):
        assert ends[0] != ends[1]


@pytest.mark.parametrize("name", ["prodigy", "momo", "dadapt_adamw"])
def test_one_number_for_all_parameters_stays_one(name: str) -> None:
    recipe = BASE.replace(optimizer=name, weight_decay=0.1)
    tx = make_optimizer(recipe, 10)
    plain = make_optimizer(recipe.replace(weight_decay=0.0), 10)
    count = len(jax.tree.leaves(jax.eval_shape(plain.init, PARAMS)))
    assert len(jax.tree.leaves(jax.eval_shape(tx.init, PARAMS))) == count


def two_numbers(learning_rate: float, beta: float) -> optax.GradientTransformation:
    """An optimizer of a user's."""
    return optax.chain(optax.trace(beta), optax.scale(-learning_rate))


def named_kind(learning_rate: float, kind: str | None = None) -> optax.GradientTransformation:
    """Another one, which takes a text."""
    return {"sgd": optax.sgd, None: optax.adam}[kind](learning_rate)


def texts(learning_rate: float, kind=None) -> optax.GradientTransformation:  # type: ignore[no-untyped-def]
    """The same without an annotation."""
    return named_kind(learning_rate, kind)


@pytest.mark.parametrize("name", ["named_kind", "texts"])
def test_a_user_defined_optimizer_may_take_a_text(name: str) -> None:
    recipe = BASE.replace(
        optimizer=f"tests.optim.test_factory:{name}",
        optimizer_args={"kind": "sgd"},
        learning_rate=0.5,
    )
    (update,) = updates_of(make_optimizer(recipe, 10), jnp.ones(3), [jnp.ones(3)])
    np.testing.assert_array_equal(update, -0.5 * np.ones(3))


def test_a_user_defined_optimizer_follows_the_schedule() -> None:
    recipe = BASE.replace(
        optimizer="tests.optim.test_factory:two_numbers",
        optimizer_args={"beta": 0.0},
        schedule="linear",
        learning_rate=0.5,
    )
    updates = updates_of(make_optimizer(recipe, 10), jnp.ones(3), 10 * [jnp.ones(3)])
    for step in range(10):  # a few operations on numbers up to 1, 6e-8 each
        np.testing.assert_allclose(updates[step], -0.5 * (1 - step / 10), rtol=1e-5)


def test_without_momentum_nothing_is_kept_for_it() -> None:
    for name, kept in (("sgd", 0), ("lars", 1), ("sm3", None)):
        sizes = [
            len(jax.tree.leaves(jax.eval_shape(make_optimizer(recipe, 10).init, 1.0)))
            for recipe in (
                BASE.replace(optimizer=name, momentum=0.0, optimizer_args=args)
                for args in ({"momentum": 0.0}, {"momentum": 0.5})
            )
        ]
        assert sizes[0] == (sizes[1] if kept is None else sizes[1] - 1 + kept), name


def test_clipping() -> None:
    tx = make_optimizer(BASE.replace(clip=2.0, learning_rate=1.0, momentum=0.0), 10)
    (updates,) = updates_of(tx, jnp.ones(4), [jnp.full(4, 10.0)])
    assert np.linalg.norm(updates) == pytest.approx(2.0)  # within 1e-6, of a sum of four squares


@pytest.mark.parametrize("name", ["schedule_free_sgd", "sm3"])
def test_clipping_before_an_optimizer_that_takes_no_schedule(name: str) -> None:
    tx = make_optimizer(BASE.replace(optimizer=name, clip=2.0), 10)
    large, small = (updates_of(tx, jnp.ones(4), [jnp.full(4, size)]) for size in (10.0, 1.0))
    np.testing.assert_array_equal(large, small)
    assert np.any(small)


def test_a_sharpness_aware_optimizer_clips_what_it_steps_with() -> None:
    recipe = BASE.replace(optimizer="sam", clip=2.0, learning_rate=1.0, weight_decay=0.0)
    seen = []

    def grad_fn(params: jax.Array, *_: Any) -> jax.Array:
        seen.append(params)
        return 10.0 * params

    tx = make_optimizer(recipe, 10)
    updates, _ = tx.update(jnp.full(4, 10.0), tx.init(jnp.ones(4)), jnp.ones(4), grad_fn=grad_fn)
    assert np.linalg.norm(updates) == pytest.approx(2.0)  # within 1e-6, of a sum of four squares
    assert updates[0] == pytest.approx(-1.0)
    # It ascends by rho, 0.05, however long the gradient: by half of that along each of four axes.
    np.testing.assert_allclose(seen[-1], 1.025, rtol=1e-6)


def test_a_schedule_where_none_can_be() -> None:
    recipe = BASE.replace(optimizer="schedule_free_sgd").replace(schedule="cosine")
    with pytest.raises(UserError, match="give --schedule constant --warmup 0"):
        make_optimizer(recipe, 10)


def test_hyperparameters_may_be_traced() -> None:
    recipe = BASE.replace(optimizer="adamw", schedule="cosine", warmup=0.2)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}

    def updates(values: dict[str, jax.Array]) -> jax.Array:
        tx = make_optimizer(recipe, 10, hyperparameters=values)
        return tx.update(params, tx.init(params), params)[0]["kernel"]

    values = {"learning_rate": jnp.array([0.1, 0.2]), "b1": jnp.array([0.9, 0.8])}
    values |= {"weight_decay": jnp.array([0.0, 1.0]), "clip": jnp.array([1.0, 0.1])}
    mapped = jax.jit(jax.vmap(updates))(values)
    for index in range(2):
        fixed = {name: float(array[index]) for name, array in values.items()}
        alone = jax.jit(lambda fixed=fixed: updates(fixed))()
        # A few dozen operations on single numbers, and sums of six squares: 6e-8 each.
        np.testing.assert_allclose(mapped[index], alone, rtol=1e-5)
