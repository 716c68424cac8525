import dataclasses
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn import checkpoint, ensemble, recipes, training
from jaxcnn.data import Dataset
from jaxcnn.errors import StoppedError, UserError
from jaxcnn.training import fit
from tests.test_training import equal

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

MNIST = recipes.get("mnist", "fast").replace(epochs=2, batch_size=50, optimizer="sgd")
MEMBERS = ensemble.grid([0, 3], learning_rate=[0.02, 0.05])


@pytest.fixture(scope="module")
def alone(tiny_mnist: Dataset) -> list[training.Result]:
    """The members' runs by themselves."""
    rates = MEMBERS.hyperparameters["learning_rate"]
    return [
        fit(MNIST.replace(learning_rate=float(rate)), tiny_mnist, seed=int(seed))
        for seed, rate in zip(MEMBERS.seeds, rates, strict=True)
    ]


def test_grid() -> None:
    members = ensemble.grid([5, 6], learning_rate=[0.1, 0.2], b1=[0.9])
    assert members.seeds.tolist() == [5, 6, 5, 6]
    np.testing.assert_allclose(members.hyperparameters["learning_rate"], [0.1, 0.1, 0.2, 0.2])
    np.testing.assert_allclose(members.hyperparameters["b1"], 0.9)
    assert ensemble.grid([1, 2]).seeds.tolist() == [1, 2]
    with pytest.raises(ValueError, match="b1 has shape"):
        ensemble.Members(np.arange(2), {"b1": np.arange(3)})


def test_members_are_the_single_runs_to_the_last_bit(
    alone: list[training.Result], tiny_mnist: Dataset
) -> None:
    result = ensemble.fit(MNIST, tiny_mnist, MEMBERS, chunk=1, keep_states=True)
    for index, single in enumerate(alone):
        mine = jax.tree.map(lambda leaf, i=index: leaf[i], result.states.params)
        jax.tree.map(np.testing.assert_array_equal, mine, single.state.params)
        assert result.correct[index] == single.test_correct
        for name in ("train_loss", "train_accuracy"):
            expected = [getattr(record, name) for record in single.history]
            np.testing.assert_allclose(result.history[name][:, index], expected, rtol=1e-6)
        for name in ("loss", "accuracy"):
            expected = [getattr(record, f"test_{name}") for record in single.history]
            np.testing.assert_allclose(
                result.history[f"eval_{name}"][:, index], expected, rtol=1e-6
            )
    assert result.total == 70
    assert result.diverged_at.tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("chunk", [3, 4])
def test_members_that_run_at_once_differ_by_rounding(
    chunk: int, alone: list[training.Result], tiny_mnist: Dataset
) -> None:
    result = ensemble.fit(MNIST, tiny_mnist, MEMBERS, chunk=chunk, keep_states=True)
    for index, single in enumerate(alone):
        mine = jax.tree.map(lambda leaf, i=index: leaf[i], result.states.params)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), mine, single.state.params
        )


def test_networks_with_batch_norm(tiny_cifar10: Dataset) -> None:
    recipe = recipes.get("cifar10", "fast").replace(epochs=1, batch_size=16, optimizer="sgd")
    members = ensemble.grid([1, 2])
    result = ensemble.fit(recipe, tiny_cifar10, members, chunk=2, keep_states=True)
    single = fit(recipe, tiny_cifar10, seed=2)
    for name in ("params", "batch_stats"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a[1], b, atol=2e-4),
            getattr(result.states, name),
            getattr(single.state, name),
        )


def test_only_the_member_that_diverges_is_marked(tiny_mnist: Dataset) -> None:
    members = ensemble.grid([0], learning_rate=[0.02, 1e30])
    for chunk in (1, 2):
        result = ensemble.fit(MNIST, tiny_mnist, members, chunk=chunk)
        assert result.diverged_at[0] == 0
        assert 1 < result.diverged_at[1] <= 7
        assert np.isfinite(result.history["train_loss"][:, 0]).all()
        assert np.isnan(result.history["train_loss"][:, 1]).all()
        assert np.isnan(result.history["eval_accuracy"][:, 1]).all()


def test_any_number_of_the_optimizer_can_vary(tiny_mnist: Dataset) -> None:
    recipe = MNIST.replace(optimizer="adam", epochs=1)
    members = ensemble.grid([0], b1=[0.5, 0.95], weight_decay=[0.0, 1.0])
    result = ensemble.fit(recipe, tiny_mnist, members, chunk=4)
    assert len(set(result.history["train_loss"][0].tolist())) == 4
    single = fit(recipe.replace(optimizer_args={"b1": 0.95}, weight_decay=1.0), tiny_mnist)
    assert result.history["train_loss"][0, 3] == pytest.approx(
        single.history[0].train_loss, rel=1e-4
    )


def test_optimizers_of_one_s_own(tiny_mnist: Dataset) -> None:
    recipe = MNIST.replace(epochs=1)
    members = ensemble.grid([0], learning_rate=[0.01, 0.05])
    injected = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    one = ensemble.fit(recipe, tiny_mnist, members, tx=injected, chunk=2)
    other = ensemble.fit(
        recipe, tiny_mnist, members, tx=lambda values: optax.sgd(values["learning_rate"]), chunk=2
    )
    for index, rate in enumerate((0.01, 0.05)):
        single = fit(recipe, tiny_mnist, tx=optax.sgd(rate)).history[0].train_loss
        assert one.history["train_loss"][0, index] == pytest.approx(single, rel=1e-4)
        assert other.history["train_loss"][0, index] == pytest.approx(single, rel=1e-4)
    with pytest.raises(UserError, match=r"does not keep .*inject_hyperparams"):
        ensemble.fit(recipe, tiny_mnist, members, tx=optax.sgd(0.1))


def test_scored_once_and_on_another_split(tiny_mnist: Dataset) -> None:
    images: list[int] = []
    options = {"evaluate_on": tiny_mnist.train, "evaluate_once": True, "report": images.append}
    result = ensemble.fit(MNIST, tiny_mnist, ensemble.grid([0, 1, 2]), chunk=2, **options)
    assert result.total == 330
    assert np.isnan(result.history["eval_loss"][0]).all()
    assert np.isfinite(result.history["eval_loss"][1]).all()
    assert images == [660, 660, 330, 330]


def test_a_chunk_that_is_too_large_says_so(
    tiny_mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensemble, "_free_memory", lambda: 20 * 2**20)
    with pytest.raises(UserError, match=r"a chunk of 4 members needs .* take a chunk of at most 1"):
        ensemble.fit(MNIST, tiny_mnist, MEMBERS, chunk=4)


def test_elsewhere_as_many_run_at_once_as_fit(
    tiny_mnist: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    for_each = ensemble._for_each
    monkeypatch.setattr(
        ensemble, "_for_each", lambda f, n, *rest: sizes.append(n) or for_each(f, n, *rest)
    )
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(ensemble, "_SAMPLE", 2)
    monkeypatch.setattr(ensemble, "_free_memory", lambda: 2**30)
    recipe = MNIST.replace(epochs=1)
    ensemble.fit(recipe, tiny_mnist, MEMBERS)
    assert sizes[-1] == 4
    monkeypatch.setattr(ensemble, "_free_memory", lambda: 60 * 2**20)
    ensemble.fit(recipe, tiny_mnist, MEMBERS)
    assert 1 <= sizes[-1] < 4


def assert_same(result: ensemble.Result, other: ensemble.Result) -> None:
    for name, curve in result.history.items():
        np.testing.assert_array_equal(curve, other.history[name])
    np.testing.assert_array_equal(result.correct, other.correct)
    np.testing.assert_array_equal(result.diverged_at, other.diverged_at)
    assert result.total == other.total
    equal(result.states, other.states)


@pytest.mark.parametrize("chunk", [1, 2])
def test_an_ensemble_that_is_stopped_again_and_again_ends_with_the_same_bits(
    chunk: int, tiny_mnist: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ensemble, "_PIECE", 3)  # an epoch has 7 steps
    members = ensemble.grid([0, 3], learning_rate=[0.02, 1e30])  # one of the rates diverges
    options = {"chunk": chunk, "keep_states": True}
    straight = ensemble.fit(MNIST, tiny_mnist, members, **options)
    assert (straight.diverged_at > 0).tolist() == [False, False, True, True]
    policy = checkpoint.Policy(tmp_path, checkpoint.Every(5, "steps"))
    stops = 0
    while True:
        asked = itertools.count()
        try:
            result = ensemble.fit(
                MNIST,
                tiny_mnist,
                members,
                checkpoints=policy,
                interrupted=lambda asked=asked, most=3 + stops % 3: next(asked) > most,
                **options,
            )
        except StoppedError as error:
            assert "saved in" in str(error)
            stops += 1
        else:
            break
    assert stops >= 2
    assert_same(result, straight)
    # All is there: nothing is trained again.
    seen: list[int] = []
    again = ensemble.fit(
        MNIST, tiny_mnist, members, checkpoints=policy, report=seen.append, **options
    )
    assert_same(again, straight)
    assert seen == []


def test_another_ensemble_is_not_gone_on_with(tiny_mnist: Dataset, tmp_path: Path) -> None:
    recipe, policy = MNIST.replace(epochs=1), checkpoint.Policy(tmp_path)
    ensemble.fit(recipe, tiny_mnist, ensemble.grid([0]), checkpoints=policy)
    for options, named in (
        ({"members": ensemble.grid([1])}, r"seed \[0\] there and \[1\] here"),
        ({"members": ensemble.grid([0], momentum=[0.5])}, "hyperparameters"),
        ({"evaluate_on": tiny_mnist.train}, "evaluate_on"),
        ({"evaluate_once": True}, "evaluate_once False there and True here"),
    ):
        with pytest.raises(UserError, match=named):
            ensemble.fit(
                recipe.replace(optimizer="sgd"),
                tiny_mnist,
                **{"members": ensemble.grid([0]), "checkpoints": policy, **options},
            )


def test_mistakes(tiny_mnist: Dataset) -> None:
    with pytest.raises(UserError, match="batch_size 331 is larger than the 330"):
        ensemble.fit(MNIST.replace(batch_size=331), tiny_mnist, MEMBERS)
    with pytest.raises(UserError, match="without members"):
        ensemble.fit(MNIST, tiny_mnist, ensemble.Members(np.array([], int)))
    with pytest.raises(UserError, match="chunk takes a whole number from 1"):
        ensemble.fit(MNIST, tiny_mnist, MEMBERS, chunk=0)


def test_seeds_of_all_32_bits(tiny_mnist: Dataset) -> None:
    recipe = dataclasses.replace(MNIST, epochs=1)
    seed = 2**32 - 1
    result = ensemble.fit(recipe, tiny_mnist, ensemble.Members(np.array([seed])))
    single = fit(recipe, tiny_mnist, seed=seed)
    assert jnp.float32(single.history[0].train_loss) == result.history["train_loss"][0, 0]
