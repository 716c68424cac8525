"""Many runs in one program: seeds, learning rates and other numbers of the optimizer.

Member i is the run that `jaxcnn.train.fit.fit` would do with its seed and its hyperparameters.
"""

import contextlib
import dataclasses
import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.data.augment import make_normalize
from jaxcnn.data.dataset import Dataset, Split, checked
from jaxcnn.devices import processes
from jaxcnn.devices.mesh import ONE_DEVICE, Placement
from jaxcnn.errors import StoppedError, UserError
from jaxcnn.optim.factory import make_optimizer
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.storage import checkpoint
from jaxcnn.train import steps
from jaxcnn.train.evaluate import EVAL_BATCH_SIZE, eval_batches
from jaxcnn.train.feed import permutation
from jaxcnn.train.fit import stopped
from jaxcnn.train.identity import checksum, identity
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

# What a member needs is estimated from a program of so many.
_SAMPLE = 8
# Steps after which a run asks whether it is to stop; few enough to answer in seconds.
_PIECE = 256
# Share of the free memory that a chunk chosen automatically may need.
_SHARE = 0.8


@dataclass(frozen=True)
class Members:
    """The runs of an ensemble.

    Attributes:
        seeds: uint32[E].
        hyperparameters: float32[E] by name; see `jaxcnn.optim.factory.make_optimizer`.
    """

    seeds: np.ndarray
    hyperparameters: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", checked_seeds(self.seeds))
        arrays = {k: np.asarray(v, np.float32) for k, v in self.hyperparameters.items()}
        object.__setattr__(self, "hyperparameters", arrays)
        for name, array in arrays.items():
            if array.shape != self.seeds.shape:
                raise ValueError(f"{name} has shape {array.shape}, the seeds {self.seeds.shape}")

    def __len__(self) -> int:
        return len(self.seeds)

    def take(self, indices: Any) -> "Members":
        """Returns those of the given positions."""
        arrays = {name: array[indices] for name, array in self.hyperparameters.items()}
        return Members(self.seeds[indices], arrays)


def grid(seeds: Sequence[int], **hyperparameters: Sequence[float]) -> Members:
    """Returns every combination; the seeds vary fastest."""
    rows = list(itertools.product(*hyperparameters.values(), seeds))
    if not rows:
        raise ValueError("a grid takes at least one seed and one value of every hyperparameter")
    columns = list(zip(*rows, strict=True))
    arrays = dict(zip(hyperparameters, map(np.array, columns[:-1]), strict=True))
    return Members(np.array(columns[-1]), arrays)


@dataclass(frozen=True)
class ManyResult:
    """What the runs of an ensemble leave.

    Attributes:
        members: the runs, E of them.
        history: "train_loss", "train_accuracy", "eval_loss" and "eval_accuracy" as float32
            [epochs, E], as in `jaxcnn.train.result.EpochRecord`; not a number where nothing was
            scored and once a run has diverged.
        correct: int32[E], right answers of what was scored last, after the last epoch.
        total: pictures in it.
        diverged_at: int32[E], the first step, counted from 1, whose loss was not finite; 0 if none.
        states: at the end, every leaf with a leading axis E; None unless asked for.
    """

    members: Members
    history: dict[str, np.ndarray]
    correct: np.ndarray
    total: int
    diverged_at: np.ndarray
    states: TrainState | None


# Makes a member's optimizer of its hyperparameters.
MakeTx = Callable[[Mapping[str, jax.Array]], optax.GradientTransformation]


def fit_many(recipe: Recipe, dataset: Dataset, members: Members, **options: Any) -> ManyResult:
    """Trains an ensemble.

    Args:
        recipe: what the runs have in common.
        dataset: likewise.
        members: the runs.
        **options: see `chunks`.

    Raises:
        UserError: as `chunks` does.
    """
    results = list(fit_chunks(recipe, dataset, members, **options))
    states = [result.states for result in results]

    def join(*leaves: Any) -> Any:
        return jnp.concatenate(leaves)

    return ManyResult(
        members=members,
        history={
            name: np.concatenate([result.history[name] for result in results], axis=1)
            for name in results[0].history
        },
        correct=np.concatenate([result.correct for result in results]),
        total=results[0].total,
        diverged_at=np.concatenate([result.diverged_at for result in results]),
        states=None if states[0] is None else jax.tree.map(join, *states),
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
    keep_states: bool = False,
    report: Callable[[int], None] = lambda images: None,
    checkpoints: checkpoint.Policy | None = None,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[ManyResult]:
    """Trains an ensemble chunk by chunk, with one program for all, and yields each one's result.

    Args:
        recipe: what the runs have in common.
        dataset: likewise.
        members: the runs.
        chunk: how many run at once. Default: on CPU one on each device, which is fastest there;
            elsewhere as many as fit the devices' memory.
        mesh: of devices, see `jaxcnn.devices.mesh.make_mesh`: a chunk is spread along its axis
            "ensemble", the batches of its members along "data". Default: one device.
        evaluate_on: scored after every epoch. Default: the test split.
        evaluate_once: score it after the last epoch only.
        model: another network of the same inputs and outputs.
        tx: another optimizer: one made with `optax.inject_hyperparams`, which is told the members'
            values, or a function that makes it of them. Default: the recipe's.
        keep_states: whether to return the states at the end.
        report: called with the number of images trained on, all members together.
        checkpoints: where to save the chunks, each in a folder of its own, and to go on with them
            if they are there. Default: nowhere.
        interrupted: asked often whether to save and stop.

    Raises:
        UserError: the sizes do not fit, a chunk does not fit the memory, the optimizer cannot be
            used so, the checkpoints are those of other runs, or several processes are to save or
            return states.
        WriteError: a checkpoint cannot be written.
        StoppedError: `interrupted` said so.
    """
    check_sizes(recipe, dataset)
    if not len(members):
        raise UserError("an ensemble without members: give at least one seed")
    if processes.count() > 1 and (checkpoints or keep_states):
        raise UserError(
            "several processes have the states of an ensemble in parts: take one process for "
            "checkpoints and keep_states"
        )
    placement = Placement(mesh)
    placement.check_batch(recipe.batch_size)
    asked = checked_model(recipe, model, dataset.train.images.shape[1:])
    model = placement.model(asked)
    images, labels = jnp.asarray(dataset.train.images), jnp.asarray(dataset.train.labels)
    data = placement.replicate((images, labels))
    scored = checked(evaluate_on or dataset.test, "the split to evaluate on")
    batches = eval_batches(scored, EVAL_BATCH_SIZE, placement)
    member = _Member.make(recipe, dataset, model, tx, placement)
    programs = _compile(member, data, batches, members, chunk, placement)
    run: dict[str, Any] = {}
    if checkpoints:
        run = identity(recipe, dataset, model=asked, own_tx=tx)
        run |= {"chunk": programs.chunk, "evaluate_once": evaluate_once}
        run["evaluate_on"] = checksum(scored)
    for first in range(0, len(members), programs.chunk):
        indices = np.arange(first, min(first + programs.chunk, len(members)))
        count = len(indices)
        # The last chunk is filled up with its last member.
        part = members.take(np.pad(indices, (0, programs.chunk - count), mode="edge"))
        with contextlib.ExitStack() as stack:
            store = None
            if checkpoints:
                folder = checkpoints.folder / f"members-{first:06d}"
                policy = dataclasses.replace(checkpoints, folder=folder)
                own = {name: array.tolist() for name, array in part.hyperparameters.items()}
                run |= {"seed": part.seeds.tolist(), "hyperparameters": own}
                store = stack.enter_context(checkpoint.open_store(policy, run))
            trained = _train(
                programs,
                part,
                recipe.epochs,
                evaluate_once=evaluate_once,
                report=functools.partial(_report_all, report, count),
                store=store,
                every=checkpoints.every if checkpoints else checkpoint.Every(0),
                interrupted=interrupted,
            )
        kept = _first(count, trained["state"]) if keep_states else None
        history = jax.tree.map(lambda array, count=count: array[:, :count], trained["history"])
        yield _result(members.take(indices), history, programs.per_epoch, kept)


def _train(
    programs: "_Programs",
    part: Members,
    epochs: int,
    *,
    evaluate_once: bool,
    report: Callable[[int], None],
    store: checkpoint.Store | None,
    every: checkpoint.Every,
    interrupted: Callable[[], bool],
) -> dict[str, Any]:
    """Trains a chunk, or what is missing of it.

    Returns:
        "state" at the end, and "history": the metrics of every epoch, with leading axes epochs, E.
    """
    zeros = jax.tree.map(lambda leaf: jnp.full(len(part), leaf), steps.zero_train_metrics())
    rows = {name: np.zeros((epochs, len(part)), leaf.dtype) for name, leaf in zeros.items()}
    history = {"train": rows, "eval": {name: rows[name].copy() for name in steps.zero_metrics()}}
    tree: dict[str, Any] = {"state": programs.init(part), "sums": zeros, "history": history}
    step, saved = 0, None
    if store and (found := store.resume(tree)):
        tree, progress, saved = found
        tree["history"] = jax.tree.map(np.array, tree["history"])
        step = progress["step"]
    per_epoch, total = programs.per_epoch, epochs * programs.per_epoch
    period = every.steps(per_epoch)

    def pause() -> None:
        """Saves where it is due or asked for, and stops in the latter case."""
        nonlocal saved
        asked = interrupted()
        if store and (asked or step == total or (period and step % period == 0)):
            saved = store.save(step, tree, {"step": step})
        if asked and step < total:
            raise StoppedError(stopped(step, total, saved))

    while step < total:
        number, first = step // per_epoch + 1, step % per_epoch
        for last in range(first + 1, per_epoch + 1):
            due = period and (step + last - first) % period == 0
            if not (due or last - first == _PIECE or last == per_epoch):
                continue
            tree["state"], tree["sums"] = programs.take(
                tree["state"], tree["sums"], part, number, first, last
            )
            report(programs.images(last) - programs.images(first))
            step, first = step + last - first, last
            if last < per_epoch:
                pause()
        for name, values in programs.collect(tree["sums"]).items():
            tree["history"]["train"][name][number - 1] = values
        if number == epochs or not evaluate_once:
            for name, values in programs.collect(programs.score(tree["state"])).items():
                tree["history"]["eval"][name][number - 1] = values
        tree["sums"] = zeros
        pause()
    return tree


def _report_all(report: Callable[[int], None], count: int, images: int) -> None:
    report(count * images)


def _first(count: int, tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[:count], tree)


def _result(
    members: Members, history: Any, per_epoch: int, states: TrainState | None
) -> ManyResult:
    """Turns the metrics of every epoch into curves, and finds out which runs have diverged."""
    train, scored = history["train"], history["eval"]
    step = per_epoch * np.arange(1, len(train["count"]) + 1)[:, None]
    first = train["nonfinite_step"].min(axis=0)
    # The last update can spoil what no training loss has seen any more.
    spoilt = ~np.isfinite(scored["loss_sum"][-1]) & (first == steps.NEVER)
    first = np.where(spoilt, step[-1], first)
    curves: dict[str, np.ndarray] = {}
    for split, sums in history.items():
        for name, of in (("loss", "loss_sum"), ("accuracy", "correct")):
            ratio = sums[of] / np.maximum(sums["count"], 1)
            known = (sums["count"] > 0) & (step < first)
            curves[f"{split}_{name}"] = np.where(known, ratio, np.nan).astype(np.float32)
    # The step that spoils the last epoch's score is that epoch's last.
    diverged_at = np.where(first == steps.NEVER, 0, first).astype(np.int32)
    correct, total = scored["correct"][-1], int(scored["count"][-1, 0])
    return ManyResult(members, curves, correct, total, diverged_at, states)


@dataclass(frozen=True)
class _Member:
    """What one member does, as functions of arrays."""

    size: int
    batch_size: int
    init: Callable[..., TrainState]
    full: Callable[..., Any]
    rest: Callable[..., Any]
    score: Callable[..., steps.Metrics]

    @classmethod
    def make(
        cls, recipe: Recipe, dataset: Dataset, model: nn.Module, tx: Any, placement: Placement
    ) -> "_Member":
        normalize = make_normalize(recipe.mean, recipe.std)
        eval_steps = steps.make_eval_chunk(steps.make_eval_step(model, normalize=normalize))
        size = len(dataset.train)
        full, left = divmod(size, recipe.batch_size)

        def make_tx(init_key: jax.Array, values: Any) -> optax.GradientTransformation:
            if tx is None:
                return make_optimizer(
                    recipe,
                    recipe.epochs * (full + (left > 0)),
                    key=optimizer_key(init_key),
                    hyperparameters=values,
                )
            return tx if hasattr(tx, "update") else tx(values)

        def init(seed: jax.Array, values: Any) -> TrainState:
            init_key, _ = split_key(seed)
            shape = dataset.train.images.shape[1:]
            own = make_tx(init_key, values)
            check_optimizer(own, model, shape)
            start = init_state(init_key, model, own, shape)
            if tx is None or not hasattr(tx, "update") or not values:
                return start
            lacking = [n for n in values if not optax.tree.get_all_with_path(start.opt_state, n)]
            if lacking:
                raise UserError(
                    f"the optimizer does not keep {', '.join(lacking)} in its state: make it with "
                    "optax.inject_hyperparams"
                )
            return start.replace(opt_state=optax.tree.set(start.opt_state, **values))

        def prepare(seed: jax.Array, values: Any, number: Any, data: Any, count: int) -> Any:
            """Returns what takes the step of a position in an epoch, on a batch of `count`."""
            images, labels = data
            init_key, order_key = split_key(seed)
            train_step = make_recipe_step(recipe, model, make_tx(init_key, values))
            order = permutation(order_key, number, size)

            def step(position: Any, carry: Any) -> Any:
                train_state, sums = carry
                start = position * recipe.batch_size
                indices = jax.lax.dynamic_slice_in_dim(order, start, count)
                indices = placement.cut(indices)
                batch = {"image": images[indices], "label": labels[indices]}
                train_state, metrics = train_step(train_state, batch)
                metrics = steps.with_nonfinite_step(metrics, train_state.step)
                return train_state, steps.add_metrics(sums, metrics)

            return step

        def take_full(
            train_state: Any, sums: Any, seed: Any, values: Any, number: Any, bounds: Any, data: Any
        ) -> Any:
            step = prepare(seed, values, number, data, recipe.batch_size)
            first, last = bounds
            return jax.lax.fori_loop(first, last, step, (train_state, sums))

        def take_rest(
            train_state: Any, sums: Any, seed: Any, values: Any, number: Any, bounds: Any, data: Any
        ) -> Any:
            step = prepare(seed, values, number, data, left)
            return step(full, (train_state, sums))

        def score(train_state: TrainState, batches: Any) -> steps.Metrics:
            metrics: steps.Metrics = eval_steps(train_state.eval_variables, batches)
            return metrics

        return cls(size, recipe.batch_size, init, take_full, take_rest, score)


@dataclass(frozen=True)
class _Programs:
    """A chunk's programs, compiled.

    Attributes:
        chunk: members.
        size: pictures of an epoch.
        batch_size: of all steps of an epoch but the last one.
        init: of the members.
        full: takes steps of whole batches.
        rest: takes the last step, if its batch is smaller.
        score: of the states.
        collect: what `rest` or `score` returned, as NumPy arrays.
    """

    chunk: int
    size: int
    batch_size: int
    init: Callable[[Members], Any]
    full: Callable[..., Any]
    rest: Callable[..., Any] | None
    score: Callable[[Any], Any]
    collect: Callable[[Any], Any]

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return -(-self.size // self.batch_size)

    def images(self, step: int) -> int:
        """Returns how many pictures the first so many steps of an epoch have."""
        return min(step * self.batch_size, self.size)

    def take(
        self, states: Any, sums: Any, part: Members, number: int, first: int, last: int
    ) -> tuple[Any, Any]:
        """Takes the steps from `first` to before `last` of an epoch."""
        whole = min(last, self.size // self.batch_size)
        if first < whole:
            states, sums = self.full(states, sums, part, number, (first, whole))
        if self.rest is not None and last == self.per_epoch:
            states, sums = self.rest(states, sums, part, number, (whole, last))
        return states, sums


def _compile(
    member: _Member,
    data: Any,
    batches: Any,
    members: Members,
    chunk: int | None,
    placement: Placement,
) -> _Programs:
    spread = placement.size("ensemble")

    def arguments(part: Members) -> tuple[Any, Any]:
        return placement.spread((part.seeds, dict(part.hyperparameters)))

    def build(size: int) -> tuple[_Programs, int]:
        """Returns the programs for that many members, and the bytes that a chunk needs."""
        one = arguments(members.take(np.zeros(size, int)))
        out = placement.members
        init = jax.jit(_for_each(member.init, size, 2, placement), out_shardings=out)
        states = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=out),
            jax.eval_shape(init, *one),
        )
        sums = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((size,), leaf.dtype, sharding=out),
            steps.zero_train_metrics(),
        )
        zero = np.int32(0)

        def compile_steps(take: Callable[..., Any]) -> Any:
            mapped = jax.jit(
                _for_each(take, size, 4, placement), donate_argnums=0, out_shardings=out
            )
            return mapped.lower(states, sums, *one, zero, (zero, zero), data).compile()

        full = compile_steps(member.full)
        rest = compile_steps(member.rest) if member.size % member.batch_size else None
        mapped = jax.jit(_for_each(member.score, size, 1, placement), out_shardings=out)
        score = mapped.lower(states, batches).compile()
        analyses: list[Any] = [program.memory_analysis() for program in (full, score)]
        needed = max(analysis.temp_size_in_bytes for analysis in analyses)
        needed += sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(states))

        def call(program: Any) -> Any:
            return lambda states, sums, part, number, bounds: program(
                placement.spread(states),
                placement.spread(sums),
                *arguments(part),
                np.int32(number),
                tuple(map(np.int32, bounds)),
                data,
            )

        programs = _Programs(
            size,
            member.size,
            member.batch_size,
            lambda part: init(*arguments(part)),
            call(full),
            None if rest is None else call(rest),
            lambda states: score(placement.spread(states), batches),
            placement.collect,
        )
        return programs, needed

    free = min(processes.exchange(_free_memory()))
    if chunk is None:
        chunk = spread if jax.default_backend() == "cpu" else len(members)
        if chunk > _SAMPLE * spread:
            each = build(_SAMPLE * spread)[1] / _SAMPLE
            chunk = int(min(chunk, spread * max(1, _SHARE * free // each)))
    elif chunk < 1:
        raise UserError(f"chunk takes a whole number from 1, got {chunk}")
    # Every device along "ensemble" has as many.
    programs, needed = build(-(-min(chunk, len(members)) // spread) * spread)
    if needed > free:
        most = max(1, int(programs.chunk * _SHARE * free / needed))
        raise UserError(
            f"a chunk of {programs.chunk} members needs {needed / 2**30:.1f} GiB of memory and the "
            f"device has {free / 2**30:.1f} GiB free: take a chunk of at most {most}"
        )
    return programs


def _for_each(
    function: Callable[..., Any], size: int, mapped: int, placement: Placement
) -> Callable[..., Any]:
    """Maps a function over the leading axis of its first so many arguments.

    For a single member without `vmap`, which costs a little and changes the last bits. On a mesh
    every device maps over its own members, as one device would.
    """
    if placement.mesh is not None:
        own = size // placement.size("ensemble")
        return placement.over_members(_for_each(function, own, mapped, ONE_DEVICE), mapped)
    if size > 1:
        return lambda *args: jax.vmap(lambda *own: function(*own, *args[mapped:]))(*args[:mapped])

    def alone(*args: Any) -> Any:
        own = jax.tree.map(lambda leaf: leaf[0], args[:mapped])
        return jax.tree.map(lambda leaf: leaf[None], function(*own, *args[mapped:]))

    return alone


def _free_memory() -> int:
    """Returns the bytes that the device has left."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
