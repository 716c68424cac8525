"""Two ways of getting batches to the device, which give the same batches in the same order.

Both hand over chunks: some hundred shuffled batches stacked along a new front axis. The same
compiled program trains on the chunks of either, so the results are bit-identical.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from jaxcnn.data.dataset import Split
from jaxcnn.devices.mesh import ONE_DEVICE, Placement
from jaxcnn.errors import UserError

FeedName = Literal["auto", "device", "stream"]

# Large enough that a chunk's overhead vanishes, small enough to prefetch and to show progress.
_CHUNK_BYTES = 8 * 2**20
# On CPU each call of a program faults in its scratch memory again; with few steps per call this
# takes as long as a step of a large batch.
_CHUNK_STEPS = 32


@dataclass(frozen=True)
class Chunk:
    """Consecutive batches of an epoch.

    Attributes:
        batches: `{"image": uint8[K, B, H, W, C], "label": int32[K, B]}`, on the devices.
        count: how many of the K batches are to be trained on; the rest is padding.
        batch_size: B.
    """

    batches: dict[str, jax.Array]
    count: int
    batch_size: int


class Feed(Protocol):
    """What yields the chunks of an epoch."""

    @property
    def plan(self) -> "Plan":
        """How an epoch is cut into chunks."""
        ...

    def epoch(self, epoch: int, first: int = ..., cuts: Container[int] = ...) -> Iterator[Chunk]:
        """Yields every image of the split once, in an order that depends on `epoch`.

        Args:
            epoch: counted from 1.
            first: how many batches to leave out at the beginning: a resumed run had them.
            cuts: numbers of batches of the epoch after which a chunk ends.
        """
        ...


def permutation(key: jax.Array, epoch: int | jax.Array, size: int) -> jax.Array:
    """Returns the order of an epoch, int32[size].

    Args:
        key: PRNG key[] of a run's order.
        epoch: counted from 1.
        size: number of images.
    """
    return jax.random.permutation(jax.random.fold_in(key, epoch), size)


def choose_feed(name: FeedName) -> FeedName:
    """Returns the feed that a name stands for: "auto" is "stream" where there are many processes.

    Raises:
        UserError: there is none of that name, or it would keep the whole split in each of them.
    """
    if name not in get_args(FeedName):
        raise UserError(f"feed takes {', '.join(get_args(FeedName))}, got {name!r}")
    alone = jax.process_count() == 1
    if name == "auto":
        return "device" if alone else "stream"
    if name == "device" and not alone:
        raise UserError(
            "--feed device keeps all images in every process, and each of several is to load its "
            "own only: take --feed stream"
        )
    return name


def make_feed(
    name: FeedName,
    split: Split,
    batch_size: int,
    key: jax.Array,
    placement: Placement = ONE_DEVICE,
) -> Feed:
    """Makes a feed.

    Args:
        name: "device" keeps the whole split on every device; "stream" sends chunks from the host,
            of which a process reads what its devices need; see `choose` for "auto".
        split: the training data.
        batch_size: of all batches but the last of an epoch, which is as large as what is left.
        key: PRNG key[] of the order.
        placement: where the batches go.
    """
    kind = DeviceFeed if choose_feed(name) == "device" else StreamFeed
    return kind(split, batch_size, key, placement)


@dataclass(frozen=True)
class Plan:
    """How an epoch of `size` images is cut into chunks.

    Full batches come first, in chunks of equal length; what is left forms one smaller batch.
    """

    size: int
    batch_size: int
    image_bytes: int

    def chunks(
        self, first: int = 0, cuts: Container[int] = ()
    ) -> Iterator[tuple[int, int, int, int]]:
        """Yields (start, stop, K, B): images [start, stop) of the order, as K batches of B.

        Args:
            first: how many batches to leave out at the beginning.
            cuts: numbers of batches after which a chunk ends, be it full or not.
        """
        full, left = divmod(self.size, self.batch_size)
        length = _CHUNK_BYTES // (self.batch_size * self.image_bytes)
        length = min(full, max(length, _CHUNK_STEPS))
        while first < full:
            furthest = min(first + length, full)
            last = next((n for n in range(first + 1, furthest) if n in cuts), furthest)
            yield first * self.batch_size, last * self.batch_size, length, self.batch_size
            first = last
        if left and first == full:
            yield full * self.batch_size, self.size, 1, left

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The different (K, B) of an epoch's chunks: one program is compiled for each."""
        return list(dict.fromkeys((length, size) for _, _, length, size in self.chunks()))

    @property
    def steps(self) -> int:
        """Optimizer steps an epoch."""
        return -(-self.size // self.batch_size)


class DeviceFeed:
    """Keeps the whole split on every device as uint8 and shuffles it there."""

    def __init__(
        self, split: Split, batch_size: int, key: jax.Array, placement: Placement = ONE_DEVICE
    ) -> None:
        self._images = placement.replicate(jnp.array(split.images))
        self._labels = placement.replicate(jnp.array(split.labels))
        self._key = placement.replicate(key)
        self._placement = placement
        self.plan = Plan(len(split), batch_size, split.images[0].nbytes)
        self._permutation = jax.jit(permutation, static_argnums=2)

    def epoch(self, epoch: int, first: int = 0, cuts: Container[int] = ()) -> Iterator[Chunk]:
        """Yields the chunks of an epoch, see `Feed`."""
        order = self._permutation(self._key, epoch, len(self._labels))
        for start, stop, length, batch_size in self.plan.chunks(first, cuts):
            batches = _take(
                self._images,
                self._labels,
                order,
                start,
                length,
                batch_size,
                self._placement.batches(batch_size),
            )
            yield Chunk(batches, (stop - start) // batch_size, batch_size)


@jax.jit(static_argnums=(4, 5, 6))
def _take(
    images: jax.Array,
    labels: jax.Array,
    order: jax.Array,
    start: int,
    length: int,
    batch_size: int,
    sharding: NamedSharding | None,
) -> dict[str, jax.Array]:
    # The last chunk may reach past the end; what it takes there is never trained on.
    positions = jnp.minimum(start + jnp.arange(length * batch_size), order.size - 1)
    indices = order[positions].reshape(length, batch_size)
    batches = {"image": images[indices], "label": labels[indices]}
    return batches if sharding is None else jax.lax.with_sharding_constraint(batches, sharding)


class StreamFeed:
    """Reads chunks from memory-mapped arrays in background threads and sends them ahead of use.

    The device holds at most three chunks at a time, whatever the size of the data set. A process
    reads only the images that its own devices need, its rows of each batch.
    """

    def __init__(
        self, split: Split, batch_size: int, key: jax.Array, placement: Placement = ONE_DEVICE
    ) -> None:
        self._split = split
        self._key = key
        self._placement = placement
        self.plan = Plan(len(split), batch_size, split.images[0].nbytes)

    def epoch(self, epoch: int, first: int = 0, cuts: Container[int] = ()) -> Iterator[Chunk]:
        """Yields the chunks of an epoch, see `Feed`."""
        # Imported here: only this feed needs it, and it takes longer to import than jax.
        import grain

        order = np.asarray(permutation(self._key, epoch, len(self._split)))
        plan = list(self.plan.chunks(first, cuts))

        def read(chunk: int) -> dict[str, np.ndarray]:
            start, _, length, batch_size = plan[chunk]
            positions = np.minimum(start + np.arange(length * batch_size), len(order) - 1)
            rows = self._placement.rows(batch_size)
            indices = order[positions].reshape(length, batch_size)[:, rows]
            return {"image": self._split.images[indices], "label": self._split.labels[indices]}

        loader = (
            grain.MapDataset.range(len(plan))
            .map(read)
            .to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))
        )
        ahead: Chunk | None = None
        for (start, stop, _, batch_size), arrays in zip(plan, loader, strict=True):
            # Sending is asynchronous: the next chunk travels while this one is trained on.
            batches = self._placement.send(arrays, batch_size)
            sent = Chunk(batches, (stop - start) // batch_size, batch_size)
            if ahead is not None:
                yield ahead
            ahead = sent
        if ahead is not None:
            yield ahead
