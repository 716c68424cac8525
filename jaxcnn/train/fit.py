"""`fit`: trains a network and evaluates it after every epoch."""

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import optax

from jaxcnn.data.augment import Augment
from jaxcnn.data.dataset import Dataset
from jaxcnn.devices.mesh import Placement
from jaxcnn.networks.cpu.substitution import fastest, slow_in_loops
from jaxcnn.networks.inspect import variable_shapes
from jaxcnn.optim.factory import make_optimizer
from jaxcnn.optim.frozen import frozen, frozen_paths
from jaxcnn.optim.schedules import make_schedule
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.storage import checkpoint
from jaxcnn.storage.shared import SharedStore, open_shared
from jaxcnn.train import loop
from jaxcnn.train.feed import FeedName, make_feed
from jaxcnn.train.identity import identity
from jaxcnn.train.keyboard import saving_on_interrupt
from jaxcnn.train.losses import Loss
from jaxcnn.train.result import EpochFunction, Observer, Result
from jaxcnn.train.run_monitor import RunMonitor
from jaxcnn.train.run_program import RunProgram
from jaxcnn.train.setup import (
    check_augment,
    check_optimizer,
    check_sizes,
    checked_model,
    checked_schedule,
    checked_seeds,
    optimizer_key,
    split_key,
)
from jaxcnn.train.start import checked_start
from jaxcnn.train.state import TrainState, init_state
from jaxcnn.train.step_log import Metric, StepLog


def fit(
    recipe: Recipe,
    dataset: Dataset,
    *,
    model: nn.Module | None = None,
    tx: optax.GradientTransformation | None = None,
    schedule: optax.Schedule | None = None,
    augment: Augment | None = None,
    start: Any = None,
    freeze: Collection[str] = (),
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
    log_every: int = 0,
    seed: int = 0,
    feed: FeedName = "auto",
    mesh: jax.sharding.Mesh | None = None,
    observers: Sequence[Observer | EpochFunction] = (),
    checkpoints: checkpoint.Policy | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Result:
    """Trains a network and evaluates it on the whole test split after every epoch.

    The same seed gives bit-identical parameters on one machine, with either feed, and however often
    the run was killed and resumed; on a mesh they differ by rounding. A run that has ended goes on
    with a recipe of more epochs. Several processes call this with the same arguments.

    Args:
        recipe: the hyperparameters.
        dataset: the training and test splits.
        model: another network with the same inputs and outputs. Default: the recipe's.
        tx: another optimizer. Default: the recipe's, with its schedule.
        schedule: another learning rate by step, int32[] -> a number, for the recipe's optimizer.
        augment: another augmentation, (key[], uint8[B, H, W, C]) -> [B, H, W, C].
        start: variables to begin with instead of random ones, `params` and where the network has
            them `batch_stats`; the outputs for another number of classes begin at random.
        freeze: patterns of parameters that are not trained, "params/conv*", see
            `jaxcnn.optim.frozen.frozen_paths`. BatchNorm's running statistics move all the same.
        loss: another loss, (logits float32[B, C], labels int32[B]) -> float32[B], of training and
            of the records. Default: cross entropy in nats, in training with label smoothing.
        metrics: of a training step by name, `jaxcnn.train.step_log.StepValues` -> float32[].
        log_every: steps between two rows of the log that observers are given; 0 for none.
        seed: in 0..2**32 - 1.
        feed: see `jaxcnn.train.feed.make_feed`.
        mesh: of the devices, see `jaxcnn.devices.mesh.make_mesh`. Default: one device.
        observers: notified of progress, in process 0; a function is given each epoch's record.
        checkpoints: where to save the run, also on Ctrl-C, and to resume it from. Default: nowhere.
        interrupted: polled after every chunk of steps: whether to save and stop.

    Raises:
        UserError: the sizes, an argument or the checkpoints do not fit; the message says why.
        WriteError: a checkpoint cannot be written.
        DivergedError: the loss is no longer finite.
        StoppedError: `interrupted` returned True.
        KeyboardInterrupt: Ctrl-C or a notebook's stop button; with checkpoints, once one is saved.
    """
    (seed,) = checked_seeds([seed]).tolist()
    placement = Placement(mesh)
    total_steps = check_sizes(recipe, dataset, placement)
    check_augment(augment, dataset.image_shape)
    own_schedule = checked_schedule(schedule, tx)
    requested = checked_model(recipe, model, dataset)
    arrays = None if start is None else checked_start(start, requested, dataset)[0]
    fixed = _frozen_paths(freeze, requested, dataset)
    model = placement.model(fastest(requested))
    init_key, order_key = split_key(seed)
    own: dict[str, Any] = {"own_tx": tx, "own_schedule": schedule, "own_augment": augment}
    own |= {"loss": loss, "metrics": metrics, "start": arrays, "freeze": freeze}
    run = functools.partial(identity, recipe, dataset, model=requested, seeds=seed, **own)
    # Opened first, so that a second process on the same folder fails at once.
    with open_shared(checkpoints, run, growing=["epochs"]) as store:
        source = make_feed(feed, dataset.train, recipe.batch_size, order_key, placement)
        tx, rates = _optimizer(recipe, total_steps, tx, own_schedule, init_key, fixed)
        check_optimizer(tx, model, dataset.image_shape)
        monitor = RunMonitor(recipe, dataset, rates, observers, checkpoints, schedule)
        hooks: dict[str, Any] = {"log": StepLog(metrics or {}, log_every, rates), "loss": loss}
        hooks |= {"single": slow_in_loops(model, dataset.image_shape), "augment": augment}
        program = RunProgram(recipe, dataset, model, tx, source, placement, **hooks)
        first = init_state(init_key, model, tx, dataset.image_shape, arrays)
        state = _train(recipe, program, monitor, first, store, interrupted)
    return monitor.result(placement.fetch(state))


def _frozen_paths(freeze: Collection[str], model: nn.Module, dataset: Dataset) -> tuple[str, ...]:
    """Returns the paths of the frozen parameters; without any, the network is not traced."""
    if not freeze:
        return ()
    return frozen_paths(freeze, variable_shapes(model, dataset.image_shape)["params"])


def _train(
    recipe: Recipe,
    program: RunProgram,
    monitor: RunMonitor,
    first: TrainState,
    store: SharedStore | None,
    interrupted: Callable[[], bool],
) -> TrainState:
    """Trains from the latest checkpoint, or from the first state, and returns the last one."""
    position = loop.resume(store, program, monitor, first)
    monitor.done.compile_seconds += program.compile(position.state)
    with monitor.observing(), saving_on_interrupt(store, interrupted) as stop:
        return loop.train(program, monitor, position, recipe.epochs, store, interrupted=stop)


def _optimizer(
    recipe: Recipe,
    total_steps: int,
    tx: optax.GradientTransformation | None,
    own_schedule: optax.Schedule | None,
    init_key: jax.Array,
    fixed: tuple[str, ...],
) -> tuple[optax.GradientTransformation, optax.Schedule | None]:
    """Returns the optimizer, and its learning rate by step where that is known."""
    rates = None
    if tx is None:
        key = optimizer_key(init_key)
        tx = make_optimizer(recipe, total_steps, key=key, schedule=own_schedule)
        rates = own_schedule or make_schedule(recipe, total_steps)
    return frozen(tx, fixed) if fixed else tx, rates
