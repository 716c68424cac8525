"""The compiled computations of an ensemble: many runs in one program."""

import math
import os
from collections.abc import Callable, Container, Iterator
from typing import Any

import jax
import numpy as np

from jaxcnn.data.dataset import Dataset
from jaxcnn.devices import processes
from jaxcnn.errors import UserError
from jaxcnn.train import steps
from jaxcnn.train.loop import HostMetrics, Piece
from jaxcnn.train.member import Member
from jaxcnn.train.members import Members
from jaxcnn.train.state import TrainState

# The memory of a member is estimated from a program of this many.
_SAMPLE = 8
# Steps after which a run polls whether to stop; few enough to answer in seconds.
_PIECE = 256
# Share of the free memory that a chunk chosen automatically may need.
_SHARE = 0.8


class EnsembleProgram:
    """What a chunk of E members computes at once, see `jaxcnn.train.loop.Program`.

    Attributes:
        chunk: E.
        memory: bytes that the device needs for it, estimated.
    """

    def __init__(self, member: Member, data: Any, batches: Any, example: Members) -> None:
        """Compiles the computations.

        Args:
            member: the computations of one member.
            data: (uint8[N, H, W, C], int32[N]), all training images and labels, on the devices.
            batches: of the evaluation split, see `jaxcnn.train.evaluate.eval_batches`.
            example: E members with the hyperparameters that will be trained.
        """
        self.chunk = len(example)
        self._member = member
        self._placement = member.placement
        self._data = data
        self._batches = batches
        self._members = example
        self._compile()

    def _compile(self) -> None:
        """Compiles the initialization, the training steps and the evaluation."""
        member, out = self._member, self._placement.members
        one = self._arguments()
        self._init = jax.jit(self._for_each(member.init, 2), out_shardings=out)
        states = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=out),
            jax.eval_shape(self._init, *one),
        )
        sums = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((self.chunk,), leaf.dtype, sharding=out),
            steps.zero_train_metrics(member.log.metrics),
        )
        records = [sums]
        for rows in self._empty():
            records += [jax.ShapeDtypeStruct(rows.shape, rows.dtype, sharding=out)]
        zero = np.int32(0)

        def compile_steps(take: Callable[..., Any]) -> Any:
            mapped = jax.jit(self._for_each(take, 4), donate_argnums=0, out_shardings=out)
            return mapped.lower(states, records, *one, zero, (zero, zero), self._data).compile()

        self._full = compile_steps(member.train_full)
        rest = member.size % member.recipe.batch_size
        self._rest = compile_steps(member.train_rest) if rest else None
        evaluate = jax.jit(self._for_each(member.evaluate, 1), out_shardings=out)
        self._evaluate = evaluate.lower(states, self._batches).compile()
        analyses: list[Any] = [
            program.memory_analysis() for program in (self._full, self._evaluate)
        ]
        self.memory = max(analysis.temp_size_in_bytes for analysis in analyses)
        self.memory += sum(math.prod(leaf.shape) * 4 for leaf in jax.tree.leaves(states))

    def start(self, members: Members) -> TrainState:
        """Makes this program that of other members, E of them, and returns their initial states."""
        self._members = members
        state: TrainState = self._init(*self._arguments())
        return state

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch."""
        return self._member.steps_per_epoch

    def zero_sums(self) -> steps.Metrics:
        """Returns the training metrics of zero steps, [E] each."""
        zeros = steps.zero_train_metrics(self._member.log.metrics)
        return self.place(jax.tree.map(lambda leaf: np.full(self.chunk, leaf), zeros))

    def place(self, tree: Any) -> Any:
        """Returns a pytree of arrays [E, ...] on the devices of the members."""
        return self._placement.shard_members(tree)

    def fetch(self, tree: Any) -> Any:
        """Returns the pytree itself: one process has all of an ensemble that is saved."""
        return tree

    def to_host(self, sums: steps.Metrics) -> HostMetrics:
        """Waits for metrics and returns them as NumPy arrays [E]."""
        return self._placement.gather_members(sums)

    def epoch(
        self, state: TrainState, sums: steps.Metrics, epoch: int, first: int, cuts: Container[int]
    ) -> Iterator[Piece]:
        """Trains an epoch in pieces, see `jaxcnn.train.loop.Program.epoch`."""
        size, batch_size = self._member.size, self._member.recipe.batch_size
        arguments = (*self._arguments(), np.int32(epoch))
        per_epoch, full, log = self.steps_per_epoch, size // batch_size, self._member.log
        before = (epoch - 1) * per_epoch
        for last in range(first + 1, per_epoch + 1):
            if not (last in cuts or last - first == _PIECE or last == per_epoch):
                continue
            bounds = np.int32(first), np.int32(min(last, full))
            records = [sums, *self._empty()]
            if first < full:
                state, records = self._full(state, records, *arguments, bounds, self._data)
            if self._rest is not None and last == per_epoch:
                state, records = self._rest(state, records, *arguments, bounds, self._data)
            sums, *rows = records
            images = min(last * batch_size, size) - first * batch_size
            logged = log.rows(rows[0], before + first, before + last) if rows else None
            yield Piece(state, sums, last - first, images, logged)
            first = last

    def evaluate(self, state: TrainState) -> HostMetrics:
        """Returns the metrics of the evaluation split, [E] each."""
        return self.to_host(self._evaluate(state, self._batches))

    def _empty(self) -> list[Any]:
        """Returns the rows of a piece before its first step, [float32[E, R, C]]; [] if none."""
        shapes = [one.shape for one in self._member.log.empty(_PIECE)]
        rows: list[Any] = self.place([np.zeros((self.chunk, *s), np.float32) for s in shapes])
        return rows

    def _arguments(self) -> tuple[Any, Any]:
        """Returns seeds and hyperparameters on the devices of the members."""
        members = self._members
        arguments: tuple[Any, Any] = self.place((members.seeds, dict(members.hyperparameters)))
        return arguments

    def _for_each(self, function: Callable[..., Any], mapped: int) -> Callable[..., Any]:
        """Maps a function over the leading axis of its first `mapped` arguments.

        On a mesh every device maps over its own members, as one device would.
        """
        if self._placement.mesh is None:
            return _map(function, self.chunk, mapped)
        own = self.chunk // self._placement.size("ensemble")
        return self._placement.over_members(_map(function, own, mapped), mapped)


def _map(function: Callable[..., Any], size: int, mapped: int) -> Callable[..., Any]:
    """Maps a function over the leading axis, of length `size`, of its first `mapped` arguments.

    For a single member without `vmap`, which costs a little and rounds differently.
    """
    if size > 1:
        return lambda *args: jax.vmap(lambda *own: function(*own, *args[mapped:]))(*args[:mapped])

    def alone(*args: Any) -> Any:
        own = jax.tree.map(lambda leaf: leaf[0], args[:mapped])
        return jax.tree.map(lambda leaf: leaf[None], function(*own, *args[mapped:]))

    return alone


def compile_ensemble(
    member: Member, dataset: Dataset, batches: Any, members: Members, chunk: int | None
) -> EnsembleProgram:
    """Compiles the program of a chunk of an ensemble.

    Args:
        member: the computations of one member.
        dataset: whose training split is kept on the devices.
        batches: of the evaluation split, see `jaxcnn.train.evaluate.eval_batches`.
        members: all of them.
        chunk: how many run at once. Default: on CPU one on each device, which is fastest there;
            elsewhere as many as fit the devices' memory.

    Raises:
        UserError: `chunk` is less than 1, or does not fit the memory.
    """
    arrays = jax.numpy.asarray(dataset.train.images), jax.numpy.asarray(dataset.train.labels)
    data = member.placement.replicate(arrays)
    spread = member.placement.size("ensemble")

    def build(size: int) -> EnsembleProgram:
        return EnsembleProgram(member, data, batches, members.take(np.zeros(size, int)))

    free = min(processes.gather(_free_memory()))
    if chunk is None:
        chunk = spread if jax.default_backend() == "cpu" else len(members)
        if chunk > _SAMPLE * spread:
            each = build(_SAMPLE * spread).memory / _SAMPLE
            chunk = int(min(chunk, spread * max(1, _SHARE * free // each)))
    elif chunk < 1:
        raise UserError(f"chunk takes a whole number from 1, got {chunk}")
    # Every device along "ensemble" has the same number of members.
    program = build(-(-min(chunk, len(members)) // spread) * spread)
    if program.memory > free:
        most = max(1, int(program.chunk * _SHARE * free / program.memory))
        raise UserError(
            f"a chunk of {program.chunk} members needs {program.memory / 2**30:.1f} GiB of memory "
            f"and the device has {free / 2**30:.1f} GiB free: take a chunk of at most {most}"
        )
    return program


def _free_memory() -> int:
    """Returns the number of bytes that the device has left."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
