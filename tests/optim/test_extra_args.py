import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from jaxcnn.data.augment import make_normalize
from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import UserError
from jaxcnn.networks.cnn import Cifar10CNN, MnistCNN
from jaxcnn.optim.averages import averaged, eval_params
from jaxcnn.optim.extra_args import extra_arguments, with_plain_params
from jaxcnn.train import steps
from jaxcnn.train.state import TrainState, init_state
from tests.linear import Linear
from tests.train.test_fit import SmallNetwork

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

PARAMS = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}


def asking(*names: str, needed: bool = True) -> optax.GradientTransformation:
    """Returns a transformation that reads what it asks for out of a dictionary."""

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        assert set(extra) == set(names)
        return updates, state

    def tolerant(updates: Any, state: Any, params: Any = None, *, value: Any = None) -> Any:
        return updates, state

    update = update if needed else tolerant
    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


class Optimizer:
    """An optimizer that somebody wrote as a class, with an argument that can be left out."""

    def init(self, params: Any) -> Any:
        return optax.EmptyState()

    def update(self, updates: Any, state: Any, params: Any = None, *, value: Any = None) -> Any:
        return updates, state


OPTIMIZER = Optimizer()


def closing_over_itself() -> optax.GradientTransformation:
    """Returns a transformation whose update calls itself with what it lacks."""

    def update(updates: Any, state: Any, params: Any = None, *, value: Any = None) -> Any:
        return (updates, state) if value is not None else update(updates, state, value=1.0)

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


@pytest.mark.parametrize(
    ("tx", "names"),
    [
        (optax.sgd(0.1), ()),
        (optax.chain(optax.clip(1.0), optax.polyak_sgd()), ("value",)),
        (optax.lbfgs(), ("value", "grad", "value_fn")),
        (
            optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)),
            ("value", "grad", "value_fn"),
        ),
        (optax.masked(contrib.momo(0.1), {"kernel": True, "bias": False}), ("value",)),
        (contrib.sophia(0.1), ("obj_fn",)),
        (contrib.sam(optax.sgd(0.1), optax.sgd(0.1), opaque_mode=True), ("grad_fn",)),
        (asking("key", "grad_fn"), ("grad_fn", "key")),
        (asking(needed=False), ("value",)),
        (closing_over_itself(), ("value",)),
        (optax.GradientTransformationExtraArgs(OPTIMIZER.init, OPTIMIZER.update), ("value",)),
        (
            optax.GradientTransformationExtraArgs(
                OPTIMIZER.init, functools.partial(Optimizer.update, OPTIMIZER)
            ),
            ("value",),
        ),
    ],
)
def test_what_update_asks_for(tx: optax.GradientTransformation, names: tuple[str, ...]) -> None:
    assert extra_arguments(tx, PARAMS) == names


def test_what_cannot_work_is_refused_with_the_reason() -> None:
    private = contrib.differentially_private_aggregate(1.0, 0.1, key=0)
    with pytest.raises(UserError, match="batch dimension"):
        extra_arguments(private, PARAMS)


def step_of(
    tx: optax.GradientTransformation, model: Any, dataset: Dataset
) -> tuple[Any, TrainState, dict[str, np.ndarray]]:
    split = dataset.train
    batch = {"image": split.images[:8], "label": split.labels[:8]}
    start = init_state(jax.random.key(0), model, tx, split.images.shape[1:])
    return (
        steps.make_train_step(model, tx, normalize=make_normalize((0.13,), (0.31,))),
        start,
        batch,
    )


# Sums of 28 rows and 8 images, each term off by 6e-8 at the most. In the large network sums are
# longer, and a relu or a pool that rounding turns the other way moves a gradient by a little. What
# does not belong together, other dropout say, differs by tenths.
@pytest.mark.parametrize(
    ("network", "rounding"),
    [
        (SmallNetwork(), 1e-5),
        pytest.param(Cifar10CNN(dropout_rate=0.5), 1e-2, marks=pytest.mark.slow),
    ],
    ids=["small", "cifar10"],
)
def test_what_a_step_gives_belongs_together(
    network: nn.Module, rounding: float, tiny_mnist: Dataset, tiny_cifar10: Dataset
) -> None:
    """Same batch, same dropout and same BatchNorm state in all of it."""
    dataset = tiny_mnist if isinstance(network, SmallNetwork) else tiny_cifar10

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        value: Any,
        grad: Any,
        value_fn: Any,
        obj_fn: Any,
        grad_fn: Any,
        key: Any,
    ) -> Any:
        del state
        seen = {
            "value": value,
            "values": jnp.stack([value_fn(params), obj_fn(params)]),
            "gap": optax.tree.norm(optax.tree.sub(grad, grad_fn(params, 0))),
            "updates": optax.tree.norm(optax.tree.sub(grad, updates)),
            "slope": jax.jvp(obj_fn, (params,), (grad,))[1],
            "norm": optax.tree.norm(grad, squared=True),
            "draw": jax.random.uniform(key),
        }
        return jax.tree.map(lambda leaf: -0.01 * leaf, updates), seen

    def init(params: Any) -> Any:
        zeros = dict.fromkeys(("value", "gap", "updates", "slope", "norm", "draw"), jnp.zeros(()))
        return zeros | {"values": jnp.zeros(2)}

    tx = optax.GradientTransformationExtraArgs(init, update)
    train_step, current, batch = step_of(tx, network, dataset)
    draws = []
    for _ in range(2):
        current, metrics = train_step(current, batch)
        seen = current.opt_state
        np.testing.assert_allclose(seen["value"], metrics["loss_sum"] / 8, rtol=1e-6)
        np.testing.assert_allclose(seen["values"], seen["value"], rtol=1e-4)
        assert float(seen["gap"]) < rounding * float(seen["norm"]) ** 0.5
        assert float(seen["updates"]) == 0
        np.testing.assert_allclose(seen["slope"], seen["norm"], rtol=rounding)
        draws.append(float(seen["draw"]))
    assert draws[0] != draws[1]


@pytest.mark.parametrize("place", ["alone", "chained", "masked"])
def test_schedule_free_is_evaluated_at_its_average(place: str) -> None:
    tx = contrib.schedule_free_sgd(0.1)
    if place == "chained":
        tx = optax.chain(optax.clip_by_global_norm(100.0), tx)
    elif place == "masked":
        tx = optax.masked(tx, {"kernel": True, "bias": False})
    alone = contrib.schedule_free_sgd(0.1)
    params, opt_state = PARAMS, tx.init(PARAMS)
    kernel, other = PARAMS["kernel"], alone.init(PARAMS["kernel"])
    for scale in (1.0, 0.5, -0.2):
        grads = jax.tree.map(lambda leaf, s=scale: s * leaf, PARAMS)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        update, other = alone.update(grads["kernel"], other, kernel)
        kernel = optax.apply_updates(kernel, update)
    found = eval_params(opt_state, params)
    expected = contrib.schedule_free_eval_params(other, kernel)
    np.testing.assert_allclose(found["kernel"], expected, rtol=1e-6)
    assert not np.allclose(found["kernel"], params["kernel"])
    assert np.array_equal(found["bias"], params["bias"]) == (place == "masked")


@pytest.mark.parametrize("chained", [False, True])
def test_lookahead_trains_the_fast_and_evaluates_the_slow_ones(chained: bool) -> None:
    ahead = optax.lookahead(optax.sgd(0.1), sync_period=2, slow_step_size=0.5)
    tx = with_plain_params(optax.chain(optax.clip(10.0), ahead) if chained else ahead)
    assert with_plain_params(tx) is tx
    params, opt_state = PARAMS, tx.init(PARAMS)
    updates, opt_state = tx.update(PARAMS, opt_state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params["bias"], 0.9, rtol=1e-6)
    np.testing.assert_allclose(eval_params(opt_state, params)["bias"], 1.0)
    updates, opt_state = tx.update(PARAMS, opt_state, params)
    params = optax.apply_updates(params, updates)
    # Half of the way from 1 to 0.8, for both.
    np.testing.assert_allclose(params["bias"], 0.9, rtol=1e-6)
    np.testing.assert_allclose(eval_params(opt_state, params)["bias"], 0.9, rtol=1e-6)


def test_averages() -> None:
    tx = averaged(optax.sgd(1.0), 0.9)
    params, opt_state = jnp.zeros(()), tx.init(jnp.zeros(()))
    assert float(eval_params(opt_state, params)) == 0
    seen = []
    for grad in (-1.0, -2.0, 1.0):
        updates, opt_state = tx.update(jnp.float32(grad), opt_state, params)
        params = optax.apply_updates(params, updates)
        seen.append(float(params))
        weights = 0.1 * 0.9 ** np.arange(len(seen))[::-1]
        expected = np.sum(weights * seen) / weights.sum()
        assert float(eval_params(opt_state, params)) == pytest.approx(expected, rel=1e-6)


def test_sharpness_aware_steps_are_evaluated_at_their_centre() -> None:
    tx = contrib.sam(optax.sgd(0.1), optax.sgd(1.0))
    params, opt_state = jnp.ones(2), tx.init(jnp.ones(2))
    updates, opt_state = tx.update(jnp.ones(2), opt_state, params)
    params = optax.apply_updates(params, updates)
    assert not np.allclose(params, 1.0)
    np.testing.assert_allclose(eval_params(opt_state, params), 1.0)
    updates, opt_state = tx.update(jnp.ones(2), opt_state, params)
    params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(eval_params(opt_state, params), params)
    np.testing.assert_allclose(params, 0.9, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("backtracking", Linear()),
        pytest.param("backtracking", MnistCNN(dropout_rate=0.0), marks=pytest.mark.slow),
        pytest.param("lbfgs", MnistCNN(dropout_rate=0.0), marks=pytest.mark.slow),
    ],
    ids=["backtracking-linear", "backtracking-mnist", "lbfgs-mnist"],
)
def test_line_searches_train_a_network(name: str, network: nn.Module, tiny_mnist: Dataset) -> None:
    tx = optax.lbfgs(memory_size=3)
    if name == "backtracking":
        tx = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(8))
    train_step, current, batch = step_of(tx, MnistCNN(dropout_rate=0.0), tiny_mnist)
    losses = []
    for _ in range(6):
        current, metrics = train_step(current, batch)
        losses.append(float(metrics["loss_sum"]))
    assert losses[-1] < 0.5 * losses[0]
    assert train_step._cache_size() == 1
