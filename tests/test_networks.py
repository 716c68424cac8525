"""Both networks through `fit` and the ensemble; how these work, a small network shows as well."""

import dataclasses
import itertools
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import StoppedError, UserError
from jaxcnn.recipes import named
from jaxcnn.storage import checkpoint
from jaxcnn.train import ensemble
from jaxcnn.train.evaluate import evaluate
from jaxcnn.train.fit import fit
from jaxcnn.train.members import Members, grid
from jaxcnn.train.result import Result
from tests.train.test_ensemble import distance, of_member, parts
from tests.train.test_ensemble import same as same_ensemble
from tests.train.test_fit import equal, same, sized, stop_after, timeless

pytestmark = pytest.mark.slow

REFERENCE = named.recipe("mnist", "reference").replace(
    epochs=2, batch_size=50, learning_rate=0.02, augment="shift"
)
MNIST = named.recipe("mnist", "fast").replace(epochs=2, batch_size=50, optimizer="sgd")
CIFAR10 = named.recipe("cifar10", "fast").replace(epochs=1, batch_size=16, optimizer="sgd")
# A learning rate that is off by a thousandth changes a run more than rounding does: each update is
# off by 1e-3 then, and by rounding by 6e-8 for each of the terms of its sums, up to 10^4, at worst.
NUDGE = 1.001


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts an epoch into chunks of two batches."""
    monkeypatch.setattr("jaxcnn.train.feed._CHUNK_STEPS", 2)
    monkeypatch.setattr("jaxcnn.train.feed._CHUNK_BYTES", 1)


@pytest.fixture(scope="module")
def first(tiny_mnist: Dataset) -> Result:
    return fit(REFERENCE, tiny_mnist)


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
    recipe = named.recipe(network, "fast").replace(epochs=2, batch_size=batch_size, optimizer="sgd")
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
    same(result, straight)
    assert result.test_total == len(dataset.test)
    assert result.train_seconds == pytest.approx(sum(r.seconds for r in result.history))


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("every", ["1", "2", "3steps", "0"])
def test_checkpoints_come_as_often_as_asked_and_change_nothing(
    every: str, first: Result, tiny_mnist: Dataset, tmp_path: Path
) -> None:
    policy = checkpoint.Policy(tmp_path, checkpoint.Every.parse(every), keep=100)
    result = fit(REFERENCE, tiny_mnist, checkpoints=policy)  # 7 steps an epoch
    expected = {"1": [7, 14], "2": [14], "3steps": [3, 6, 9, 12, 14], "0": [14]}
    found = checkpoint.list_checkpoints(tmp_path)
    assert [one.step for one in found] == expected[every]
    same(result, first)
    for one in found:
        history = one.verify()["progress"]["history"]
        assert len(history) == one.step // 7
        # From every one of them the run goes on to the same end.
        folder = tmp_path / f"from-{one.step}"
        folder.mkdir()
        one.folder.rename(folder / one.folder.name)
        again = fit(REFERENCE, tiny_mnist, checkpoints=dataclasses.replace(policy, folder=folder))
        same(again, first)


def test_the_same_seed_gives_the_same_bits_with_either_feed(
    first: Result, tiny_mnist: Dataset
) -> None:
    assert first.parameters == 207_258
    assert min(first.train_seconds, first.eval_seconds, first.compile_seconds) > 0
    assert first.images_per_second == pytest.approx(660 / first.train_seconds)
    for name in ("device", "stream"):
        same(fit(REFERENCE, tiny_mnist, feed=name), first)
    assert timeless(fit(REFERENCE, tiny_mnist, seed=1)) != timeless(first)


def test_evaluate(first: Result, tiny_mnist: Dataset) -> None:
    correct, total, loss = evaluate(REFERENCE, first.state.variables, tiny_mnist.test)
    assert (correct, total) == (first.test_correct, first.test_total)
    # Sums of up to 512 products, 6e-8 each.
    assert loss == pytest.approx(first.history[-1].test_loss, rel=1e-5)


@pytest.mark.loose_promotion
@pytest.mark.parametrize("network", ["mnist", "cifar10"])
def test_one_image_is_enough(network: str, tiny_mnist: Dataset, tiny_cifar10: Dataset) -> None:
    dataset = sized({"mnist": tiny_mnist, "cifar10": tiny_cifar10}[network], 1, 1)
    recipe = named.recipe(network, "fast").replace(epochs=2, batch_size=1)
    result = fit(recipe, dataset)
    assert [record.step for record in result.history] == [1, 2]
    assert result.test_total == 1
    assert all(np.isfinite(record.train_loss) for record in result.history)


@pytest.fixture(scope="module")
def members() -> Members:
    """Two seeds at two rates, and the first with a rate that is a little off."""
    rates = np.array([0.02, 0.02, 0.05, 0.05, 0.02 * NUDGE])
    return Members(np.array([0, 3, 0, 3, 0]), {"learning_rate": rates})


@pytest.fixture(scope="module")
def alone(tiny_mnist: Dataset) -> list[Result]:
    """The runs of the first four members by themselves."""
    with jax.numpy_dtype_promotion("standard"):
        return [
            fit(MNIST.replace(learning_rate=rate), tiny_mnist, seed=seed)
            for rate in (0.02, 0.05)
            for seed in (0, 3)
        ]


@pytest.mark.loose_promotion
def test_members_are_bit_identical_to_single_runs(
    members: Members, alone: list[Result], tiny_mnist: Dataset
) -> None:
    result = ensemble.fit_many(MNIST, tiny_mnist, members, chunk=1, keep_states=True)
    for index, single in enumerate(alone):
        equal(of_member(index, result.states).params, single.state.params)
        assert result.correct[index] == single.test_correct
        for ours, theirs in (("train", "train"), ("eval", "test")):
            for name in ("loss", "accuracy"):
                expected = [getattr(record, f"{theirs}_{name}") for record in single.history]
                curve = result.history[f"{ours}_{name}"][:, index]
                np.testing.assert_array_equal(curve, np.float32(expected))
    assert result.total == 70
    assert not result.diverged_at.any()


@pytest.mark.loose_promotion
@pytest.mark.parametrize("chunk", [3, 5])
def test_members_that_run_at_once_differ_by_rounding(
    chunk: int, members: Members, alone: list[Result], tiny_mnist: Dataset
) -> None:
    result = ensemble.fit_many(MNIST, tiny_mnist, members, chunk=chunk, keep_states=True)
    trees = [parts(of_member(index, result.states)) for index in range(5)]
    bound = distance(trees[0], trees[4])  # what the nudge does
    for index, single in enumerate(alone):
        assert distance(trees[index], parts(single.state)) < bound
        for other in {0, 1, 2, 3} - {index}:
            assert distance(trees[index], trees[other]) > 10 * bound


@pytest.mark.loose_promotion
def test_members_with_batch_norm_differ_by_rounding(tiny_cifar10: Dataset) -> None:
    # The original's learning rate: at a larger one whatever differs grows from step to step.
    rate = 0.001
    recipe = CIFAR10.replace(learning_rate=rate)
    members = Members(np.array([1, 2, 2]), {"learning_rate": np.array([rate, rate, rate * NUDGE])})
    result = ensemble.fit_many(recipe, tiny_cifar10, members, chunk=3, keep_states=True)
    single = fit(recipe, tiny_cifar10, seed=2)
    trees = [parts(of_member(index, result.states)) for index in range(3)]
    bound = distance(trees[1], trees[2])
    assert distance(trees[1], parts(single.state)) < bound
    assert distance(trees[1], trees[0]) > 10 * bound


@pytest.mark.loose_promotion
def test_any_number_of_the_optimizer_can_vary(tiny_mnist: Dataset) -> None:
    recipe = MNIST.replace(optimizer="adam", epochs=1)
    members = grid([0], b1=[0.5, 0.95], weight_decay=[0.0, 1.0])
    result = ensemble.fit_many(recipe, tiny_mnist, members, chunk=4)
    losses = result.history["train_loss"][0]
    single = fit(recipe.replace(optimizer_args={"b1": 0.95}, weight_decay=1.0), tiny_mnist)
    off = np.abs(losses - single.history[0].train_loss)
    assert off[3] < 0.1 * off[:3].min()


@pytest.mark.loose_promotion
def test_as_many_members_run_at_once_as_fit_the_memory(
    members: Members, tiny_mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr("jaxcnn.train.ensemble_program._SAMPLE", 2)
    recipe, four = MNIST.replace(epochs=1), members.take(np.arange(4))

    def sizes(free: int) -> list[int]:
        monkeypatch.setattr("jaxcnn.train.ensemble_program._free_memory", lambda: free)
        return [len(result.members) for result in ensemble.fit_chunks(recipe, tiny_mnist, four)]

    assert sizes(2**30) == [4]
    assert 1 <= sizes(60 * 2**20)[0] < 4
    monkeypatch.setattr("jaxcnn.train.ensemble_program._free_memory", lambda: 20 * 2**20)
    with pytest.raises(UserError, match=r"a chunk of 4 members needs .* take a chunk of at most 1"):
        ensemble.fit_many(recipe, tiny_mnist, four, chunk=4)


@pytest.mark.loose_promotion
@pytest.mark.parametrize("chunk", [1, 2])
def test_an_ensemble_that_is_stopped_again_and_again_ends_with_the_same_bits(
    chunk: int, tiny_mnist: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.train.ensemble_program._PIECE", 3)  # an epoch has 7 steps
    members = grid([0, 3], learning_rate=[0.02, 1e30])  # one of the rates diverges
    options = {"chunk": chunk, "keep_states": True}
    straight = ensemble.fit_many(MNIST, tiny_mnist, members, **options)
    assert (straight.diverged_at > 0).tolist() == [False, False, True, True]
    policy = checkpoint.Policy(tmp_path, checkpoint.Every(5, "steps"))
    stops = 0
    while True:
        asked = itertools.count()
        try:
            result = ensemble.fit_many(
                MNIST,
                tiny_mnist,
                members,
                checkpoints=policy,
                interrupted=lambda asked=asked, most=3 + stops % 3: next(asked) > most,
                **options,
            )
        except StoppedError as error:
            # A stop before the first step of a chunk leaves nothing of it to save.
            assert re.search("saved in|stopped at step 0 of", str(error))
            stops += 1
        else:
            break
    assert stops >= 2
    same_ensemble(result, straight)
    # All is there: nothing is trained again.
    seen: list[int] = []
    again = ensemble.fit_many(
        MNIST, tiny_mnist, members, checkpoints=policy, report=seen.append, **options
    )
    same_ensemble(again, straight)
    assert seen == []
