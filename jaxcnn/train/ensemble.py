"""Ensembles: many runs in one program, with different seeds and hyperparameters.

Member i is the run that `jaxcnn.train.fit.fit` would do with its seed and its hyperparameters.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
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
from jaxcnn.train import loop, steps
from jaxcnn.train.ensemble_program import EnsembleProgram, compile_ensemble
from jaxcnn.train.evaluate import EVAL_BATCH_SIZE, eval_batches
from jaxcnn.train.identity import checksum, identity
from jaxcnn.train.keyboard import saving_on_interrupt
from jaxcnn.train.loop import HostMetrics
from jaxcnn.train.losses import Loss
from jaxcnn.train.many_result import ManyResult
from jaxcnn.train.member import Member
from jaxcnn.train.members import Members
from jaxcnn.train.setup import check_sizes, checked_model
from jaxcnn.train.state import TrainState

# Makes a member's optimizer from its hyperparameters, float32[] by name.
MakeTx = Callable[[Mapping[str, jax.Array]], optax.GradientTransformation]


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
            keep_states, report, checkpoints and interrupted.

    Raises:
        UserError: as `fit_chunks` does.
    """
    results = list(fit_chunks(recipe, dataset, members, chunk=chunk, **options))
    states = [result.states for result in results]
    return ManyResult(
        members=members,
        history={
            name: np.concatenate([result.history[name] for result in results], axis=1)
            for name in results[0].history
        },
        correct=np.concatenate([result.correct for result in results]),
        total=results[0].total,
        diverged_at=np.concatenate([result.diverged_at for result in results]),
        states=None
        if states[0] is None
        else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *states),
    )


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
        keep_states: whether to return the states at the end.
        report: called with the number of images trained on, of all members together.
        checkpoints: where to save and resume the chunks, each in its own folder. Default: nowhere.
        interrupted: polled after every piece of an epoch: whether to save and stop.

    Raises:
        UserError: the sizes or the memory do not suffice, the optimizer or the loss cannot be used,
            the checkpoints are those of other runs, or several processes are to save states.
        WriteError: a checkpoint cannot be written.
        StoppedError, KeyboardInterrupt: as `jaxcnn.train.fit.fit` raises them.
    """
    placement = Placement(mesh)
    check_sizes(recipe, dataset, placement)
    if not len(members):
        raise UserError("an ensemble without members: give at least one seed")
    if checkpoints or keep_states:
        processes.require_one(
            "several processes have the states of an ensemble in parts: take one process for "
            "checkpoints and keep_states"
        )
    image_shape, size = dataset.image_shape, len(dataset.train)
    requested = checked_model(recipe, model, dataset)
    split = evaluate_on or dataset.test
    split = validate_split(split, "the split to evaluate on", dataset.classes)
    batches = eval_batches(split, EVAL_BATCH_SIZE, placement)
    placed = placement.model(fastest(requested))
    member = Member(recipe, image_shape, size, placed, tx, placement, loss)
    program = compile_ensemble(member, dataset, batches, members, chunk)
    run: dict[str, Any] = {"chunk": program.chunk, "evaluate_once": evaluate_once}
    if checkpoints:
        run |= identity(recipe, dataset, model=requested, own_tx=tx, loss=loss)
        run["evaluate_on"] = checksum(split)
    for first in range(0, len(members), program.chunk):
        indices = np.arange(first, min(first + program.chunk, len(members)))
        # The last chunk is filled up with its last member.
        part = members.take(np.pad(indices, (0, program.chunk - len(indices)), mode="edge"))
        monitor = EnsembleMonitor(members.take(indices), program, recipe.epochs, report)
        with _open_store(checkpoints, run, first, part, interrupted) as (store, stop):
            position = loop.resume(store, program, monitor, program.start(part))
            how: dict[str, Any] = {"evaluate_once": evaluate_once, "interrupted": stop}
            state = loop.train(program, monitor, position, recipe.epochs, store, **how)
        yield monitor.result(state if keep_states else None)


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


class EnsembleMonitor:
    """Records the metrics of a chunk, see `jaxcnn.train.loop.Monitor`."""

    ended = False  # the members end together, after the last epoch

    def __init__(
        self,
        members: Members,
        program: EnsembleProgram,
        epochs: int,
        report: Callable[[int], None],
    ) -> None:
        """Begins with empty records.

        Args:
            members: those of the chunk; the program may have more, as padding.
            program: of the chunk.
            epochs: number of epochs.
            report: called with the number of images trained on, of all members together.
        """
        self._members = members
        self._report = report
        self._steps_per_epoch = program.steps_per_epoch
        zeros = steps.zero_train_metrics()
        # Metrics of every epoch, [epochs, E] each.
        self._history = {
            split: {name: np.zeros((epochs, program.chunk), zeros[name].dtype) for name in names}
            for split, names in (("train", zeros), ("eval", steps.zero_metrics()))
        }

    def tree(self, state: TrainState, sums: steps.Metrics) -> dict[str, Any]:
        """Returns states and all metrics, see `jaxcnn.train.loop.Monitor.tree`."""
        return {"state": state, "sums": sums, "history": self._history}

    def progress(self, step: int) -> dict[str, Any]:
        """Returns the step."""
        return {"step": step}

    def score(self) -> None:
        """Returns None: there is no best checkpoint of several runs."""

    def restore(self, tree: dict[str, Any], progress: dict[str, Any], saved: Path) -> int:
        """Takes over the history of a checkpoint, see `jaxcnn.train.loop.Monitor.restore`."""
        self._history = jax.tree.map(np.array, tree["history"])
        return int(progress["step"])

    def check(self, sums: steps.Metrics | HostMetrics) -> None:
        """Does nothing: a member that diverges is marked at the end, the others go on."""

    def advance(self, piece: loop.Piece) -> None:
        """Reports the images of all members, see `jaxcnn.train.loop.Monitor.advance`."""
        self._report(len(self._members) * piece.images)

    def trained(self, seconds: float) -> None:
        """Does nothing: the time is not recorded."""

    def epoch(
        self, epoch: int, step: int, train: HostMetrics, scored: HostMetrics | None, seconds: float
    ) -> None:
        """Records the metrics of an epoch, see `jaxcnn.train.loop.Monitor.epoch`."""
        for split, metrics in (("train", train), ("eval", scored or {})):
            for name, values in metrics.items():
                self._history[split][name][epoch - 1] = values

    def result(self, states: TrainState | None) -> ManyResult:
        """Returns curves from the metrics of every epoch, and which members have diverged.

        Args:
            states: of the program's members at the end, or None.
        """
        count = len(self._members)
        history = jax.tree.map(lambda array: array[:, :count], self._history)
        train, scored = history["train"], history["eval"]
        step = self._steps_per_epoch * np.arange(1, len(train["count"]) + 1)[:, None]
        first = train["nonfinite_step"].min(axis=0)
        # The last update can make the evaluation non-finite although no training loss was.
        spoilt = ~np.isfinite(scored["loss_sum"][-1]) & (first == steps.NEVER)
        first = np.where(spoilt, step[-1], first)
        curves: dict[str, np.ndarray] = {}
        for split, sums in history.items():
            for name, of in (("loss", "loss_sum"), ("accuracy", "correct")):
                ratio = sums[of] / np.maximum(sums["count"], 1)
                known = (sums["count"] > 0) & (step < first)
                curves[f"{split}_{name}"] = np.where(known, ratio, np.nan).astype(np.float32)
        return ManyResult(
            self._members,
            curves,
            scored["correct"][-1],
            int(scored["count"][-1, 0]),
            np.where(first == steps.NEVER, 0, first).astype(np.int32),
            jax.tree.map(lambda leaf: leaf[:count], states),
        )
