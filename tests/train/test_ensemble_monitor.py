"""Metrics and the step log of an ensemble, with a small network and pieces of two steps."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn.devices.mesh import ONE_DEVICE
from jaxcnn.errors import StoppedError, UserError
from jaxcnn.storage import checkpoint
from jaxcnn.train import ensemble, steps
from jaxcnn.train import fit as train_fit
from jaxcnn.train.many_result import ManyResult
from jaxcnn.train.member import Member
from jaxcnn.train.members import Members
from jaxcnn.train.result import Observer, Result
from jaxcnn.train.step_log import COLUMNS, StepLog
from tests.linear import Linear
from tests.train.test_step_log import DATA, RECIPE, correct, ratio

METRICS = {"ratio": ratio, "correct": correct}
MEMBERS = Members(np.array([0, 3, 5]), {"learning_rate": np.array([0.1, 0.1, 0.02])})


@pytest.fixture(autouse=True)
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts epochs, of six batches of 50 images and one of 20 here, into pieces of two steps."""
    monkeypatch.setattr("jaxcnn.train.ensemble_program._PIECE", 2)


def fit(members: Members = MEMBERS, **options: Any) -> ManyResult:
    return ensemble.fit_many(RECIPE, DATA, members, **{"model": Linear(), "chunk": 1, **options})


class Rows(Observer):
    """Keeps the rows of a run by itself."""

    def __init__(self) -> None:
        self.all: list[Mapping[str, Any]] = []

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.all.extend(rows)


@pytest.fixture(scope="module")
def alone() -> list[tuple[Result, list[Mapping[str, Any]]]]:
    """Each member as a run of `fit`, with the rows of its log."""
    runs = []
    for seed, rate in zip(MEMBERS.seeds, MEMBERS.hyperparameters["learning_rate"], strict=True):
        rows, recipe = Rows(), RECIPE.replace(learning_rate=float(rate))
        options: dict[str, Any] = {"metrics": METRICS, "log_every": 3, "observers": [rows]}
        runs.append((train_fit.fit(recipe, DATA, model=Linear(), seed=seed, **options), rows.all))
    return runs


@pytest.mark.parametrize("chunk", [1, 2])  # the second of two has one member, and is filled up
def test_a_member_logs_what_its_run_alone_does(
    chunk: int, alone: list[tuple[Result, list[Mapping[str, Any]]]]
) -> None:
    result = fit(chunk=chunk, metrics=METRICS, log_every=3)
    assert list(result.log) == [*COLUMNS, *METRICS]
    assert result.logged.tolist() == [3, 6, 9, 12]
    for index, (single, rows) in enumerate(alone):
        assert [row["step"] for row in rows] == result.logged.tolist()
        for name, values in result.log.items():
            expected = [row[name] for row in rows]
            # Rounding is 6e-8 for each of the few hundred terms of a sum that matter.
            np.testing.assert_allclose(values[:, index], expected, rtol=1e-4)
        for name, means in result.metrics.items():
            expected = [record.metrics[name] for record in single.history]
            np.testing.assert_allclose(means[:, index], expected, rtol=1e-4)
    first, second, third = result.log["loss"][0]
    assert min(abs(first - second), abs(second - third), abs(third - first)) > 1e-2


def test_what_is_measured_changes_nothing() -> None:
    plain = fit(keep_states=True)
    assert (plain.metrics, plain.log, plain.logged.size) == ({}, {}, 0)
    logged = fit(keep_states=True, metrics=METRICS, log_every=1)
    assert logged.logged.tolist() == list(range(1, 15))
    assert plain.states is not None
    assert logged.states is not None
    jax.tree.map(np.testing.assert_array_equal, plain.states.params, logged.states.params)
    for name, curve in plain.history.items():
        np.testing.assert_array_equal(curve, logged.history[name])
    for name, means in logged.metrics.items():
        rows = logged.log[name].reshape(2, 7, 3)
        np.testing.assert_allclose(means, rows.mean(axis=1), rtol=1e-5)


@pytest.mark.parametrize("every", [0, 3])
def test_members_at_once_compute_norms_in_logged_steps_only(every: int) -> None:
    member = Member(RECIPE, (28, 28, 1), 320, Linear(), None, ONE_DEVICE, log=StepLog(every=every))
    own: Any = (np.array([0, 3], np.uint32), {"learning_rate": np.array([0.1, 0.02], np.float32)})
    states = jax.eval_shape(jax.vmap(member.init), *own)
    records = jax.tree.map(
        lambda leaf: jnp.stack([leaf, leaf]), [steps.zero_train_metrics(), *member.log.empty(2)]
    )
    zero, data = np.int32(0), (jnp.asarray(DATA.train.images), jnp.asarray(DATA.train.labels))

    def both(mapped: Any, *shared: Any) -> Any:
        return jax.vmap(lambda *one: member.train_full(*one, *shared))(*mapped)

    mapped = (states, records, *own)
    program = str(jax.make_jaxpr(both)(mapped, zero, (zero, zero), data))
    assert ("cond[" in program) == (every > 0)  # a select would have computed both


@pytest.mark.usefixtures("compiled_once")
def test_a_resumed_ensemble_has_every_row_and_mean(tmp_path: Path) -> None:
    members = MEMBERS.take([0, 2])
    options: dict[str, Any] = {"chunk": 2, "metrics": METRICS, "log_every": 2}
    straight = fit(members, **options)
    options["checkpoints"] = checkpoint.Policy(tmp_path, checkpoint.Every(0))
    for most, step in ((2, 4), (3, 9)):  # polled once before the first step
        polls = itertools.count()
        with pytest.raises(StoppedError, match=f"at step {step} of 14, saved"):
            fit(members, interrupted=lambda now=polls, most=most: next(now) == most, **options)
    for changed, said in (
        ({"log_every": 3}, "log_every 2 there and 3 here"),
        ({"log_every": 0}, "log_every 2 there and None here"),
        ({"metrics": {"ratio": ratio}}, "metrics .*correct.* there and .* here"),
    ):
        with pytest.raises(UserError, match=said):
            fit(members, **options | changed)
    result = fit(members, **options)
    for ours, theirs in ((result.log, straight.log), (result.metrics, straight.metrics)):
        for name, values in theirs.items():
            np.testing.assert_array_equal(ours[name], values)
            assert np.isfinite(values).all()


def test_a_member_that_diverges_has_no_means_from_there_on() -> None:
    members = MEMBERS.take([0, 0])
    members.hyperparameters["learning_rate"][1] = 1e38
    result = fit(members, metrics={"correct": correct}, log_every=1)
    assert result.diverged_at[1] > 1
    assert np.isfinite(result.metrics["correct"][:, 0]).all()
    assert np.isnan(result.metrics["correct"][:, 1]).all()
    losses = result.log["loss"]
    assert np.isfinite(losses[:, 0]).all()
    first = result.diverged_at[1] - 1
    assert np.isfinite(losses[:first, 1]).all()
    assert not np.isfinite(losses[first, 1])


def test_the_learning_rate_of_an_optimizer_of_one_s_own_is_not_known() -> None:
    members = Members(np.array([0]), {"learning_rate": np.array([0.1])})
    result = fit(members, tx=lambda values: optax.sgd(values["learning_rate"]), log_every=7)
    assert np.isnan(result.log["learning_rate"]).tolist() == [[True], [True]]
    # SGD: the learning rate is what the norms say.
    rates = result.log["update_norm"] / result.log["grad_norm"]
    np.testing.assert_allclose(rates, 0.1, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metrics": {"seed": correct}}, "named seed, as another column of the result: rename"),
        ({"metrics": {"momentum": correct}}, "named momentum, as another column"),
        ({"metrics": {"loss": correct}}, "named loss, as a record's own value"),
        ({"metrics": {"m": lambda values: values.labels}}, r"m returns an array \[50\]"),
        ({"log_every": -1}, "log_every takes a whole number"),
        ({"schedule": lambda step: 0.1, "freeze": ["*"]}, "takes no schedule, freeze: train its"),
        ({"observers": []}, "an ensemble takes no observers"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(options: dict[str, Any], message: str) -> None:
    members = Members(np.array([0]), {"momentum": np.array([0.5])})
    with pytest.raises(UserError, match=message):
        fit(members, **options)
