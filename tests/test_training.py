import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn import recipes, training
from jaxcnn.data import Dataset, feed
from jaxcnn.errors import DivergedError, UserError
from jaxcnn.models import Cifar10CNN, MnistCNN
from jaxcnn.steps import Metrics
from jaxcnn.training import EpochRecord, fit

MNIST = recipes.get("mnist", "reference").replace(
    epochs=2, batch_size=50, learning_rate=0.02, augment="shift"
)


class Recorder:
    """Remembers what an observer is told."""

    def __init__(self) -> None:
        self.calls: list[object] = []

    def start(self, *, epochs: int, images: int) -> None:
        self.calls.append(("start", epochs, images))

    def advance(self, *, images: int, metrics: Metrics) -> None:
        self.calls.append(("advance", images, int(metrics["count"])))

    def epoch(self, record: EpochRecord) -> None:
        self.calls.append(("epoch", record.epoch))

    def stop(self) -> None:
        self.calls.append("stop")


def timeless(result: training.Result) -> list[dict[str, object]]:
    """The history without its times."""
    times = ("seconds", "images_per_second")
    return [
        {k: v for k, v in record.asdict().items() if k not in times} for record in result.history
    ]


@pytest.fixture(scope="module")
def first(tiny_mnist: Dataset) -> training.Result:
    return fit(MNIST, tiny_mnist)


def test_result(first: training.Result, tiny_mnist: Dataset) -> None:
    assert [record.epoch for record in first.history] == [1, 2]
    assert [record.step for record in first.history] == [7, 14]  # 330 / 50, the rest too
    assert first.history[0].learning_rate == pytest.approx(0.02)
    assert first.test_total == len(tiny_mnist.test)
    assert first.test_accuracy == first.test_correct / first.test_total
    assert first.history[-1].test_accuracy == pytest.approx(first.test_accuracy)
    assert first.parameters == 207_258
    assert int(first.state.step) == 14
    assert min(first.train_seconds, first.eval_seconds, first.compile_seconds) > 0
    assert first.images_per_second == pytest.approx(660 / first.train_seconds)
    assert first.history[1].train_loss < first.history[0].train_loss


@pytest.mark.parametrize("feed_name", ["device", "stream"])
def test_the_same_seed_gives_the_same_bits_with_either_feed(
    first: training.Result,
    tiny_mnist: Dataset,
    feed_name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    again = fit(MNIST, tiny_mnist, feed=feed_name)
    assert timeless(again) == timeless(first)
    jax.tree.map(np.testing.assert_array_equal, again.state.params, first.state.params)


def test_another_seed_differs(first: training.Result, tiny_mnist: Dataset) -> None:
    assert timeless(fit(MNIST, tiny_mnist, seed=1)) != timeless(first)


def test_batch_norm_network_with_either_feed_in_several_chunks(
    tiny_cifar10: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "_CHUNK_STEPS", 1)
    monkeypatch.setattr(feed, "_CHUNK_BYTES", 3 * 16 * 3072)  # 2 chunks and a rest an epoch
    recipe = recipes.get("cifar10", "fast").replace(epochs=1, batch_size=16)
    recorder = Recorder()
    one = fit(recipe, tiny_cifar10, feed="device", observers=[recorder])
    other = fit(recipe, tiny_cifar10, feed="stream")
    assert timeless(one) == timeless(other)
    for name in ("params", "batch_stats", "opt_state"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(one.state, name), getattr(other.state, name)
        )
    assert recorder.calls == [
        ("start", 1, 90),
        ("advance", 48, 48),
        ("advance", 32, 32),
        ("advance", 10, 10),
        ("epoch", 1),
        "stop",
    ]


def test_any_transformation_and_model_can_be_given(tiny_mnist: Dataset) -> None:
    class Smaller(MnistCNN):
        pass

    recipe = MNIST.replace(epochs=1)
    result = fit(recipe, tiny_mnist, model=Smaller(dropout_rate=0.0), tx=optax.sign_sgd(1e-3))
    assert result.history[0].learning_rate is None
    assert np.isfinite(result.history[0].train_loss)


def test_a_batch_larger_than_the_split_is_refused(tiny_mnist: Dataset) -> None:
    with pytest.raises(UserError, match="batch_size 331 is larger than the 330 training images"):
        fit(MNIST.replace(batch_size=331), tiny_mnist)


def test_a_diverged_run_says_so(tiny_mnist: Dataset) -> None:
    recorder = Recorder()
    with pytest.raises(DivergedError, match=r"at step 2, where the learning rate is 1e\+30"):
        fit(MNIST.replace(learning_rate=1e30), tiny_mnist, observers=[recorder])
    assert recorder.calls[-1] == "stop"


def test_make_model() -> None:
    model = training.make_model(recipes.get("cifar10", "reference").replace(dropout=0.25))
    assert isinstance(model, Cifar10CNN)
    assert model.dropout_rate == 0.25
    assert isinstance(training.make_model(MNIST), MnistCNN)


def test_evaluate(first: training.Result, tiny_mnist: Dataset) -> None:
    correct, total, loss = training.evaluate(MNIST, first.state.variables, tiny_mnist.test)
    assert (correct, total) == (first.test_correct, first.test_total)
    assert loss == pytest.approx(first.history[-1].test_loss, rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 64, 70, 71])
def test_eval_batches(tiny_mnist: Dataset, batch_size: int) -> None:
    batches = training.eval_batches(tiny_mnist.test, batch_size)
    mask = np.array(batches["mask"]).ravel()
    assert mask.sum() == 70
    flat = np.array(batches["image"]).reshape(-1, 28, 28, 1)
    np.testing.assert_array_equal(flat[mask], tiny_mnist.test.images)
    np.testing.assert_array_equal(np.array(batches["label"]).ravel()[mask], tiny_mnist.test.labels)
    assert batches["label"].dtype == jnp.int32


def test_records_are_plain_values(first: training.Result) -> None:
    record = first.history[0]
    assert {type(value) for value in record.asdict().values()} <= {int, float}
    assert set(record.asdict()) == {field.name for field in dataclasses.fields(EpochRecord)}
