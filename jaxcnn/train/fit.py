"""`fit`: epochs of training with an evaluation after each."""

import contextlib
import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.data.augment import make_normalize
from jaxcnn.data.dataset import Dataset
from jaxcnn.devices import environment, processes
from jaxcnn.devices.mesh import Placement
from jaxcnn.errors import DivergedError, StoppedError, UserError
from jaxcnn.networks.inspect import count_parameters
from jaxcnn.optim import schedules
from jaxcnn.optim.factory import make_optimizer
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.storage import checkpoint
from jaxcnn.storage.shared import open_shared
from jaxcnn.train import steps
from jaxcnn.train.evaluate import EVAL_BATCH_SIZE, eval_batches
from jaxcnn.train.feed import FeedName, make_feed
from jaxcnn.train.identity import identity
from jaxcnn.train.result import EpochRecord, Observer, Progress, Result
from jaxcnn.train.setup import (
    check_optimizer,
    check_sizes,
    checked_model,
    checked_seeds,
    make_recipe_step,
    optimizer_key,
    split_key,
)
from jaxcnn.train.state import TrainState, init_state


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
        feed: see `jaxcnn.train.feed.make_feed`.
        mesh: of devices to train on, see `jaxcnn.devices.mesh.make_mesh`; of several processes, all
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
            store = stack.enter_context(open_shared(checkpoints, run))
        source = make_feed(feed, dataset.train, recipe.batch_size, order_key, placement)
        schedule = None
        if tx is None:
            schedule = schedules.make_schedule(recipe, total_steps)
            tx = make_optimizer(recipe, total_steps, key=optimizer_key(init_key))
        image_shape = dataset.train.images.shape[1:]
        check_optimizer(tx, model, image_shape)
        train_state = init_state(init_key, model, tx, image_shape)
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
        train_step = make_recipe_step(recipe, model, tx)
        began = time.perf_counter()
        train_steps = _compile_train_steps(
            train_step, train_state, source.plan.shapes, image_shape, placement
        )
        test_batches = eval_batches(dataset.test, EVAL_BATCH_SIZE, placement)
        eval_step = steps.make_eval_step(model, normalize=normalize)
        eval_steps = (
            steps.make_eval_chunk(eval_step, placement.everywhere)
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


def checkpoint_tree(train_state: TrainState, sums: steps.Metrics) -> dict[str, Any]:
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
    train_state: TrainState,
    shapes: list[tuple[int, int]],
    image_shape: tuple[int, ...],
    placement: Placement,
) -> dict[tuple[int, ...], Any]:
    """Compiles a program for every shape of chunk, ahead of the first step."""
    train_steps = steps.make_train_chunk(train_step, placement.everywhere)
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
