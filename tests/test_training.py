import dataclasses
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn import checkpoint, environment, recipes, training
from jaxcnn.data import Dataset, Split, feed
from jaxcnn.errors import DivergedError, StoppedError, UserError
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

    def start(self, *, epochs: int, images: int, history: Sequence[EpochRecord] = ()) -> None:
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
    recipe = recipes.get("cifar10", "fast").replace(epochs=1, batch_size=16, optimizer="sgd")
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
        ("advance", 32, 80),  # the epoch's sums
        ("advance", 10, 90),
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


def stop_after(chunks: int) -> Callable[[], bool]:
    """Says yes once it has been asked more often than that."""
    asked = itertools.count()
    return lambda: next(asked) > chunks


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts an epoch into chunks of two batches."""
    monkeypatch.setattr(feed, "_CHUNK_STEPS", 2)
    monkeypatch.setattr(feed, "_CHUNK_BYTES", 1)


def equal(state: Any, other: Any) -> None:
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, two = jax.random.key_data(one), jax.random.key_data(two)
        np.testing.assert_array_equal(one, two)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("network", ["mnist", "cifar10"])
@pytest.mark.parametrize("feeds", [("device", "stream"), ("stream", "device")])
def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bits(
    network: str,
    feeds: tuple[str, str],
    tiny_mnist: Dataset,
    tiny_cifar10: Dataset,
    tmp_path: Path,
) -> None:
    dataset = {"mnist": tiny_mnist, "cifar10": tiny_cifar10}[network]
    batch_size = {"mnist": 64, "cifar10": 16}[network]  # 6 steps an epoch
    recipe = recipes.get(network, "fast").replace(epochs=2, batch_size=batch_size, optimizer="sgd")
    straight = fit(recipe, dataset)
    said: list[str] = []
    policy = checkpoint.Policy(tmp_path, checkpoint.Every(0), report=said.append)
    stops = 0
    while True:
        options = {"feed": feeds[stops % 2], "interrupted": stop_after(2)}
        try:
            result = fit(recipe, dataset, checkpoints=policy, **options)
        except StoppedError as error:
            assert "saved in" in str(error)
            stops += 1
        else:
            break
    assert stops >= 2
    assert len(said) == stops
    equal(result.state, straight.state)
    assert timeless(result) == timeless(straight)
    assert (result.test_correct, result.test_total) == (straight.test_correct, len(dataset.test))
    assert result.train_seconds == pytest.approx(sum(r.seconds for r in result.history))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("every", ["1", "2", "3steps", "0"])
def test_checkpoints_come_as_often_as_asked_and_change_nothing(
    every: str, first: training.Result, tiny_mnist: Dataset, tmp_path: Path
) -> None:
    policy = checkpoint.Policy(tmp_path, checkpoint.Every.parse(every), keep=100)
    result = fit(MNIST, tiny_mnist, checkpoints=policy)  # 7 steps an epoch
    expected = {"1": [7, 14], "2": [14], "3steps": [3, 6, 9, 12, 14], "0": [14]}
    found = checkpoint.listed(tmp_path)
    assert [one.step for one in found] == expected[every]
    assert timeless(result) == timeless(first)
    equal(result.state, first.state)
    for one in found:
        history = one.verify()["progress"]["history"]
        assert len(history) == one.step // 7
        # From every one of them the run goes on to the same end.
        folder = tmp_path / f"from-{one.step}"
        folder.mkdir()
        one.folder.rename(folder / one.folder.name)
        again = fit(MNIST, tiny_mnist, checkpoints=dataclasses.replace(policy, folder=folder))
        assert timeless(again) == timeless(first)
        equal(again.state, first.state)


def test_the_accuracy_is_the_score_of_a_checkpoint(tiny_mnist: Dataset, tmp_path: Path) -> None:
    result = fit(MNIST, tiny_mnist, checkpoints=checkpoint.Policy(tmp_path))
    for one, record in zip(checkpoint.listed(tmp_path), result.history, strict=True):
        assert one.read()["score"] == record.test_accuracy


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"epochs": 3}, "epochs 2 there and 3 here"),
        ({"optimizer": "adam"}, "optimizer sgd there and adam here"),
        ({"dropout": 0.1}, "dropout 0.5 there and 0.1 here"),
    ],
)
def test_another_recipe_is_not_gone_on_with(
    change: dict, named: str, tiny_mnist: Dataset, tmp_path: Path
) -> None:
    policy = checkpoint.Policy(tmp_path)
    with pytest.raises(StoppedError, match="nothing saved"):
        fit(MNIST, tiny_mnist, checkpoints=policy, interrupted=lambda: True)
    with pytest.raises(UserError, match=named):
        fit(MNIST.replace(**change), tiny_mnist, checkpoints=policy)


def test_nor_other_data_networks_dtypes_seeds_and_optimizers(
    tiny_mnist: Dataset, tmp_path: Path
) -> None:
    class Smaller(MnistCNN):
        pass

    recipe, policy = MNIST.replace(epochs=1), checkpoint.Policy(tmp_path)
    fit(recipe, tiny_mnist, checkpoints=policy)
    images = tiny_mnist.train.images.copy()
    images[5, 5, 5] ^= 1
    other = dataclasses.replace(tiny_mnist, train=Split(images, tiny_mnist.train.labels))
    half = MnistCNN(dropout_rate=0.5, initialization="pytorch", dtype=jnp.bfloat16)
    for change, named in (
        ({"dataset": other}, "dataset_checksum"),
        ({"model": Smaller()}, "model MnistCNN there and .*Smaller here"),
        ({"model": half}, "dtype float32 there and bfloat16 here"),
        ({"seed": 1}, "seed 0 there and 1 here"),
        ({"tx": optax.sgd(0.1)}, "own_tx False there and True here"),
    ):
        options = {"dataset": tiny_mnist, "checkpoints": policy, **change}
        with pytest.raises(UserError, match=named):
            fit(recipe, **options)


def test_a_newer_package_is_mentioned(
    tiny_mnist: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    policy = checkpoint.Policy(tmp_path, report=said.append)
    fit(MNIST, tiny_mnist, checkpoints=policy)
    monkeypatch.setattr(environment, "device", lambda: "abacus")
    fit(MNIST, tiny_mnist, checkpoints=policy)
    assert "going on from" in said[0]
    assert "device cpu" in said[1]
    assert "then and abacus now" in said[1]


def sized(dataset: Dataset, train: int, test: int) -> Dataset:
    """A part of a data set."""

    def take(split: Split, size: int) -> Split:
        return Split(split.images[:size], split.labels[:size])

    return dataclasses.replace(
        dataset, train=take(dataset.train, train), test=take(dataset.test, test)
    )


def test_sizes_that_cannot_be(tiny_mnist: Dataset) -> None:
    with pytest.raises(UserError, match="mnist has no training images"):
        fit(MNIST, sized(tiny_mnist, 0, 70))
    with pytest.raises(UserError, match="mnist has no test images"):
        fit(MNIST, sized(tiny_mnist, 330, 0))
    long = MNIST.replace(epochs=10**6, batch_size=1)
    million = np.broadcast_to(tiny_mnist.train.labels[:1], 10**6)
    images = np.broadcast_to(tiny_mnist.train.images[:1], (10**6, 28, 28, 1))
    with pytest.raises(UserError, match="steps, more than the 2147483646 that can be counted"):
        fit(long, dataclasses.replace(tiny_mnist, train=Split(images, million)))


@pytest.mark.loose_promotion
@pytest.mark.parametrize("network", ["mnist", "cifar10"])
def test_one_image_is_enough(network: str, tiny_mnist: Dataset, tiny_cifar10: Dataset) -> None:
    dataset = sized({"mnist": tiny_mnist, "cifar10": tiny_cifar10}[network], 1, 1)
    recipe = recipes.get(network, "fast").replace(epochs=2, batch_size=1)
    result = fit(recipe, dataset)
    assert [record.step for record in result.history] == [1, 2]
    assert result.test_total == 1
    assert all(np.isfinite(record.train_loss) for record in result.history)


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
