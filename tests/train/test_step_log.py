"""Losses, metrics and the step log of a run, with a small network and chunks of two steps."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn.errors import DivergedError, StoppedError, UserError
from jaxcnn.storage import checkpoint
from jaxcnn.train import fit as train_fit
from jaxcnn.train.records import Records
from jaxcnn.train.result import Progress, Result
from jaxcnn.train.step_log import COLUMNS, Rows, StepLog, StepValues
from tests import conformance
from tests.linear import Linear

pytestmark = pytest.mark.usefixtures("small_chunks")

DATA = conformance.dataset()  # 320 images: six batches of 50 and one of 20 an epoch
RECIPE = conformance.RECIPE.replace(
    optimizer="sgd", epochs=2, batch_size=50, learning_rate=0.1, momentum=0.0, weight_decay=0.0
).replace(schedule="linear", label_smoothing=0.3)


def fit(**options: Any) -> Result:
    return train_fit.fit(RECIPE, DATA, **{"model": Linear(), **options})


def half(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Half of the cross entropy."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels) / 2


def ratio(values: StepValues) -> jax.Array:
    """The length of the update as a share of that of the gradient: the learning rate of SGD."""
    return optax.tree.norm(values.updates) / optax.tree.norm(values.grads)


def correct(values: StepValues) -> jax.Array:
    return jnp.mean(values.logits.argmax(-1) == values.labels)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "steps.jsonl").read_text().splitlines()]


def equal(one: Result, other: Result) -> None:
    jax.tree.map(np.testing.assert_array_equal, one.state.params, other.state.params)


@pytest.fixture(scope="module")
def plain() -> Result:
    return fit()


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, Path]:
    """A run that logs every step, and its folder."""
    folder = tmp_path_factory.mktemp("logged")
    metrics = {"ratio": ratio, "correct": correct}
    return fit(metrics=metrics, log_every=1, observers=[Records(folder)]), folder


def test_every_step_has_a_row(plain: Result, logged: tuple[Result, Path]) -> None:
    result, folder = logged
    equal(result, plain)  # what is measured changes nothing
    rows = rows_of(folder)
    assert [row["step"] for row in rows] == list(range(1, 15))
    assert all(set(row) == {"step", *COLUMNS, "ratio", "correct"} for row in rows)
    rates = [row["learning_rate"] for row in rows]
    np.testing.assert_allclose(rates, 0.1 * np.arange(14, 0, -1) / 14, rtol=1e-5)
    for row in rows:
        # SGD without momentum and decay: two norms, each a sum of some thousand squares.
        assert row["ratio"] == pytest.approx(row["learning_rate"], rel=1e-4)
        assert row["update_norm"] == pytest.approx(row["ratio"] * row["grad_norm"], rel=1e-5)
    # Of the label-smoothed loss: above that of the labels themselves.
    assert rows[0]["loss"] > 0
    assert rows[-1]["loss"] > result.history[-1].train_loss


def test_the_record_of_an_epoch_has_the_means_over_its_steps(
    plain: Result, logged: tuple[Result, Path]
) -> None:
    result, folder = logged
    rows = rows_of(folder)
    for record, part in zip(result.history, (rows[:7], rows[7:]), strict=True):
        for name in ("ratio", "correct"):
            mean = np.mean([row[name] for row in part])
            assert record.metrics[name] == pytest.approx(mean, rel=1e-5)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["ratio"] for line in lines] == [r.metrics["ratio"] for r in result.history]
    assert not plain.history[0].metrics


def test_only_some_steps_are_logged(logged: tuple[Result, Path], tmp_path: Path) -> None:
    result, folder = logged
    for every in (3, 100):
        workdir = tmp_path / f"{every}"
        equal(fit(log_every=every, observers=[Records(workdir)], feed="stream"), result)
        names = {"step", *COLUMNS}
        expected = [row for row in rows_of(folder) if row["step"] % every == 0]
        if every == 100:
            assert not (workdir / "steps.jsonl").exists()
            continue
        assert [row["step"] for row in rows_of(workdir)] == [3, 6, 9, 12]
        for row, other in zip(rows_of(workdir), expected, strict=True):
            assert row == pytest.approx({name: other[name] for name in names}, rel=1e-5)


def stop_after(chunks: int) -> Callable[[], bool]:
    polled = itertools.count()
    return lambda: next(polled) > chunks


def test_a_resumed_run_has_every_row_once(tmp_path: Path) -> None:
    options: dict[str, Any] = {"metrics": {"ratio": ratio}, "log_every": 2}
    straight, workdir = tmp_path / "straight", tmp_path / "resumed"
    fit(observers=[Records(straight)], **options)
    options["checkpoints"] = checkpoint.Policy(tmp_path / "checkpoints", checkpoint.Every(0))
    for polls in (2, 1):  # after steps 6 and 9
        with pytest.raises(StoppedError):
            fit(observers=[Records(workdir)], interrupted=stop_after(polls), **options)
        with (workdir / "steps.jsonl").open("a") as file:  # a killed run had gone on
            file.write('{"step": 10, "loss": 7.0}\n{"step": 12, "lo')
    fit(observers=[Records(workdir)], **options)
    assert rows_of(workdir) == rows_of(straight)
    assert [row["step"] for row in rows_of(workdir)] == [2, 4, 6, 8, 10, 12, 14]
    with pytest.raises(UserError, match=r"metrics .*ratio.* there and None here"):
        fit(**options | {"metrics": None})


def test_another_loss(plain: Result) -> None:
    result = fit(loss=half)
    # Its own, without the label smoothing, in training and evaluation.
    expected = train_fit.fit(
        RECIPE.replace(label_smoothing=0.0, learning_rate=0.05), DATA, model=Linear()
    )
    for record, other in zip(result.history, expected.history, strict=True):
        assert record.train_loss == pytest.approx(other.train_loss / 2, rel=1e-4)
        assert record.test_loss == pytest.approx(other.test_loss / 2, rel=1e-4)
    assert result.history[0].train_loss != plain.history[0].train_loss


def test_a_run_is_not_resumed_with_another_loss(tmp_path: Path) -> None:
    policy = checkpoint.Policy(tmp_path)
    with pytest.raises(StoppedError):
        fit(loss=half, checkpoints=policy, interrupted=stop_after(0))
    with pytest.raises(UserError, match=r"loss [0-9a-f]{64} there and None here"):
        fit(checkpoints=policy)
    with pytest.raises(UserError, match=r"loss [0-9a-f]{64} there and [0-9a-f]{64} here"):
        fit(loss=lambda logits, labels: 2 * half(logits, labels), checkpoints=policy)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": lambda logits, labels: half(logits, labels).mean()}, r"float32\[\] for 50"),
        ({"loss": lambda logits, labels: 1.0}, "returns float for"),
        ({"loss": lambda logits, labels: labels}, r"int32\[50\] for 50 images"),
        ({"metrics": {"m": lambda values: values.labels}}, r"m returns an array \[50\]"),
        ({"metrics": {"m": lambda values: None}}, "m returns NoneType"),
        ({"metrics": {"loss": correct}}, "as a record's own value"),
        ({"metrics": {"": correct}}, "give it a name"),
        ({"metrics": {1: correct}}, "is named 1: give it a name"),
        ({"log_every": -1}, "log_every takes a whole number"),
        ({"log_every": 2.0}, "log_every takes a whole number .* got 2.0"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(**options)


def test_a_diverging_run_leaves_its_last_rows(tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        fit(tx=optax.sgd(1e38), log_every=1, observers=[Records(tmp_path)])
    rows = rows_of(tmp_path)
    assert rows[0]["loss"] > 0
    assert rows[-1]["loss"] is None
    assert all(row["learning_rate"] is None for row in rows)  # an optimizer that was given


def test_a_metric_that_is_not_finite_does_not_end_a_run(tmp_path: Path) -> None:
    policy = checkpoint.Policy(tmp_path / "checkpoints")
    metrics = {"nothing": lambda values: 0 * values.loss / 0}
    result = fit(metrics=metrics, checkpoints=policy, observers=[Records(tmp_path)])
    assert result.history[-1].metrics == {"nothing": None}
    saved = checkpoint.list_checkpoints(policy.folder)[-1].read()["progress"]
    assert Progress.from_json(saved).history == list(result.history)
    # As it was saved before there were metrics.
    for record in saved["history"]:
        del record["metrics"]
    assert Progress.from_json(saved).history[0].metrics == {}


def test_rows_are_where_their_steps_are() -> None:
    for every, before, count in itertools.product((1, 2, 3, 7), (0, 1, 5, 6), (1, 2, 4, 9)):
        log = StepLog(every=every)
        (rows,) = log.empty(9)
        for step in range(before + 1, before + count + 1):
            row = jnp.full((len(COLUMNS),), float(step))
            rows = log.write(rows, row, np.int32(step), np.int32(before))
        found = log.rows(rows, before, before + count)
        assert isinstance(found, Rows)
        steps = [step for step in range(before + 1, before + count + 1) if step % every == 0]
        assert list(found.steps) == steps
        assert [row["grad_norm"] for row in found.records()] == steps
