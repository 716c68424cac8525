import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import optax
import pytest

from jaxcnn.errors import StoppedError, UserError
from jaxcnn.optim.factory import make_optimizer
from jaxcnn.storage import checkpoint
from jaxcnn.train import ensemble
from jaxcnn.train.members import Members, grid
from jaxcnn.train.result import Result
from tests.linear import Linear
from tests.train.test_fit import DATA, MODEL, RECIPE, equal, sized
from tests.train.test_fit import fit as fit_alone

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

# Most tests take five batches of 64 an epoch, four members, and one or three of these at once: so
# that all of them share the same compiled programs.
EVEN = RECIPE.replace(batch_size=64, weight_decay=0.01)
# A rate that is off by a thousandth changes a run by more than rounding does. Each of its updates
# is off by 1e-3 then; by rounding it would be by 6e-8 for each of the few hundred terms of the sums
# in it, at the worst.
NUDGE = np.float32(1.001)
MEMBERS = Members(
    np.array([0, 3, 0, 0]),
    {
        "learning_rate": np.array([0.1, 0.1, 0.02, 0.1 * NUDGE]),
        "momentum": np.array([0.9, 0.9, 0.6, 0.9]),
        "weight_decay": np.array([0.01, 0.01, 0.2, 0.01]),
    },
)


def fit(members: Members = MEMBERS, recipe: Any = EVEN, **options: Any) -> ensemble.ManyResult:
    """Trains an ensemble of small networks."""
    return ensemble.fit_many(recipe, DATA, members, **{"model": MODEL, **options})


def of_member(index: int, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[index], tree)


def parts(state: Any) -> list[Any]:
    return [state.params, state.batch_stats, state.opt_state]


def distance(tree: Any, other: Any) -> float:
    """The largest difference of two numbers."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def same(result: ensemble.ManyResult, other: ensemble.ManyResult) -> None:
    """Asserts that two ensembles are bit-identical."""
    for name, curve in result.history.items():
        np.testing.assert_array_equal(curve, other.history[name])
    np.testing.assert_array_equal(result.correct, other.correct)
    np.testing.assert_array_equal(result.diverged_at, other.diverged_at)
    assert result.total == other.total
    equal(result.states, other.states)


def check_history(result: ensemble.ManyResult, index: int, single: Result) -> None:
    """Asserts that the curves of a member are those of its run alone, in float32."""
    for ours, theirs in (
        ("train_loss", "train_loss"),
        ("train_accuracy", "train_accuracy"),
        ("eval_loss", "test_loss"),
        ("eval_accuracy", "test_accuracy"),
    ):
        expected = [getattr(record, theirs) for record in single.history]
        np.testing.assert_array_equal(result.history[ours][:, index], np.float32(expected))


@pytest.fixture(scope="module")
def one_by_one() -> ensemble.ManyResult:
    """The members one after the other."""
    with jax.numpy_dtype_promotion("standard"):
        return fit(chunk=1, keep_states=True)


@pytest.fixture(scope="module")
def alone() -> list[Result]:
    """The runs of the first three members by themselves."""
    other = EVEN.replace(learning_rate=0.02, momentum=0.6, weight_decay=0.2)
    with jax.numpy_dtype_promotion("standard"):
        return [fit_alone(EVEN), fit_alone(EVEN, seed=3), fit_alone(other)]


def test_members_are_bit_identical_to_single_runs(
    one_by_one: ensemble.ManyResult, alone: list[Result]
) -> None:
    for index, single in enumerate(alone):
        equal(of_member(index, one_by_one.states), single.state)
        assert one_by_one.correct[index] == single.test_correct
        check_history(one_by_one, index, single)
    assert one_by_one.total == 64
    assert one_by_one.diverged_at.tolist() == [0, 0, 0, 0]
    assert one_by_one.members is MEMBERS


def test_a_loss_of_one_s_own() -> None:
    def doubled(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return 2 * optax.softmax_cross_entropy_with_integer_labels(logits, labels)

    members = grid([0, 3])
    result = fit(members, model=Linear(), loss=doubled, chunk=1, keep_states=True)
    for index, seed in enumerate((0, 3)):
        single = fit_alone(EVEN, model=Linear(), loss=doubled, seed=seed)
        equal(of_member(index, result.states), single.state)
        check_history(result, index, single)


def test_members_that_run_at_once_differ_by_rounding(alone: list[Result]) -> None:
    result = fit(chunk=3, keep_states=True)
    assert result.history["train_loss"].shape == (2, 4)
    trees = [parts(of_member(index, result.states)) for index in range(4)]
    bound = distance(trees[0], trees[3])  # what the nudge does
    for index, single in enumerate(alone):
        assert distance(trees[index], parts(single.state)) < bound
        for other in {0, 1, 2} - {index}:
            assert distance(trees[index], trees[other]) > 10 * bound
        for ours, theirs in (("train_loss", "train_loss"), ("eval_loss", "test_loss")):
            expected = [getattr(record, theirs) for record in single.history]
            np.testing.assert_allclose(result.history[ours][:, index], expected, atol=bound)


@pytest.mark.usefixtures("compiled_once")
def test_a_smaller_last_batch_and_a_run_that_is_stopped_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.train.ensemble_program._PIECE", 2)  # an epoch has 7 steps
    members = grid([0, 3])
    policy = checkpoint.Policy(tmp_path, checkpoint.Every(3, "steps"), keep=100)
    folders = [tmp_path / "members-000000", tmp_path / "members-000001"]
    options = {"recipe": RECIPE, "chunk": 1, "keep_states": True, "checkpoints": policy}
    # A member's run is polled at its start and its steps 2, 3, 5, 6, 7, 9, 11, 12 and 14. It stops
    # before the smaller batch, and with the second member at the end of an epoch.
    for polls, member, step in ((4, 0, 6), (11, 1, 7)):
        polled = itertools.count()
        with pytest.raises(StoppedError) as caught:
            fit(members, interrupted=lambda now=polled, most=polls: next(now) >= most, **options)
        found = checkpoint.list_checkpoints(folders[member])[-1]
        assert f"{caught.value}" == f"stopped at step {step} of 14, saved in {found.folder}"
        assert found.step == step
    images: list[int] = []
    result = fit(members, report=images.append, **options)
    assert images == [100, 100, 50, 50 + 20]  # the second epoch of the second member
    assert [[one.step for one in checkpoint.list_checkpoints(folder)] for folder in folders] == [
        [3, 6, 9, 12, 14],
        [3, 6, 7, 9, 12, 14],
    ]
    for index, seed in enumerate([0, 3]):
        single = fit_alone(seed=seed)
        equal(of_member(index, result.states), single.state)
        check_history(result, index, single)
    # All is there: nothing is trained again.
    images.clear()
    same(fit(members, report=images.append, **options), result)
    assert images == []


@pytest.mark.usefixtures("compiled_once")
def test_another_ensemble_is_not_gone_on_with(tmp_path: Path) -> None:
    policy = checkpoint.Policy(tmp_path)
    polls = itertools.count()
    with pytest.raises(StoppedError, match="stopped at step 5 of 10, saved"):
        fit(chunk=3, checkpoints=policy, interrupted=lambda: next(polls) == 1)
    other = MEMBERS.take([1, 0, 2])
    faster = dict(MEMBERS.hyperparameters, learning_rate=np.full(4, 0.3))
    for members, options, named in (
        (other, {}, r"seed \[0, 3, 0\] there and \[3, 0, 0\] here"),
        (Members(MEMBERS.seeds, faster), {}, "hyperparameters"),
        (MEMBERS, {"evaluate_on": DATA.train}, "evaluate_on"),
        (MEMBERS, {"evaluate_once": True}, "evaluate_once False there and True here"),
    ):
        with pytest.raises(UserError, match=named):
            fit(members, **{"chunk": 3, "checkpoints": policy, **options})


@pytest.mark.parametrize("chunk", [1, 3])
def test_only_the_member_that_diverges_is_marked(
    chunk: int, one_by_one: ensemble.ManyResult
) -> None:
    members = MEMBERS.take([0, 0, 0])
    members.hyperparameters["learning_rate"][1] = 1e30
    result = fit(members, chunk=chunk)
    assert result.diverged_at.tolist() == [0, 2, 0]
    for name, curve in result.history.items():
        assert np.isnan(curve[:, 1]).all()
        assert np.isfinite(curve[:, [0, 2]]).all()
        if name.endswith("loss"):
            # Losses below log(10), which rounding changes by less than the nudge does, see above.
            expected = one_by_one.history[name][:, [0, 0]]
            np.testing.assert_allclose(curve[:, [0, 2]], expected, atol=1e-3)
    assert result.states is None


def test_optimizers_of_one_s_own(one_by_one: ensemble.ManyResult) -> None:
    # A function of the hyperparameters: here it makes what the recipe would.
    made = fit(
        chunk=1,
        keep_states=True,
        tx=lambda values: make_optimizer(EVEN, 10, hyperparameters=values),
    )
    same(made, one_by_one)
    # One with its hyperparameters in its state. The step is the only one: what the second rate
    # spoils no training loss has seen.
    recipe = EVEN.replace(epochs=1, batch_size=320)
    members = grid([0], learning_rate=[0.05, 1e30])
    injected = optax.inject_hyperparams(optax.sgd)(learning_rate=0.0)
    result = fit(members, recipe, tx=injected, keep_states=True)
    assert result.diverged_at.tolist() == [0, 1]
    assert np.isnan(result.history["eval_loss"][0]).tolist() == [False, True]
    tx = optax.inject_hyperparams(optax.sgd)(learning_rate=0.05)
    single = fit_alone(recipe, tx=tx)
    mine = of_member(0, result.states)
    equal(mine.opt_state.hyperparams, single.state.opt_state.hyperparams)
    # Sums of at most 320 * 28 products, 6e-8 each, times the rate.
    assert distance(mine.params, single.state.params) < 1e-3 * 0.05
    with pytest.raises(UserError, match=r"not keep learning_rate in its .*inject_hyperparams"):
        fit(members, recipe, tx=optax.sgd(0.1))


def test_scored_once_and_on_another_split() -> None:
    images: list[int] = []
    options = {"evaluate_on": DATA.train, "evaluate_once": True, "report": images.append}
    result = fit(chunk=3, **options)
    assert result.total == 320
    assert np.isnan(result.history["eval_loss"][0]).all()
    assert np.isfinite(result.history["eval_loss"][1]).all()
    np.testing.assert_allclose(result.history["eval_accuracy"][1], result.correct / 320, rtol=1e-6)
    assert images == [3 * 320, 3 * 320, 320, 320]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """The bytes that are free, and those that every program needs beside the states."""
    sizes = {"free": 2**40, "program": 0}
    monkeypatch.setattr("jaxcnn.train.ensemble_program._free_memory", lambda: sizes["free"])
    monkeypatch.setattr(
        jax.stages.Compiled,
        "memory_analysis",
        lambda program: SimpleNamespace(temp_size_in_bytes=sizes["program"]),
    )
    return sizes


def test_a_chunk_that_is_too_large_says_so(memory: dict[str, int]) -> None:
    gib = 2**30
    memory.update(program=3 * gib, free=gib // 10)
    said = r"a chunk of 3 members needs 3\.0 GiB .* has 0\.1 GiB free: take a chunk of at most 1"
    with pytest.raises(UserError, match=said):
        fit(chunk=3)
    memory.update(free=3 * gib - gib // 10)  # less a margin of a fifth
    with pytest.raises(UserError, match="at most 2"):
        fit(chunk=3)


def test_elsewhere_as_many_run_at_once_as_fit(
    memory: dict[str, int], one_by_one: ensemble.ManyResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr("jaxcnn.train.ensemble_program._SAMPLE", 1)
    leaves = jax.tree.leaves(one_by_one.states)
    member = sum(4 * leaf[0].size for leaf in leaves)  # bytes of its state
    members = MEMBERS.take([0, 1, 2])

    def sizes(free: float) -> list[int]:
        memory["free"] = int(free * member)
        return [
            len(result.members) for result in ensemble.fit_chunks(EVEN, DATA, members, model=MODEL)
        ]

    assert sizes(4.0) == [3]  # a fifth of the memory is left free
    assert sizes(2.2) == [1, 1, 1]


def test_mistakes() -> None:
    with pytest.raises(UserError, match="batch_size 321 is larger than the 320"):
        fit(recipe=RECIPE.replace(batch_size=321))
    with pytest.raises(UserError, match="without members"):
        fit(Members(np.array([], int)))
    with pytest.raises(UserError, match="chunk takes a whole number from 1"):
        fit(chunk=0)


def test_one_image_is_enough() -> None:
    recipe = RECIPE.replace(epochs=1, batch_size=1)
    result = ensemble.fit_many(recipe, sized(DATA, 1, 1), grid([0]), model=Linear())
    assert result.total == 1
    assert all(np.isfinite(curve).all() for curve in result.history.values())


@pytest.mark.parametrize("asked", ["checkpoints", "keep_states"])
def test_states_are_not_to_be_had_of_several_processes(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.devices.processes.count", lambda: 2)
    options = {"checkpoints": checkpoint.Policy(tmp_path), "keep_states": True}
    with pytest.raises(UserError, match="take one process for checkpoints and keep_states"):
        fit(**{asked: options[asked]})
