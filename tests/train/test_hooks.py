"""What a user gives to `fit`: a schedule, an augmentation, wrapped optimizers, an early end."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn.errors import DivergedError, StoppedError, UserError
from jaxcnn.optim.schedules import make_schedule
from jaxcnn.storage import checkpoint
from jaxcnn.train.result import EpochRecord, Result
from tests.train import test_fit
from tests.train.test_fit import RECIPE, Recorder, equal, same, stop_after, timeless

# Optax's own arithmetic mixes dtypes.
pytestmark = [pytest.mark.loose_promotion, pytest.mark.usefixtures("small_chunks")]


def rate(step: jax.Array) -> jax.Array:
    """Rises over five steps, then falls with the root of the step."""
    return 0.1 * jnp.minimum((step + 1) / 5, 5 / (step + 1)) ** 0.5


def brighten(key: jax.Array, images: jax.Array) -> jax.Array:
    factor = jax.random.uniform(key, (len(images), 1, 1, 1), minval=0.5)
    return factor * images.astype(jnp.float32)


def is_kernel(params: Any) -> Any:
    return jax.tree.map(lambda leaf: "kernel" if leaf.ndim > 1 else "rest", params)


SGD = optax.sgd(0.1, momentum=0.9)
HOOKS: dict[str, Callable[[], dict[str, Any]]] = {
    "schedule": lambda: {"schedule": rate},
    "augment": lambda: {"augment": brighten},
    "layers": lambda: {
        "tx": optax.multi_transform({"kernel": SGD, "rest": optax.adam(0.01)}, is_kernel)
    },
    # Every third step changes the parameters: the checkpoint comes between two of them.
    "accumulation": lambda: {"tx": optax.MultiSteps(SGD, every_k_schedule=3)},
    "if-finite": lambda: {"tx": optax.apply_if_finite(SGD, max_consecutive_errors=3)},
    "injected": lambda: {"tx": optax.inject_hyperparams(optax.sgd)(learning_rate=rate)},
}


def fit(**options: Any) -> Result:
    return test_fit.fit(RECIPE, **options)


@pytest.mark.parametrize("hook", HOOKS)
def test_resumed_in_the_middle_of_an_epoch(hook: str, tmp_path: Path) -> None:
    policy = checkpoint.Policy(tmp_path)
    whole = fit(**HOOKS[hook]())
    with pytest.raises(StoppedError, match="at step 11 of 14, saved in"):
        fit(**HOOKS[hook](), checkpoints=policy, interrupted=stop_after(5))
    same(fit(**HOOKS[hook](), checkpoints=policy), whole)
    assert timeless(whole) != timeless(fit())
    assert whole.history[1].train_loss < whole.history[0].train_loss


def test_a_schedule_is_the_learning_rate_of_the_recipe_s_optimizer() -> None:
    result = fit(schedule=rate)
    rates = [record.learning_rate for record in result.history]
    assert rates == pytest.approx([0.1 * (5 / 7) ** 0.5, 0.1 * (5 / 14) ** 0.5])
    # The recipe's schedule, given as one of the user's; adam takes it as a factor of its updates.
    for optimizer in ("sgd", "adam"):
        recipe = RECIPE.replace(optimizer=optimizer)
        given = test_fit.fit(recipe, schedule=make_schedule(recipe, 14))
        assert timeless(given) == timeless(test_fit.fit(recipe))
    # Also where the recipe has none.
    constant = RECIPE.replace(schedule="constant")
    assert timeless(test_fit.fit(constant, schedule=rate)) == timeless(result)


def test_an_augmentation_replaces_the_recipe_s() -> None:
    plain = fit(augment=lambda key, images: images)
    same(plain, fit())
    same(test_fit.fit(RECIPE.replace(augment="shift"), augment=lambda key, images: images), plain)
    black = fit(augment=lambda key, images: images * 0)
    assert black.history[-1].train_loss > 2.0  # nothing to be seen, hence nothing to be learnt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": lambda step: jnp.ones(3)}, r"the schedule returns \[3\] for one step"),
        ({"schedule": rate, "tx": SGD}, "schedule is for the recipe's optimizer"),
        (
            {"augment": lambda key, images: images[:, 1:]},
            r"the augmentation returns \[2, 27, 28, 1\] for images \[2, 28, 28, 1\]",
        ),
        ({"augment": lambda key, images: None}, "the augmentation returns None"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(**options)


def test_a_schedule_that_makes_a_run_diverge() -> None:
    with pytest.raises(DivergedError, match=r"rate is 1e\+30: let the schedule return smaller"):
        fit(schedule=lambda step: 1e30)


def test_other_code_is_another_run(tmp_path: Path) -> None:
    policy = checkpoint.Policy(tmp_path)

    def schedule(peak: float) -> optax.Schedule:
        return lambda step: peak / (step + 1)

    fit(schedule=schedule(0.1), augment=brighten, checkpoints=policy)
    for name, change in (
        ("own_schedule", {"schedule": schedule(0.2), "augment": brighten}),
        ("own_augment", {"schedule": schedule(0.1), "augment": lambda key, images: images}),
        ("own_augment", {"schedule": schedule(0.1)}),
    ):
        with pytest.raises(UserError, match=f"{name} [0-9a-f]{{64}} there"):
            fit(**change, checkpoints=policy)


class Ender(Recorder):
    """Ends a run after an epoch."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def epoch(self, record: EpochRecord) -> bool:  # type: ignore[override]
        super().epoch(record)
        return record.epoch == self.last


def test_an_observer_ends_the_run(tmp_path: Path) -> None:
    policy, other = checkpoint.Policy(tmp_path), Recorder()
    result = fit(observers=[Ender(1), other], checkpoints=policy)
    assert other.calls[-2:] == [("epoch", 1), "stop"]  # notified of the last epoch too
    assert int(result.state.step) == 7
    assert timeless(result) == timeless(fit())[:1]
    assert result.test_correct / result.test_total == result.history[-1].test_accuracy
    assert result.images_per_second == pytest.approx(320 / result.train_seconds)
    # It has ended: it is read, not gone on with, whoever observes it.
    again = fit(observers=[other], checkpoints=policy)
    same(again, result)
    assert other.calls[-2:] == [("start", 2, 320, 1), "stop"]
    # But with more epochs.
    assert len(test_fit.fit(RECIPE.replace(epochs=3), checkpoints=policy).history) == 3
    # An end after the last epoch changes nothing.
    same(fit(observers=[Ender(2)]), fit())


def test_a_function_is_called_with_the_record_of_each_epoch() -> None:
    records: list[EpochRecord] = []
    whole = fit(observers=[records.append])
    assert tuple(records) == whole.history
    ended = fit(observers=[lambda record: record.epoch == 1])
    assert len(ended.history) == 1 < len(whole.history)
    answering = fit(observers=[lambda record: "what a tracker answers"])
    assert len(answering.history) == len(whole.history)


def test_a_list_in_memory_and_metrics_on_the_way() -> None:
    recorder = Recorder()
    result = fit(observers=[recorder])
    assert len(recorder.losses) == 8
    assert recorder.losses[3] / 320 == pytest.approx(result.history[0].train_loss)


def test_an_injected_hyperparameter_is_in_the_state() -> None:
    result = fit(tx=optax.inject_hyperparams(optax.sgd)(learning_rate=rate))
    given = result.state.opt_state.hyperparams["learning_rate"]
    assert float(given) == pytest.approx(0.1 * (5 / 14) ** 0.5)


def test_accumulated_gradients_are_means() -> None:
    """One step on a batch of 320 is as far as accumulating it; rounding is all that differs."""
    recipe = RECIPE.replace(epochs=1, batch_size=320)
    stays = test_fit.fit(recipe, tx=optax.MultiSteps(optax.sgd(0.1), 2))
    zero = test_fit.fit(recipe, tx=optax.sgd(0.0))
    equal(stays.state.params, zero.state.params)  # half of what is to be accumulated
    twice = test_fit.fit(recipe.replace(epochs=2), tx=optax.MultiSteps(optax.sgd(0.1), 2))
    moved = itertools.starmap(
        np.array_equal,
        zip(*map(jax.tree.leaves, (twice.state.params, zero.state.params)), strict=True),
    )
    assert not any(moved)


SLOW = [pytest.mark.slow, pytest.mark.lightly_compiled]


@pytest.mark.parametrize(
    "change",
    [
        {"optimizer": "sgd", "ema": 0.9, "clip": 0.1, "weight_decay": 0.1},
        {"optimizer": "schedule_free_adamw", "schedule": "constant"},
        pytest.param({"optimizer": "adam"}, marks=SLOW),
        pytest.param({"optimizer": "lookahead"}, marks=SLOW),
        pytest.param({"optimizer": "sophia"}, marks=SLOW),
    ],
    ids=lambda change: change["optimizer"],
)
def test_frozen_parameters_stay_and_the_others_are_trained(
    change: dict[str, Any], tmp_path: Path
) -> None:
    """Also through a checkpoint in the middle of an epoch, from given weights."""
    recipe, policy = RECIPE.replace(**change), checkpoint.Policy(tmp_path)
    start = fit(seed=3).state.variables
    options: dict[str, Any] = {"start": start, "freeze": ["*/BatchNorm_0/*", "*/Dense_0/bias"]}
    whole = test_fit.fit(recipe, **options)
    for found in (whole.state.params, whole.state.eval_variables["params"]):
        equal(found["BatchNorm_0"], start["params"]["BatchNorm_0"])
        equal(found["Dense_0"]["bias"], start["params"]["Dense_0"]["bias"])
        assert (found["Dense_0"]["kernel"] != start["params"]["Dense_0"]["kernel"]).mean() > 0.9
    # The running statistics follow the images all the same.
    moved = whole.state.batch_stats["BatchNorm_0"]["mean"]
    assert (moved != start["batch_stats"]["BatchNorm_0"]["mean"]).any()
    with pytest.raises(StoppedError, match="at step 11 of 14, saved in"):
        test_fit.fit(recipe, **options, checkpoints=policy, interrupted=stop_after(5))
    same(test_fit.fit(recipe, **options, checkpoints=policy), whole)


def test_other_frozen_parameters_are_another_run(tmp_path: Path) -> None:
    policy = checkpoint.Policy(tmp_path)
    result = fit(freeze=["*/bias", "*/scale"], checkpoints=policy)
    same(fit(freeze=("*/scale", "*/bias"), checkpoints=policy), result)
    for change in ({}, {"freeze": ["*/bias"]}):
        with pytest.raises(
            UserError, match=r"another run \(freeze \['\*/bias', '\*/scale'\] there"
        ):
            fit(**change, checkpoints=policy)
    for freeze, said in (
        (["conv*"], r"--freeze 'conv\*' matches no parameter: .* params/Dense_0/kernel"),
        (["*"], "leaves no parameter to train"),
        ("*/bias", r"freeze takes a list of patterns: give \['\*/bias'\]"),
    ):
        with pytest.raises(UserError, match=said):
            fit(freeze=freeze)
