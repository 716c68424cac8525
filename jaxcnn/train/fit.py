"""`fit`: trains a network and evaluates it after every epoch."""

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import optax

from jaxcnn.data.dataset import Dataset
from jaxcnn.devices import processes
from jaxcnn.devices.mesh import Placement
from jaxcnn.networks.cpu.substitution import fastest, slow_in_loops
from jaxcnn.optim.factory import make_optimizer
from jaxcnn.optim.schedules import make_schedule
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.storage import checkpoint
from jaxcnn.storage.shared import open_shared
from jaxcnn.train import loop
from jaxcnn.train.feed import FeedName, make_feed
from jaxcnn.train.identity import identity
from jaxcnn.train.result import Observer, Result
from jaxcnn.train.run_monitor import RunMonitor
from jaxcnn.train.run_program import RunProgram
from jaxcnn.train.setup import (
    check_optimizer,
    check_sizes,
    checked_model,
    checked_seeds,
    optimizer_key,
    split_key,
)
from jaxcnn.train.state import init_state


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

    The same seed gives bit-identical parameters on one machine, with either feed, and however often
    the run was killed and resumed. On a mesh, with the global batch size of the recipe, they differ
    by rounding only. With several processes, all call this with the same arguments.

    Args:
        recipe: the hyperparameters.
        dataset: the training and test splits.
        model: another network with the same inputs and outputs. Default: the recipe's.
        tx: another optimizer. Default: the recipe's, with its schedule.
        seed: in 0..2**32 - 1.
        feed: see `jaxcnn.train.feed.make_feed`.
        mesh: of the devices, see `jaxcnn.devices.mesh.make_mesh`. Default: one device.
        observers: notified of progress, in process 0.
        checkpoints: where to save the run, and to resume it from. Default: nowhere.
        interrupted: polled after every chunk of steps: whether to save and stop.

    Raises:
        UserError: the sizes, the optimizer or the checkpoints do not fit; the message says why.
        WriteError: a checkpoint cannot be written.
        DivergedError: the loss is no longer finite.
        StoppedError: `interrupted` returned True.
    """
    (seed,) = checked_seeds([seed]).tolist()
    placement = Placement(mesh)
    total_steps = check_sizes(recipe, dataset, placement)
    image_shape = dataset.train.images.shape[1:]
    requested = checked_model(recipe, model, image_shape)
    model = placement.model(fastest(requested))
    init_key, order_key = split_key(seed)
    run = functools.partial(identity, recipe, dataset, model=requested, own_tx=tx, seeds=seed)
    # Opened first, so that a second process on the same folder fails at once.
    with open_shared(checkpoints, run) as store:
        source = make_feed(feed, dataset.train, recipe.batch_size, order_key, placement)
        schedule = make_schedule(recipe, total_steps) if tx is None else None
        tx = tx or make_optimizer(recipe, total_steps, key=optimizer_key(init_key))
        check_optimizer(tx, model, image_shape)
        monitor = RunMonitor(recipe, dataset, schedule, observers, checkpoints)
        single = slow_in_loops(requested)
        program = RunProgram(recipe, dataset, model, tx, source, placement, single=single)
        start = init_state(init_key, model, tx, image_shape)
        position = loop.resume(store, program, monitor, start)
        monitor.done.compile_seconds += program.compile(position.state)
        stop = processes.any_process(interrupted)
        with monitor.observing():
            state = loop.train(program, monitor, position, recipe.epochs, store, interrupted=stop)
    return monitor.result(placement.fetch(state))
