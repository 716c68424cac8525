"""`fit`: epochs of training with an evaluation after each."""

import contextlib
import dataclasses
import functools
import operator
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn import (
    checkpoint,
    demands,
    document,
    environment,
    fingerprint,
    optimizers,
    processes,
    schedules,
    state,
    steps,
)
from jaxcnn.data.augment import make_augment, make_normalize
from jaxcnn.data.dataset import CLASSES, Dataset, FeedName, Split, checked
from jaxcnn.data.feed import make_feed
from jaxcnn.data.views import make_views
from jaxcnn.errors import DivergedError, StoppedError, UserError
from jaxcnn.models import Cifar10CNN, MnistCNN, count_parameters
from jaxcnn.parallel import ONE_DEVICE, Placement
from jaxcnn.recipes import Recipe

# Evaluation is fastest on CPU while a batch fits the caches; its result does not depend on this.
EVAL_BATCH_SIZE = 100


@dataclass(frozen=True)
class EpochRecord:
    """What is known after an epoch. Losses are mean cross entropies in nats.

    Attributes:
        epoch: counted from 1.
        step: optimizer steps taken since the start.
        learning_rate: of the last step; None if the optimizer was given from outside.
        train_loss: mean over the epoch, in training mode (with dropout and augmentation).
        train_accuracy: right answers in 0..1, likewise.
        test_loss: in evaluation mode, over the whole test split.
        test_accuracy: in 0..1, likewise.
        seconds: spent on training in this epoch, without evaluation.
        images_per_second: trained on in those seconds.
    """

    epoch: int
    step: int
    learning_rate: float | None
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    seconds: float
    images_per_second: float

    def asdict(self) -> dict[str, Any]:
        """Returns the record as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Result:
    """What a training run leaves.

    Attributes:
        state: at the end.
        history: a record for each epoch.
        test_correct: right answers on the test split, after the last epoch.
        test_total: pictures in it.
        parameters: of the network.
        train_seconds: of all epochs, without compilation and evaluation.
        eval_seconds: of all evaluations.
        compile_seconds: of compiling every program of the run.
        images_per_second: trained on in `train_seconds`.
    """

    state: state.TrainState
    history: tuple[EpochRecord, ...]
    test_correct: int
    test_total: int
    parameters: int
    train_seconds: float
    eval_seconds: float
    compile_seconds: float
    images_per_second: float

    @property
    def test_accuracy(self) -> float:
        """Right answers on the test split, in 0..1."""
        return self.test_correct / self.test_total


class Observer(Protocol):
    """Is told how a run goes on. `jaxcnn.progress` and `jaxcnn.records` have some."""

    def start(self, *, epochs: int, images: int, history: Sequence[EpochRecord] = ()) -> None:
        """Training begins: so many epochs of so many images; a resumed run has done some."""
        ...

    def advance(self, *, images: int, metrics: steps.Metrics) -> None:
        """So many images were trained on; `metrics` are the epoch's sums, on the device."""
        ...

    def epoch(self, record: EpochRecord) -> None:
        """An epoch has been trained and evaluated."""
        ...

    def stop(self) -> None:
        """Training has ended, well or not, perhaps before it began."""
        ...


def make_model(recipe: Recipe) -> nn.Module:
    """Returns the recipe's network."""
    network = {"mnist": MnistCNN, "cifar10": Cifar10CNN}[recipe.network]
    return network(dropout_rate=recipe.dropout, initialization=recipe.initialization)


def make_train_step(
    recipe: Recipe, model: nn.Module, tx: optax.GradientTransformation
) -> steps.TrainStep:
    """Returns the step that a recipe trains with, see `jaxcnn.steps.make_train_step`."""
    return steps.make_train_step(
        model,
        tx,
        normalize=make_normalize(recipe.mean, recipe.std),
        augment=make_augment(recipe.augment),
        label_smoothing=recipe.label_smoothing,
    )


def split_key(seed: int | jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns a run's two keys: of everything in its state, and of the order of its images."""
    # Not jax's default, whatever that is: "rbg" gives all members of an ensemble the same numbers.
    init_key, order_key = jax.random.split(jax.random.key(seed, impl="threefry2x32"))
    return init_key, order_key


def checked_seeds(seeds: Any) -> np.ndarray:
    """Returns seeds as uint32[E].

    Raises:
        UserError: one is no whole number in 0..2**32 - 1: it would be taken for another one.
    """
    whole: list[int] = []
    for position, seed in enumerate(seeds):
        try:
            whole.append(operator.index(seed))
        except TypeError:
            whole.append(-1)
        if not 0 <= whole[-1] < 2**32 or isinstance(seed, bool):
            raise UserError(
                f"the seed {seed!r}, at position {position}, is no whole number from 0 to "
                f"{2**32 - 1}: give such a one"
            )
    return np.array(whole, np.uint32)


def optimizer_key(init_key: jax.Array) -> jax.Array:
    """Returns the key of an optimizer's random numbers; `state.init` splits 0 and 1 off."""
    return jax.random.fold_in(init_key, 2)


def check_optimizer(
    tx: optax.GradientTransformation, model: nn.Module, image_shape: tuple[int, ...]
) -> None:
    """Finds out whether a training step can give an optimizer what it needs, without training.

    Args:
        tx: the optimizer.
        model: the network.
        image_shape: (H, W, C).

    Raises:
        UserError: it cannot; the message says why.
    """
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    demands.extra_arguments(demands.with_plain_params(tx), params)


def checked_model(recipe: Recipe, own: nn.Module | None, image_shape: tuple[int, ...]) -> nn.Module:
    """Returns the network to train, one's own or else the recipe's.

    Raises:
        UserError: what one's own gives for an image are no logits of all classes.
    """
    if own is None:
        return make_model(recipe)
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
    logits, _ = jax.eval_shape(own.init_with_output, jax.random.key(0), image)
    shape: tuple[int, ...] = getattr(logits, "shape", ())
    if len(shape) != 2 or shape[1] < CLASSES:
        raise UserError(
            f"the network {type(own).__qualname__} gives {list(shape)} for one image: give one "
            f"with logits [1, {CLASSES}]"
        )
    return own


def check_sizes(recipe: Recipe, dataset: Dataset) -> int:
    """Refuses data sets that cannot be trained on with a recipe.

    Returns:
        Optimizer steps of the whole run.

    Raises:
        UserError: a split is empty, a batch larger than the training split, or the run longer than
            its counters can count.
    """
    for name, split in (("training", dataset.train), ("test", dataset.test)):
        if not len(split):
            raise UserError(f"{dataset.name} has no {name} images: give it at least one")
    size = len(dataset.train)
    if recipe.batch_size > size:
        raise UserError(
            f"batch_size {recipe.batch_size} is larger than the {size} training images: take at "
            "most that many"
        )
    total = recipe.epochs * -(-size // recipe.batch_size)
    # The counters on the device are int32, and that of steps has a mark at the end.
    if max(total, size) >= steps.NEVER:
        raise UserError(
            f"{recipe.epochs} epochs of {size} images at batch {recipe.batch_size} are {total} "
            f"steps, more than the {steps.NEVER - 1} that can be counted: take fewer epochs"
        )
    return total


def check_recipe(recipe: Recipe) -> None:
    """Makes a recipe's optimizer and finds out whether its network can be trained with it.

    Raises:
        UserError: it cannot; the message says why.
    """
    check_optimizer(
        optimizers.make_optimizer(recipe, total_steps=100), make_model(recipe), recipe.image_shape
    )


@dataclass
class Progress:
    """What a run has done, beside its state.

    Attributes:
        history: of the epochs that have ended.
        test_correct: right answers of the last evaluation.
        test_total: pictures in it.
        train_seconds: of all epochs.
        eval_seconds: of all evaluations.
        compile_seconds: of all processes that the run took.
        epoch_seconds: of the epoch that has not ended.
        versions: of the packages; see `jaxcnn.environment`.
        device: likewise.
    """

    history: list[EpochRecord] = dataclasses.field(default_factory=list)
    test_correct: int = 0
    test_total: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    compile_seconds: float = 0.0
    epoch_seconds: float = 0.0
    versions: dict[str, str] = dataclasses.field(default_factory=environment.versions)
    device: str = dataclasses.field(default_factory=environment.device)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Progress":
        """Returns the progress that a checkpoint has.

        Raises:
            ValueError: it is none.
        """
        document.check(values, _PROGRESS, "progress")
        history = [{name: record[name] for name in _RECORD} for record in values["history"]]
        if history and not 0 <= values["test_correct"] <= values["test_total"] != 0:
            raise ValueError("test_correct is more than test_total")
        known = {name: values[name] for name in _PROGRESS}
        return cls(**{**known, "history": [EpochRecord(**record) for record in history]})


_RECORD = {"epoch": int, "step": int, "learning_rate": (float, None)} | dict.fromkeys(
    "train_loss train_accuracy test_loss test_accuracy seconds images_per_second".split(), float
)
_PROGRESS: dict[str, Any] = {
    "history": [_RECORD],
    "test_correct": int,
    "test_total": int,
    **dict.fromkeys("train_seconds eval_seconds compile_seconds epoch_seconds".split(), float),
    "versions": {str: str},
    "device": str,
}


def identity(
    recipe: Recipe,
    dataset: Dataset,
    *,
    model: nn.Module,
    own_tx: Any = None,
    seeds: Any = 0,
) -> dict[str, Any]:
    """Returns all that decides what a run is, as JSON values; the versions are no part of it.

    Args:
        recipe: of the run.
        dataset: likewise; of its pictures there is a checksum.
        model: likewise, as it was asked for, not as it is placed on devices; of one that is not
            the recipe's all fields count.
        own_tx: the optimizer, or what makes it, if that is not the recipe's.
        seeds: the seed, or what else tells this run from others.
    """
    run = {
        **recipe.asdict(),
        "seed": seeds,
        "dataset": dataset.name,
        "dataset_version": dataset.version,
        "dataset_checksum": checksum(dataset.train, dataset.test),
        "model": type(model).__qualname__,
        "dtype": str(jnp.dtype(getattr(model, "dtype", None) or jnp.float32)),
        "own_tx": own_tx is not None and fingerprint.digest(own_tx),
    }
    if model != make_model(recipe):
        run["model_fields"] = fingerprint.of(model)["fields"]
    run |= environment.jax_settings()
    if ":" in recipe.optimizer and own_tx is None:
        run["optimizer_code"] = optimizers.code_digest(recipe.optimizer)
    return run


def checksum(*splits: Split) -> str:
    """Returns the CRC-32 of all pictures and labels, in hexadecimal digits."""
    value = 0
    for split in splits:
        for array in (split.images, split.labels):
            value = zlib.crc32(np.ascontiguousarray(array).data, value)
    return f"{value:08x}"


def stopped(step: int, total: int, saved: Path | None) -> str:
    """Returns what a run that was asked to stop says."""
    where = f"saved in {saved}" if saved else "nothing saved"
    return f"stopped at step {step} of {total}, {where}"


def fit(
    recipe: Recipe,
    dataset: Dataset,
    *,
    model: nn.Module | None = None,
    tx: optax.GradientTransformation | None = None,
    seed: int = 0,
    feed: FeedName = "auto",
    mesh: jax.sharding.Mesh | None = None,
    observers: Sequence[Observer] = (),
    checkpoints: checkpoint.Policy | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Result:
    """Trains a network and evaluates it on the whole test split after every epoch.

    The outcome is a function of the arguments: on one machine, with the same versions, the same
    seed gives the same bits, with either feed, and however often the run was killed and resumed.
    On a mesh it is the same but for rounding: `batch_size` is that of all devices together.
    Where there are several processes, all call this with the same arguments.

    Args:
        recipe: the hyperparameters.
        dataset: what to train and test on.
        model: another network of the same inputs and outputs. Default: the recipe's.
        tx: another optimizer. Default: the recipe's, with its schedule.
        seed: in 0..2**32 - 1.
        feed: see `jaxcnn.data.feed.make_feed`.
        mesh: of devices to train on, see `jaxcnn.parallel.make_mesh`; of several processes, all
            devices. Default: one device.
        observers: told about progress, by process 0.
        checkpoints: where to save the run, and to go on with it if it is there, on any mesh.
            Default: nowhere.
        interrupted: asked often whether to save and stop.

    Raises:
        UserError: the sizes do not fit each other or the mesh, the optimizer cannot be used, or the
            checkpoints are those of another run.
        WriteError: a checkpoint cannot be written.
        DivergedError: the loss is no longer finite.
        StoppedError: `interrupted` said so.
    """
    (seed,) = checked_seeds([seed]).tolist()
    total_steps = check_sizes(recipe, dataset)
    placement = Placement(mesh)
    placement.check_batch(recipe.batch_size)
    interrupted = processes.Agreed(interrupted)
    observers = observers if processes.is_main() else ()
    init_key, order_key = split_key(seed)
    asked = checked_model(recipe, model, dataset.train.images.shape[1:])
    model = placement.model(asked)
    with contextlib.ExitStack() as stack:
        store = None
        if checkpoints:  # first, so that a second run learns at once that it is the second
            run = functools.partial(identity, recipe, dataset, model=asked, own_tx=tx, seeds=seed)
            store = stack.enter_context(processes.opened(checkpoints, run))
        source = make_feed(feed, dataset.train, recipe.batch_size, order_key, placement)
        schedule = None
        if tx is None:
            schedule = schedules.make_schedule(recipe, total_steps)
            tx = optimizers.make_optimizer(recipe, total_steps, key=optimizer_key(init_key))
        image_shape = dataset.train.images.shape[1:]
        check_optimizer(tx, model, image_shape)
        train_state = state.init(init_key, model, tx, image_shape)
        sums, done = steps.zero_train_metrics(), Progress()
        saved: Path | None = None
        if store and (found := store.resume(checkpoint_tree(train_state, sums))):
            tree, progress, saved = found
            train_state, sums = tree["state"], tree["sums"]
            done = _resumed(checkpoints, saved, progress)
        step = int(train_state.step)
        train_state, sums = placement.replicate((train_state, sums))
        per_epoch = source.plan.steps

        def save() -> Path | None:
            if store is None:
                return None
            score = done.history[-1].test_accuracy if step % per_epoch == 0 else None
            tree = placement.fetch(checkpoint_tree(train_state, sums))
            return store.save(step, tree, asdict(done), score)

        def stop_if_asked() -> None:
            if interrupted():
                raise StoppedError(stopped(step, total_steps, saved))

        normalize = make_normalize(recipe.mean, recipe.std)
        train_step = make_train_step(recipe, model, tx)
        began = time.perf_counter()
        train_steps = _compile_train_steps(
            train_step, train_state, source.plan.shapes, image_shape, placement
        )
        test_batches = eval_batches(dataset.test, EVAL_BATCH_SIZE, placement)
        eval_step = steps.make_eval_step(model, normalize=normalize)
        eval_steps = (
            steps.make_eval_steps(eval_step, placement.everywhere)
            .lower(train_state.eval_variables, test_batches)
            .compile()
        )
        done.compile_seconds += time.perf_counter() - began

        every = checkpoints.every.steps(per_epoch) if checkpoints else 0
        for observer in observers:
            stack.callback(observer.stop)
        for observer in observers:
            observer.start(epochs=recipe.epochs, images=len(dataset.train), history=done.history)
        stop_if_asked()
        while step < total_steps:
            epoch, first = step // per_epoch + 1, step % per_epoch
            cuts = range(every - (step - first) % every, per_epoch, every) if every else ()
            began = time.perf_counter()
            for chunk in source.epoch(epoch, first, cuts):
                program, before = train_steps[chunk.batches["label"].shape], sums
                train_state, sums = program(
                    train_state, chunk.batches, np.int32(chunk.count), before
                )
                step += chunk.count
                # Looking at the sums of the chunk before does not keep the device waiting.
                _stop_if_diverged(before, recipe, schedule)
                for observer in observers:
                    observer.advance(images=chunk.count * chunk.batch_size, metrics=sums)
                due = every and step % every == 0
                if step % per_epoch and (due or interrupted()):
                    _stop_if_diverged(sums, recipe, schedule)  # waits for the chunk's end
                    done.epoch_seconds += time.perf_counter() - began
                    saved = save()
                    stop_if_asked()
                    began = time.perf_counter()
            train = jax.device_get(sums)  # waits for the epoch's end
            _stop_if_diverged(train, recipe, schedule)
            seconds = done.epoch_seconds + time.perf_counter() - began

            began = time.perf_counter()
            test = jax.device_get(eval_steps(train_state.eval_variables, test_batches))
            done.eval_seconds += time.perf_counter() - began
            if not np.isfinite(test["loss_sum"]):
                # The last step's update has done it.
                _stop_if_diverged({"nonfinite_step": jnp.int32(step)}, recipe, schedule)
            record = EpochRecord(
                epoch=epoch,
                step=step,
                learning_rate=None if schedule is None else float(schedule(step - 1)),
                train_loss=float(train["loss_sum"] / train["count"]),
                train_accuracy=float(train["correct"] / train["count"]),
                test_loss=float(test["loss_sum"] / test["count"]),
                test_accuracy=float(test["correct"] / test["count"]),
                seconds=seconds,
                images_per_second=len(dataset.train) / seconds,
            )
            done.history.append(record)
            done.test_correct, done.test_total = int(test["correct"]), int(test["count"])
            done.train_seconds += seconds
            done.epoch_seconds = 0.0
            sums = placement.replicate(steps.zero_train_metrics())
            for observer in observers:
                observer.epoch(record)
            if (every and step % every == 0) or step == total_steps or interrupted():
                saved = save()
            if step < total_steps:
                stop_if_asked()
    return Result(
        state=placement.fetch(train_state),
        history=tuple(done.history),
        test_correct=done.test_correct,
        test_total=done.test_total,
        parameters=count_parameters(train_state.params),
        train_seconds=done.train_seconds,
        eval_seconds=done.eval_seconds,
        compile_seconds=done.compile_seconds,
        images_per_second=recipe.epochs * len(dataset.train) / done.train_seconds,
    )


def checkpoint_tree(train_state: state.TrainState, sums: steps.Metrics) -> dict[str, Any]:
    """Returns what a checkpoint holds: the network for who only uses it, and all that goes on."""
    return {"network": train_state.eval_variables, "state": train_state, "sums": sums}


def _resumed(
    checkpoints: checkpoint.Policy | None, saved: Path, progress: dict[str, Any]
) -> Progress:
    """Returns what a run had done when it was saved, and reports what has changed since."""
    assert checkpoints is not None
    try:
        done = Progress.from_json(progress)
    except ValueError as error:
        raise UserError(
            f"{saved} does not say how far its run had come ({error}): give another --workdir"
        ) from None
    checkpoints.report(f"going on from {saved}")
    here = {**environment.versions(), "device": environment.device()}
    there = {**done.versions, "device": done.device}
    changed = [
        f"{name} {there.get(name)} then and {here.get(name)} now"
        for name in here
        if there.get(name) != here.get(name)
    ]
    if changed:
        checkpoints.report(f"the last bits may differ from an unbroken run's: {', '.join(changed)}")
    return done


def evaluate(
    recipe: Recipe, variables: Any, split: Split, *, tta: bool = False
) -> tuple[int, int, float]:
    """Scores a network on a whole split, in evaluation mode.

    Args:
        recipe: that it was trained with.
        variables: its `params`, and `batch_stats` where it has them.
        split: the pictures.
        tta: test-time augmentation, the average answer for several views of each picture, see
            `jaxcnn.data.views`.

    Returns:
        Right answers, pictures, and the mean cross entropy in nats.

    Raises:
        DataError: the split is none.
    """
    split = checked(split, "the split")
    normalize = make_normalize(recipe.mean, recipe.std)
    views = make_views(recipe.network) if tta else None
    eval_step = steps.make_eval_step(make_model(recipe), normalize=normalize, views=views)
    batches = eval_batches(split, EVAL_BATCH_SIZE)
    sums = jax.device_get(steps.make_eval_steps(eval_step)(variables, batches))
    return int(sums["correct"]), int(sums["count"]), float(sums["loss_sum"] / sums["count"])


def eval_batches(
    split: Split, batch_size: int, placement: Placement = ONE_DEVICE
) -> dict[str, jax.Array]:
    """Returns a whole split as batches on the devices, the last one padded and masked.

    Args:
        split: N pictures.
        batch_size: B / D, any number from 1, on each of D devices along "data".
        placement: where the batches go; a process reads what its own devices need.

    Returns:
        `{"image": uint8[K, B, H, W, C], "label": int32[K, B], "mask": bool[K, B]}`, K = N / B
        rounded up.
    """
    batch_size *= placement.size("data")
    positions = np.arange(-(-len(split) // batch_size) * batch_size).reshape(-1, batch_size)
    own = positions[:, placement.rows(batch_size)]
    indices = np.minimum(own, len(split) - 1)
    arrays = {
        "image": split.images[indices],
        "label": split.labels[indices],
        "mask": own < len(split),
    }
    return placement.send(arrays, batch_size)


def _stop_if_diverged(
    metrics: steps.Metrics, recipe: Recipe, schedule: optax.Schedule | None
) -> None:
    step = int(metrics["nonfinite_step"])
    if step == steps.NEVER:
        return
    if schedule is None:
        raise DivergedError(
            f"the training loss is not finite any more at step {step}: give the optimizer a "
            "smaller learning rate"
        )
    raise DivergedError(
        f"the training loss is not finite any more at step {step}, where the learning rate is "
        f"{float(schedule(step - 1)):.3g}: give --learning-rate a smaller value than "
        f"{recipe.learning_rate:g}"
    )


def _compile_train_steps(
    train_step: steps.TrainStep,
    train_state: state.TrainState,
    shapes: list[tuple[int, int]],
    image_shape: tuple[int, ...],
    placement: Placement,
) -> dict[tuple[int, ...], Any]:
    """Compiles a program for every shape of chunk, ahead of the first step."""
    train_steps = steps.make_train_steps(train_step, placement.everywhere)
    programs: dict[tuple[int, ...], Any] = {}
    for shape in shapes:
        sharding = placement.batches(shape[1])
        batches = {
            "image": jax.ShapeDtypeStruct((*shape, *image_shape), jnp.uint8, sharding=sharding),
            "label": jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding),
        }
        sums = placement.replicate(steps.zero_train_metrics())
        programs[shape] = train_steps.lower(train_state, batches, np.int32(0), sums).compile()
    return programs
