import dataclasses
import hashlib
import inspect
import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.devices import environment
from jaxcnn.errors import DivergedError, StoppedError, UserError
from jaxcnn.networks.cnn import MnistCNN
from jaxcnn.networks.cpu import library
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.storage import checkpoint
from jaxcnn.storage.store import open_store
from jaxcnn.train import fit as train_fit
from jaxcnn.train import run_program, steps
from jaxcnn.train.evaluate import evaluate
from jaxcnn.train.identity import identity
from jaxcnn.train.result import EpochRecord, Observer, Result
from jaxcnn.train.run_monitor import checkpoint_tree
from jaxcnn.train.steps import Metrics
from tests import conformance


class SmallNetwork(nn.Module):
    """A network with batch statistics and dropout that compiles quickly.

    It is smooth: there is no relu or pool that rounding could turn the other way.
    """

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = images.mean((2, 3))  # of each row: the label is where the bright stripe is
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = nn.Dropout(0.1)(x, deterministic=not train)
        return nn.Dense(10)(x)


# What `fit` does is the same for every network: the quick tests train the small one, for six
# batches of 50 and one of 20 an epoch.
MODEL = SmallNetwork()
DATA = conformance.dataset()
RECIPE = conformance.RECIPE.replace(
    optimizer="sgd", epochs=2, batch_size=50, learning_rate=0.1, schedule="linear"
)


class Recorder(Observer):
    """Remembers what an observer is notified of."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.losses: list[float] = []
        self.rows: list[Mapping[str, Any]] = []
        self.resumed_at = 0

    def start(
        self, *, epochs: int, images: int, history: Sequence[EpochRecord] = (), step: int = 0
    ) -> None:
        self.resumed_at = step
        self.calls.append(("start", epochs, images, len(history)))

    def advance(self, *, images: int, metrics: Metrics) -> None:
        self.calls.append(("advance", images, int(metrics["count"])))
        self.losses.append(float(metrics["loss_sum"]))

    def log(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.rows += rows

    def epoch(self, record: EpochRecord) -> None:
        self.calls.append(("epoch", record.epoch))

    def stop(self) -> None:
        self.calls.append("stop")


def fit(recipe: Recipe = RECIPE, dataset: Dataset = DATA, **options: Any) -> Result:
    """Trains the small network."""
    return train_fit.fit(recipe, dataset, **{"model": MODEL, **options})


def timeless(result: Result) -> list[dict[str, object]]:
    """The history without its times."""
    times = ("seconds", "images_per_second")
    return [
        {k: v for k, v in record.asdict().items() if k not in times} for record in result.history
    ]


def equal(state: Any, other: Any) -> None:
    for one, two in zip(jax.tree.leaves(state), jax.tree.leaves(other), strict=True):
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, two = jax.random.key_data(one), jax.random.key_data(two)
        np.testing.assert_array_equal(one, two)


def same(result: Result, other: Result) -> None:
    """Asserts that two runs are bit-identical."""
    equal(result.state, other.state)
    assert timeless(result) == timeless(other)
    assert (result.test_correct, result.test_total) == (other.test_correct, other.test_total)


def stop_after(chunks: int) -> Callable[[], bool]:
    """Says yes once it has been polled more often than that."""
    polled = itertools.count()
    return lambda: next(polled) > chunks


@pytest.fixture(scope="module", autouse=True)
def _clock(small_chunks: None) -> Iterator[None]:
    """Between two looks at the clock a second passes; epochs are cut into small chunks."""
    with pytest.MonkeyPatch.context() as patch:
        clock = SimpleNamespace(perf_counter=itertools.count(0.0).__next__)
        patch.setattr("jaxcnn.train.loop.time", clock)
        patch.setattr("jaxcnn.train.run_program.time", clock)
        yield


@pytest.fixture
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the programs that a test's first run compiles, for those that go on with it."""
    compiled: list[Any] = []
    compile_train_chunks = run_program.compile_train_chunks

    def once(*args: Any) -> Any:
        if not compiled:
            compiled.append(compile_train_chunks(*args))
        return compiled[0]

    monkeypatch.setattr("jaxcnn.train.run_program.compile_train_chunks", once)


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture(scope="module")
def first(recorder: Recorder) -> Result:
    """A run without checkpoints."""
    return fit(observers=[recorder], feed="device")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, checkpoint.Policy]:
    """The same run with a checkpoint after every epoch, and where these are."""
    policy = checkpoint.Policy(tmp_path_factory.mktemp("saved"))
    return fit(checkpoints=policy), policy


def test_result(first: Result) -> None:
    assert [record.epoch for record in first.history] == [1, 2]
    assert [record.step for record in first.history] == [7, 14]  # 320 / 50, the rest too
    # Those of the epochs' last steps, on the way to zero.
    rates = [record.learning_rate for record in first.history]
    assert rates == pytest.approx([0.1 * 8 / 14, 0.1 * 1 / 14])
    assert first.test_total == 64
    assert first.test_accuracy == first.test_correct / first.test_total
    assert first.history[-1].test_accuracy == pytest.approx(first.test_accuracy)
    assert first.parameters == 346  # 2 * 28 of BatchNorm, and 28 * 10 + 10
    assert int(first.state.step) == 14
    assert (first.compile_seconds, first.train_seconds, first.eval_seconds) == (1, 2, 2)
    assert first.images_per_second == 320
    assert [(r.seconds, r.images_per_second) for r in first.history] == [(1, 320), (1, 320)]
    # From chance, log(10) = 2.3, to nearly no mistake: stripes are easy.
    assert first.history[0].train_loss > 1.0 > first.history[1].train_loss
    assert first.history[1].test_loss < 1.0
    assert first.history[1].train_accuracy > 0.5
    assert first.test_accuracy > 0.5


def test_observers(first: Result, recorder: Recorder) -> None:
    epoch = [
        ("advance", 100, 100),
        ("advance", 100, 200),  # the epoch's sums
        ("advance", 100, 300),
        ("advance", 20, 320),
    ]
    assert recorder.calls == [
        ("start", 2, 320, 0),
        *epoch,
        ("epoch", 1),
        *epoch,
        ("epoch", 2),
        "stop",
    ]


def test_the_same_seed_gives_the_same_bits_with_either_feed(first: Result) -> None:
    for name in ("params", "batch_stats", "opt_state"):
        assert jax.tree.leaves(getattr(first.state, name))
    same(fit(feed="stream"), first)


def own_optimizer(learning_rate: float) -> optax.GradientTransformation:
    """An optimizer with its rate in its state, so that one compiled program serves all rates."""
    return optax.inject_hyperparams(optax.sgd)(learning_rate=learning_rate)


def test_any_transformation_can_be_given() -> None:
    recipe = RECIPE.replace(epochs=1, batch_size=320)
    result = fit(recipe, tx=own_optimizer(0.05))
    assert result.history[0].learning_rate is None
    assert float(result.state.opt_state.hyperparams["learning_rate"]) == np.float32(0.05)
    # After the only step, whose update the training loss has not seen.
    with pytest.raises(
        DivergedError, match="at step 1: give the optimizer a smaller learning rate"
    ):
        fit(recipe, tx=own_optimizer(1e30))


def test_a_diverged_run_says_so() -> None:
    recorder = Recorder()
    recipe = RECIPE.replace(learning_rate=1e30, schedule="constant")
    with pytest.raises(
        DivergedError,
        match=r"at step 2, where the learning rate is 1e\+30: give --learning-rate .* than 1e\+30",
    ):
        fit(recipe, observers=[recorder])
    # Not at the end of the epoch: once the chunk after the one that went wrong has begun.
    names = [call if isinstance(call, str) else call[0] for call in recorder.calls]
    assert names == ["start", "advance", "stop"]


@pytest.mark.usefixtures("compiled_once")
def test_a_run_that_is_stopped_again_and_again_ends_with_the_same_bits(
    first: Result, tmp_path: Path
) -> None:
    said: list[str] = []
    policy = checkpoint.Policy(tmp_path, checkpoint.Every(0), keep=100, report=said.append)
    recorder = Recorder()
    # `fit` polls at the start, after each chunk, and once more before it stops: here before the
    # smaller batch, at the end of an epoch and in its middle.
    stops = [(2, "device", 6), (0, "stream", 7), (1, "device", 11)]
    for polls, name, step in stops:
        options = {"feed": name, "interrupted": stop_after(polls), "observers": [recorder]}
        with pytest.raises(StoppedError) as caught:
            fit(checkpoints=policy, **options)
        (found,) = checkpoint.list_checkpoints(tmp_path)[-1:]
        assert f"{caught.value}" == f"stopped at step {step} of 14, saved in {found.folder}"
        assert found.step == step
        progress = found.verify()["progress"]
        assert (progress["epoch_seconds"] > 0) == (step != 7)
    result = fit(checkpoints=policy, feed="stream", observers=[recorder])
    same(result, first)
    # Each epoch was trained in two parts.
    assert [record.seconds for record in result.history] == [2, 2]
    assert (result.compile_seconds, result.train_seconds, result.eval_seconds) == (4, 4, 2)
    folders = [tmp_path / f"step-{step:010d}" for _, _, step in stops]
    assert said == [f"resuming from {folder}" for folder in folders]
    starts = [call for call in recorder.calls if call[0] == "start"]
    assert starts == [("start", 2, 320, epochs) for epochs in (0, 0, 1, 1)]
    assert recorder.calls.count("stop") == 4
    # But for those, only the end is saved.
    assert [one.step for one in checkpoint.list_checkpoints(tmp_path)] == [6, 7, 11, 14]


def test_another_seed_differs_and_a_run_stopped_without_checkpoints_says_so(
    recorder: Recorder, first: Result, tmp_path: Path
) -> None:
    mine = Recorder()
    with pytest.raises(StoppedError, match="stopped at step 2 of 14, nothing saved"):
        fit(seed=1, interrupted=stop_after(0), observers=[mine])
    assert mine.calls == [("start", 2, 320, 0), ("advance", 100, 100), "stop"]
    assert mine.losses[0] != recorder.losses[0]
    with pytest.raises(StoppedError, match="stopped at step 0 of 14, nothing saved"):
        fit(checkpoints=checkpoint.Policy(tmp_path), interrupted=lambda: True)
    assert not checkpoint.list_checkpoints(tmp_path)


@pytest.mark.usefixtures("compiled_once")
def test_checkpoints_come_as_often_as_asked_and_change_nothing(
    first: Result, tmp_path: Path
) -> None:
    policy = checkpoint.Policy(tmp_path, checkpoint.Every(3, "steps"), keep=100)
    result = fit(checkpoints=policy)
    same(result, first)
    assert result.train_seconds == 6  # without saving, in the middle of an epoch too
    found = {one.step: one for one in checkpoint.list_checkpoints(tmp_path)}
    assert list(found) == [3, 6, 9, 12, 14]
    for step, one in found.items():
        assert len(one.verify()["progress"]["history"]) == step // 7
    # The run goes on from any of them to the same end; later checkpoints come anew.
    for step, every in ((3, checkpoint.Every(2)), (12, checkpoint.Every(5, "steps"))):
        folder = tmp_path / f"from-{step}"
        folder.mkdir()
        found[step].folder.rename(folder / found[step].folder.name)
        same(fit(checkpoints=dataclasses.replace(policy, folder=folder, every=every)), first)
        assert [one.step for one in checkpoint.list_checkpoints(folder)] == [step, 14]


def test_a_finished_run_is_read_and_not_trained_again(
    first: Result, saved: tuple[Result, checkpoint.Policy]
) -> None:
    result, policy = saved
    same(result, first)
    found = checkpoint.list_checkpoints(policy.folder)
    assert [one.step for one in found] == [7, 14]  # after every epoch is the default
    for one, record in zip(found, result.history, strict=True):
        content = one.verify()
        assert content["score"] == record.test_accuracy
        assert len(content["progress"]["history"]) == record.epoch
    said: list[str] = []
    recorder = Recorder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jaxcnn.devices.environment.device", lambda: "abacus")
        patch.setattr(library, "description", lambda: "slide rule")
        again = fit(
            checkpoints=dataclasses.replace(policy, report=said.append), observers=[recorder]
        )
    same(again, first)
    assert (again.compile_seconds, again.train_seconds, again.eval_seconds) == (2, 2, 2)
    assert recorder.calls == [("start", 2, 320, 2), "stop"]
    # On another device or with another version rounding may differ.
    assert said[0] == f"resuming from {found[-1].folder}"
    assert "may not be bit-identical" in said[1]
    assert f"device {environment.device()} then and abacus now" in said[1]
    assert "kernels native then and slide rule now" in said[1]
    assert len(said) == 2


@pytest.mark.loose_promotion  # optax's own arithmetic mixes dtypes
def test_a_run_that_has_ended_goes_on_with_more_epochs(tmp_path: Path) -> None:
    """Stopped once on its way; without a schedule it is the longer run, bit for bit."""
    short = RECIPE.replace(schedule="constant", optimizer="adam", ema=0.9)
    said: list[str] = []
    policy = checkpoint.Policy(tmp_path / "run", report=said.append)
    whole = checkpoint.Policy(tmp_path / "whole")
    result = fit(short.replace(epochs=4), checkpoints=whole)
    fit(short, checkpoints=policy)
    longer = short.replace(epochs=4)
    with pytest.raises(StoppedError, match="at step 20 of 28, saved in"):
        fit(longer, checkpoints=policy, interrupted=stop_after(2))
    line = (
        "going on to 4 epochs instead of 2: from step 14 on with the learning rates of a run of 4"
    )
    assert said[1:] == [line]
    recorder = Recorder()
    same(fit(longer, checkpoints=policy, observers=[recorder]), result)
    assert said[1:].count(line) == 1  # from then on it is a run of four epochs
    assert recorder.calls[0] == ("start", 4, 320, 2)
    last = [
        checkpoint.list_checkpoints(one.folder)[-1].verify()["files"] for one in (policy, whole)
    ]
    assert last[0] == last[1]
    with pytest.raises(UserError, match="epochs 4 there and 2 here"):
        fit(short, checkpoints=policy)


def test_the_schedule_is_that_of_the_longer_run(
    saved: tuple[Result, checkpoint.Policy], tmp_path: Path
) -> None:
    first, policy = saved
    shutil.copytree(policy.folder, tmp_path / "run")
    result = fit(RECIPE.replace(epochs=3), checkpoints=checkpoint.Policy(tmp_path / "run"))
    assert timeless(result)[:2] == timeless(first)
    rates = [record.learning_rate for record in result.history]
    assert rates == pytest.approx([0.1 * 8 / 14, 0.1 * 1 / 14, 0.1 * 1 / 21])


def test_another_run_is_not_gone_on_with(
    saved: tuple[Result, checkpoint.Policy],
) -> None:
    class OtherNetwork(SmallNetwork):
        pass

    _, policy = saved
    images = DATA.train.images.copy()
    images[5, 5, 5] ^= 1
    labels = DATA.test.labels.copy()
    labels[5] ^= 1
    altered = dataclasses.replace(DATA, train=Split(images, DATA.train.labels))
    relabelled = dataclasses.replace(DATA, test=Split(DATA.test.images, labels))
    half = MnistCNN(dtype=jnp.bfloat16)
    for change, difference in (
        ({"recipe": RECIPE.replace(epochs=1)}, "epochs 2 there and 1 here"),
        ({"recipe": RECIPE.replace(optimizer="adam")}, "optimizer sgd there and adam here"),
        ({"recipe": RECIPE.replace(dropout=0.5)}, "dropout 0.1 there and 0.5 here"),
        ({"dataset": altered}, "dataset_checksum"),
        ({"dataset": relabelled}, "dataset_checksum"),
        ({"dataset": dataclasses.replace(DATA, name="other")}, "dataset stripes|dataset mnist"),
        ({"dataset": dataclasses.replace(DATA, version="2")}, "dataset_version stripes there"),
        ({"model": OtherNetwork()}, "model SmallNetwork there and .*OtherNetwork here"),
        ({"model": half}, "dtype float32 there and bfloat16 here"),
        ({"seed": 1}, "seed 0 there and 1 here"),
        ({"seed": np.int64(1)}, "seed 0 there and 1 here"),
        ({"model": SmallNetwork(name="x")}, r"model_fields .*None.* there and .*x.* here"),
        ({"tx": optax.sgd(0.1)}, "own_tx False there and [0-9a-f]{64} here"),
    ):
        with pytest.raises(UserError, match=difference):
            fit(**change, checkpoints=policy)


def test_the_same_run_by_another_type(saved: tuple[Result, checkpoint.Policy]) -> None:
    first, policy = saved
    for seed in (np.int64(0), np.uint8(0), jnp.int32(0), np.array(0)):
        same(fit(seed=seed, checkpoints=policy), first)


def test_an_optimizer_of_ones_own_is_told_by_its_hyperparameters(tmp_path: Path) -> None:
    policy = checkpoint.Policy(tmp_path)
    first = fit(tx=optax.sgd(0.1), checkpoints=policy)
    same(fit(tx=optax.sgd(0.1), checkpoints=policy), first)
    for other in (optax.sgd(0.2), optax.sgd(0.1, momentum=0.5), optax.adam(0.1)):
        with pytest.raises(UserError, match=r"own_tx [0-9a-f]{64} there and [0-9a-f]{64} here"):
            fit(tx=other, checkpoints=policy)


def test_a_checkpoint_that_does_not_say_how_far_it_is(
    saved: tuple[Result, checkpoint.Policy], tmp_path: Path
) -> None:
    result, _ = saved
    run = identity(RECIPE, DATA, model=MODEL)
    tree = checkpoint_tree(result.state, steps.zero_train_metrics())
    policy = checkpoint.Policy(tmp_path)
    with open_store(policy, run) as store:
        store.save(14, tree, {"history": [{"epoch": 1}]})
    with pytest.raises(UserError, match="does not say how far its run had come"):
        fit(checkpoints=policy)


def sized(dataset: Dataset, train: int, test: int) -> Dataset:
    """A part of a data set."""

    def take(split: Split, size: int) -> Split:
        return Split(split.images[:size], split.labels[:size])

    return dataclasses.replace(
        dataset, train=take(dataset.train, train), test=take(dataset.test, test)
    )


def test_one_image_is_enough() -> None:
    result = fit(RECIPE.replace(batch_size=1), sized(DATA, 1, 1))
    assert [record.step for record in result.history] == [1, 2]
    assert result.test_total == 1
    assert all(np.isfinite(record.train_loss) for record in result.history)


def test_the_code_of_one_s_own_optimizer_is_part_of_what_a_run_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "jaxcnn.recipes.optimizer_defaults.is_trusted", lambda name: name == "optax:adam"
    )
    recipe = RECIPE.replace(optimizer="optax:adam")
    code = Path(inspect.getfile(optax.adam)).read_bytes()
    run = identity(recipe, DATA, model=MODEL)
    assert run["optimizer_code"] == hashlib.sha256(code).hexdigest()
    assert "optimizer_code" not in identity(recipe, DATA, model=MODEL, own_tx=optax.sgd(0.1))
    assert "optimizer_code" not in identity(RECIPE, DATA, model=MODEL)


def test_evaluate(first: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxcnn.train.setup.make_model", lambda *_: MODEL)
    monkeypatch.setattr(
        "jaxcnn.train.evaluate.make_views", lambda network: lambda images: images[None]
    )
    # The average over one view, the image itself, differs by rounding.
    for tta in (False, True):
        correct, total, loss = evaluate(RECIPE, first.state.variables, DATA.test, tta=tta)
        assert (correct, total) == (first.test_correct, first.test_total)
        # Logits of about 5 are rounded by 3e-7 a few times.
        assert loss == pytest.approx(first.history[-1].test_loss, abs=1e-5)


def test_records_are_plain_values(first: Result) -> None:
    record = first.history[0]
    assert {type(value) for value in record.asdict().values()} <= {int, float}
    fields = {field.name for field in dataclasses.fields(EpochRecord)}
    assert set(record.asdict()) == fields - {"metrics"}
    assert set(dataclasses.replace(record, metrics={"own": None}).asdict()) == (
        fields - {"metrics"} | {"own"}
    )


def test_a_step_at_a_time_and_in_chunks(first: Result, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, whatever `slow_in_loops` says of the network."""
    made: list[str] = []

    def watched(name: str) -> Callable[..., Any]:
        make = getattr(steps, name)

        def made_by(*args: Any) -> Any:
            made.append(name)
            return make(*args)

        return made_by

    for name in ("make_train_single", "make_train_chunk"):
        monkeypatch.setattr(steps, name, watched(name))
    same(fit(), first)
    assert made == ["make_train_chunk"]
    monkeypatch.setattr("jaxcnn.train.fit.slow_in_loops", lambda *_: True)
    single = fit()
    assert made == ["make_train_chunk", "make_train_single"]
    # Smooth: sums of 50 terms, each rounded by 6e-8, for 14 steps.
    for one, other in zip(
        jax.tree.leaves(single.state.params), jax.tree.leaves(first.state.params), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert [r.step for r in single.history] == [r.step for r in first.history]


def test_a_feed_that_is_none() -> None:
    with pytest.raises(UserError, match="feed takes auto, device, stream, got 'gpu'"):
        fit(feed="gpu")


def test_settings_of_jax_are_a_part_of_the_run(
    saved: tuple[Result, checkpoint.Policy],
) -> None:
    """They change the numbers that are drawn, or those that come of them."""
    _, policy = saved
    for name, value in (
        ("jax_threefry_partitionable", False),
        ("jax_default_prng_impl", "rbg"),
        ("jax_default_matmul_precision", "bfloat16"),
    ):
        before = getattr(jax.config, name)
        jax.config.update(name, value)
        try:
            with pytest.raises(UserError, match=f"{name} None there and {value} here"):
                fit(checkpoints=policy)
        finally:
            jax.config.update(name, before)
    with jax.enable_x64(True), pytest.raises(UserError, match="jax_enable_x64 None there and True"):
        fit(checkpoints=policy)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"observers": print}, "put this one into"),
        ({"observers": Recorder()}, "put this one into"),
        ({"checkpoints": "runs"}, "checkpoints takes a policy, got str"),
        ({"start": "runs"}, "start takes variables, got str"),
        ({"model": MnistCNN}, "model is the class MnistCNN: give an instance"),
        ({"model": print}, "give an instance of a Flax Linen module"),
        ({"schedule": lambda step: 0.1 if step > 3 else 0.01}, "the schedule cannot be traced"),
    ],
)
def test_slips_in_the_arguments_are_a_sentence(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        fit(**options)
    assert "\n" not in str(caught.value)
