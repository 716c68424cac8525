"""Ensembles: many runs in one program, with different seeds and hyperparameters.

Member i is the run that `jaxcnn.train.fit.fit` would do with its seed and its hyperparameters.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.data.dataset import Dataset, Split, validate_split
from jaxcnn.devices import processes
from jaxcnn.devices.mesh import Placement
from jaxcnn.errors import UserError
from jaxcnn.networks.cpu.substitution import fastest
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.storage import checkpoint
from jaxcnn.storage.shared import SharedStore, open_shared
from jaxcnn.train import loop
from jaxcnn.train.ensemble_monitor import EnsembleMonitor
from jaxcnn.train.ensemble_program import compile_ensemble
from jaxcnn.train.evaluate import EVAL_BATCH_SIZE, eval_batches
from jaxcnn.train.identity import checksum, identity
from jaxcnn.train.keyboard import saving_on_interrupt
from jaxcnn.train.losses import Loss
from jaxcnn.train.many_result import ManyResult
from jaxcnn.train.member import Member
from jaxcnn.train.members import Members
from jaxcnn.train.setup import check_sizes, checked_model
from jaxcnn.train.step_log import Metric, StepLog

# Makes a member's optimizer from its hyperparameters, float32[] by name.
MakeTx = Callable[[Mapping[str, jax.Array]], optax.GradientTransformation]

# What `fit` takes and an ensemble does not.
_ALONE = ("schedule", "augment", "start", "freeze", "feed", "observers")
# The columns of `ManyResult.frame` and `log_frame` that `StepLog` does not know.
_COLUMNS = {"member", "seed", "eval_loss", "eval_accuracy", "step_learning_rate"}


def fit_many(
    recipe: Recipe, dataset: Dataset, members: Members, *, chunk: int | None = None, **options: Any
) -> ManyResult:
    """Trains an ensemble.

    Args:
        recipe: what the runs have in common.
        dataset: the training and test splits.
        members: the runs, see `jaxcnn.grid`.
        chunk: how many run at once, see `fit_chunks`.
        **options: those of `fit_chunks`: mesh, evaluate_on, evaluate_once, model, tx, loss,
            metrics, log_every, keep_states, report, checkpoints and interrupted.

    Raises:
        UserError: as `fit_chunks` does, or an option is one of `jaxcnn.train.fit.fit` alone.
    """
    if alone := [name for name in _ALONE if name in options]:
        raise UserError(
            f"an ensemble takes no {', '.join(alone)}: train its runs one by one with fit, which "
            "does, or leave it out"
        )
    results = list(fit_chunks(recipe, dataset, members, chunk=chunk, **options))
    states = [result.states for result in results]
    return ManyResult(
        members=members,
        history=_join([result.history for result in results]),
        correct=np.concatenate([result.correct for result in results]),
        total=results[0].total,
        diverged_at=np.concatenate([result.diverged_at for result in results]),
        states=None
        if states[0] is None
        else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *states),
        metrics=_join([result.metrics for result in results]),
        logged=results[0].logged,
        log=_join([result.log for result in results]),
    )


def _join(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Joins arrays [..., E] by name along their last axis."""
    return {name: np.concatenate([part[name] for part in parts], axis=-1) for name in parts[0]}


def fit_chunks(
    recipe: Recipe,
    dataset: Dataset,
    members: Members,
    *,
    chunk: int | None = None,
    mesh: jax.sharding.Mesh | None = None,
    evaluate_on: Split | None = None,
    evaluate_once: bool = False,
    model: nn.Module | None = None,
    tx: optax.GradientTransformation | MakeTx | None = None,
    loss: Loss | None = None,
    metrics: Mapping[str, Metric] | None = None,
    log_every: int = 0,
    keep_states: bool = False,
    report: Callable[[int], None] = lambda images: None,
    checkpoints: checkpoint.Policy | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[ManyResult]:
    """Trains an ensemble chunk by chunk, with one program for all, and yields each one's result.

    Args:
        recipe: what the runs have in common.
        dataset: the training and test splits.
        members: the runs.
        chunk: how many run at once. Default: on CPU one on each device, which is fastest there;
            elsewhere as many as fit the devices' memory.
        mesh: see `jaxcnn.devices.mesh.make_mesh`: a chunk is spread along its axis "ensemble", the
            batches of its members along "data". Default: one device.
        evaluate_on: evaluated after every epoch. Default: the test split.
        evaluate_once: whether to evaluate after the last epoch only.
        model: another network with the same inputs and outputs.
        tx: another optimizer: one made with `optax.inject_hyperparams`, whose state takes the
            members' values, or a function that makes it from them. Default: the recipe's.
        loss: another loss, see `jaxcnn.train.fit.fit`.
        metrics: of a training step by name, see `jaxcnn.train.fit.fit`.
        log_every: steps between two rows of the log of every member, `ManyResult.log`; 0 for none.
        keep_states: whether to return the states at the end.
        report: called with the number of images trained on, of all members together.
        checkpoints: where to save and resume the chunks, each in its own folder. Default: nowhere.
        interrupted: polled after every piece of an epoch: whether to save and stop.

    Raises:
        UserError: the sizes, the memory, an option or the checkpoints do not fit, or several
            processes are to save states; the message says why.
        WriteError: a checkpoint cannot be written.
        StoppedError, KeyboardInterrupt: as `jaxcnn.train.fit.fit` raises them.
    """
    placement = Placement(mesh)
    check_sizes(recipe, dataset, placement)
    if not len(members):
        raise UserError("an ensemble without members: give at least one seed")
    log = _checked_log(metrics, log_every, members)
    if checkpoints or keep_states:
        processes.require_one(
            "several processes have the states of an ensemble in parts: take one process for "
            "checkpoints and keep_states"
        )
    image_shape, size = dataset.image_shape, len(dataset.train)
    requested = checked_model(recipe, model, dataset)
    split = validate_split(evaluate_on or dataset.test, "the split to evaluate on", dataset.classes)
    batches = eval_batches(split, EVAL_BATCH_SIZE, placement)
    placed = placement.model(fastest(requested))
    member = Member(recipe, image_shape, size, placed, tx, placement, loss, log)
    program = compile_ensemble(member, dataset, batches, members, chunk)
    run: dict[str, Any] = {"chunk": program.chunk, "evaluate_once": evaluate_once}
    if checkpoints:
        run |= identity(recipe, dataset, model=requested, own_tx=tx, loss=loss, metrics=metrics)
        run["evaluate_on"] = checksum(split)
        run |= {"log_every": log_every} if log_every else {}  # the checkpoints have the rows
    for first in range(0, len(members), program.chunk):
        indices = np.arange(first, min(first + program.chunk, len(members)))
        # The last chunk is filled up with its last member.
        part = members.take(np.pad(indices, (0, program.chunk - len(indices)), mode="edge"))
        monitor = EnsembleMonitor(members.take(indices), program, recipe.epochs, report, log)
        with _open_store(checkpoints, run, first, part, interrupted) as (store, stop):
            position = loop.resume(store, program, monitor, program.start(part))
            how: dict[str, Any] = {"evaluate_once": evaluate_once, "interrupted": stop}
            state = loop.train(program, monitor, position, recipe.epochs, store, **how)
        yield monitor.result(state if keep_states else None)


def _checked_log(metrics: Mapping[str, Metric] | None, log_every: int, members: Members) -> StepLog:
    """Returns what is measured in the steps of an ensemble.

    Raises:
        UserError: it cannot be, or a metric has the name of another column of the result.
    """
    log = StepLog(metrics or {}, log_every)
    for name in log.metrics:
        if name in _COLUMNS or name in members.hyperparameters:
            raise UserError(f"a metric is named {name}, as another column of the result: rename it")
    return log


@contextlib.contextmanager
def _open_store(
    checkpoints: checkpoint.Policy | None,
    run: dict[str, Any],
    first: int,
    part: Members,
    interrupted: Callable[[], bool],
) -> Iterator[tuple[SharedStore | None, Callable[[], bool]]]:
    """Opens the checkpoints of a chunk, whose first member is the ensemble's number `first`.

    Yields:
        The store, and what the training loop is to poll, see `saving_on_interrupt`.
    """
    if checkpoints:
        folder = checkpoints.folder / f"members-{first:06d}"
        checkpoints = dataclasses.replace(checkpoints, folder=folder)
    values = {name: array.tolist() for name, array in part.hyperparameters.items()}
    run = run | {"seed": part.seeds.tolist(), "hyperparameters": values}
    with (
        open_shared(checkpoints, lambda: run) as store,
        saving_on_interrupt(store, interrupted) as stop,
    ):
        yield store, stop
