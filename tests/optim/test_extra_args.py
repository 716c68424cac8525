import functools
from collections.abc import Callable
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
from jaxcnn.optim.averages import eval_params
from jaxcnn.optim.extra_args import NAMES, check_update, normalize
from jaxcnn.optim.factory import make_optimizer
from jaxcnn.recipes import named
from jaxcnn.train import steps
from jaxcnn.train.state import TrainState, init_state
from tests.linear import Linear
from tests.train.test_fit import SmallNetwork

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

PARAMS = {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}


class Optimizer:
    """An optimizer that somebody wrote as a class, with an argument that can be left out."""

    def init(self, params: Any) -> Any:
        return optax.EmptyState()

    def update(self, updates: Any, state: Any, params: Any = None, *, value: Any = 0.0) -> Any:
        return jax.tree.map(lambda leaf: -leaf * value, updates), state


OPTIMIZER = Optimizer()


def with_update(update: Callable[..., Any]) -> optax.GradientTransformationExtraArgs:
    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def two(updates: Any, state: Any, params: Any = None, *, grad_fn: Any, key: Any) -> Any:
    noise = jax.random.uniform(key)
    return jax.tree.map(lambda leaf: -noise * leaf, grad_fn(params)), state


def keywords(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
    """Takes what it needs out of a dictionary, and refuses nothing."""
    return two(updates, state, params, grad_fn=extra["grad_fn"], key=extra["key"])


def extra_of(params: Any) -> dict[str, Any]:
    """All extra arguments, each different from any other."""

    def value_fn(params: Any) -> jax.Array:
        return sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(params))

    return {
        "value": value_fn(params),
        "grad": jax.grad(value_fn)(params),
        "value_fn": value_fn,
        "obj_fn": value_fn,
        "grad_fn": lambda params, *_: jax.grad(value_fn)(params),
        "key": jax.random.key(1),
    }


SAM = contrib.sam(optax.sgd(0.1), optax.sgd(0.1), opaque_mode=True)


@pytest.mark.parametrize(
    ("tx", "names"),
    [
        (optax.sgd(0.1), ()),
        (optax.chain(optax.clip(1.0), optax.polyak_sgd()), ("value",)),
        (optax.lbfgs(memory_size=1), ("value", "grad", "value_fn")),
        (
            optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(5)),
            ("value", "grad", "value_fn"),
        ),
        (optax.masked(contrib.momo(0.1), {"kernel": True, "bias": False}), ("value",)),
        (contrib.sophia(0.1), ("obj_fn",)),
        (SAM, ("grad_fn",)),
        (optax.chain(optax.clip(1.0), SAM), ("grad_fn",)),
        (with_update(two), ("grad_fn", "key")),
        (optax.GradientTransformation(optax.identity().init, two), ("grad_fn", "key")),
        (with_update(keywords), ("grad_fn", "key")),
        (OPTIMIZER, ("value",)),
        (with_update(OPTIMIZER.update), ("value",)),
        (with_update(functools.partial(Optimizer.update, OPTIMIZER)), ("value",)),
        (with_update(jax.jit(OPTIMIZER.update)), ("value",)),
        (optax.chain(optax.clip(1.0), with_update(OPTIMIZER.update)), ("value",)),
    ],
)
def test_an_update_is_given_the_extra_arguments_that_it_accepts(
    tx: optax.GradientTransformation, names: tuple[str, ...]
) -> None:
    def first(tx: optax.GradientTransformation, names: tuple[str, ...]) -> Any:
        def run(params: Any) -> Any:
            extra = extra_of(params)
            given = {name: extra[name] for name in names}
            return tx.update(extra["grad"], tx.init(params), params, **given)

        return jax.jit(run)(PARAMS)

    found = first(normalize(tx), NAMES)
    jax.tree.map(np.testing.assert_array_equal, found, first(tx, names))
    assert any(np.any(leaf) for leaf in jax.tree.leaves(found[0]))


def test_an_optimizer_is_normalized_once() -> None:
    tx = normalize(optax.lbfgs())
    assert normalize(tx) is tx
    named_one = make_optimizer(named.recipe("mnist", "fast"), 10)
    assert normalize(named_one) is named_one


def test_what_cannot_work_is_refused_with_the_reason() -> None:
    private = contrib.differentially_private_aggregate(1.0, 0.1, key=0)
    needs_more = with_update(lambda updates, state, params=None, *, teacher: (updates, state))
    within = optax.chain(optax.clip(1.0), with_update(two))  # a chain does not tell what it needs
    for tx, reason in (
        (private, "batch dimension"),
        (needs_more, "teacher"),
        (within, r"let its update accept \*\*extra_args"),
    ):
        with pytest.raises(UserError, match=reason):
            check_update(tx, PARAMS)
        with pytest.raises(UserError, match=reason):
            normalize(tx).init(PARAMS)
    with pytest.raises(UserError, match=r"function is not an optax\.GradientTransformation"):
        check_update(optax.adam, PARAMS)


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
# does not belong together, for example with other dropout, differs by tenths.
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


@pytest.mark.parametrize("chained", [False, True])
def test_lookahead_trains_the_fast_and_evaluates_the_slow_ones(chained: bool) -> None:
    ahead = optax.lookahead(optax.sgd(0.1), sync_period=2, slow_step_size=0.5)
    tx = normalize(optax.chain(optax.clip(10.0), ahead) if chained else ahead)
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
    train_step, current, batch = step_of(tx, network, tiny_mnist)
    losses = []
    for _ in range(6):
        current, metrics = train_step(current, batch)
        losses.append(float(metrics["loss_sum"]))
    assert losses[-1] < 0.5 * losses[0]
    assert train_step._cache_size() == 1
