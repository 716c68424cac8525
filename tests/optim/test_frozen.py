import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from jaxcnn.errors import UserError
from jaxcnn.optim.averages import averaged, eval_params
from jaxcnn.optim.extra_args import Normalized, normalize
from jaxcnn.optim.factory import make_optimizer
from jaxcnn.optim.frozen import frozen, frozen_paths
from jaxcnn.recipes.optimizer_defaults import OPTIMIZERS
from tests.conformance import RECIPE, equal

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

# With a negative zero, which adding a positive one would change.
PARAMS = {
    "body": {"kernel": jnp.array([[1.0, -0.0], [2.0, -3.0]]), "bias": jnp.array([0.5, -0.0])},
    "head": {"kernel": jnp.array([[0.3, 0.7], [-0.2, 0.1]]), "bias": jnp.array([0.1, 0.2])},
}
PATHS = ("params/body/bias", "params/body/kernel")


def loss(params: Any) -> jax.Array:
    x = jnp.tanh(params["body"]["kernel"] @ params["body"]["bias"] + 1.0)
    return jnp.sum((params["head"]["kernel"] @ x + params["head"]["bias"] - 1.0) ** 2)


def head_loss(head: Any) -> jax.Array:
    """The same as a function of the trainable parameters alone."""
    return loss(PARAMS | head)


def descend(tx: optax.GradientTransformation, loss: Any, params: Any) -> tuple[Any, Any]:
    """Takes four steps; returns the optimizer's state and the parameters."""

    @jax.jit
    def step(opt_state: Any, params: Any, key: jax.Array) -> tuple[Any, Any]:
        value, grads = jax.value_and_grad(loss)(params)
        functions = {"value_fn": loss, "obj_fn": loss, "grad_fn": lambda p, *_: jax.grad(loss)(p)}
        extra = {"value": value, "grad": grads, "key": key, **functions}
        return tx.update(grads, opt_state, params, **extra)

    opt_state = tx.init(params)
    for key in jax.random.split(jax.random.key(0), 4):
        updates, opt_state = step(opt_state, params, key)
        params = optax.apply_updates(params, updates)  # by itself: XLA leaves out adding zeros
    return opt_state, params


def sharpness_aware() -> Any:
    return contrib.sam(optax.sgd(0.1), optax.sgd(0.05), sync_period=2)


def curvature() -> Any:
    return contrib.sophia(
        0.1,
        update_interval=2,
        hessian_diagonal_fn=contrib.hutchinson_estimator_diag_hessian(jax.random.key(1)),
    )


TXS = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.1),
    "clipped": lambda: optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(0.1)),
    "average": lambda: averaged(optax.sgd(0.1), 0.5),
    "schedule-free": lambda: contrib.schedule_free_sgd(0.1),
    "lookahead": lambda: optax.lookahead(optax.sgd(0.1), 3, 0.5),
    "sharpness-aware": sharpness_aware,
    "curvature": curvature,
    "line-search": lambda: optax.lbfgs(),
    "by-kind": lambda: optax.partition(
        {True: optax.adam(0.1), False: optax.sgd(0.1)},
        lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
    ),
}


@pytest.mark.parametrize("name", TXS)
def test_others_are_trained_as_if_they_were_all(name: str) -> None:
    tx = frozen(TXS[name](), PATHS)
    opt_state, params = descend(tx, loss, PARAMS)
    assert equal(params["body"], PARAMS["body"])
    assert (np.signbit(params["body"]["kernel"]) == np.signbit(PARAMS["body"]["kernel"])).all()
    evaluated = eval_params(opt_state, params)
    assert equal(evaluated["body"], PARAMS["body"])
    alone = normalize(TXS[name]())
    other_state, others = descend(alone, head_loss, {"head": PARAMS["head"]})
    close = {"rtol": 1e-4, "atol": 1e-6}  # the frozen ones are constants there: rounded otherwise
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **close), params["head"], others["head"]
    )
    expected = eval_params(other_state, others)["head"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, **close), evaluated["head"], expected
    )
    assert not np.allclose(params["head"]["kernel"], PARAMS["head"]["kernel"], atol=1e-3)


@pytest.mark.slow
@pytest.mark.lightly_compiled
@pytest.mark.parametrize("name", [name for name, known in OPTIMIZERS.items() if not known.refused])
def test_every_optimizer_leaves_them(name: str) -> None:
    recipe = RECIPE.replace(optimizer=name)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*optimistic_adam.* is deprecated")
        tx = frozen(make_optimizer(recipe, 4, key=jax.random.key(2)), PATHS)
    opt_state, params = descend(tx, loss, PARAMS)
    assert equal(params["body"], PARAMS["body"])
    assert equal(eval_params(opt_state, params)["body"], PARAMS["body"])
    assert not equal(params["head"], PARAMS["head"])


def test_it_accepts_every_extra_argument() -> None:
    assert isinstance(frozen(optax.sgd(0.1), PATHS), Normalized)


def test_paths_by_patterns() -> None:
    assert frozen_paths([], PARAMS) == ()
    assert frozen_paths(["params/body/*"], PARAMS) == PATHS
    assert frozen_paths(["*/kernel", "params/body/kernel"], PARAMS) == (
        "params/body/kernel",
        "params/head/kernel",
    )
    said = r"--freeze 'body/\*' matches no parameter: give .* params/body/bias, params/body/kernel,"
    with pytest.raises(UserError, match=said):
        frozen_paths(["params/head/*", "body/*"], PARAMS)
    with pytest.raises(UserError, match="leaves no parameter to train"):
        frozen_paths(["params/body/*", "params/head/*"], PARAMS)
