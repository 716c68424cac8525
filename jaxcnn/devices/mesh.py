"""Meshes and shardings: how the arrays of a run are split over many devices.

Batches are split over the mesh axis `data`, the members of an ensemble over `ensemble`; all other
arrays are replicated. The compiler inserts the sums over devices that the gradient and BatchNorm's
statistics need, so a step on a mesh computes what one device computes from the same global batch.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn.devices.keys import unwrap_key, wrap_key
from jaxcnn.errors import UserError

AxisName = Literal["data", "ensemble"]
# The last axis varies fastest, so that the devices of a process are neighbors along `data`.
_AXES: tuple[AxisName, ...] = ("ensemble", "data")


def parse_mesh(devices: int, mesh: str, axes: Sequence[AxisName]) -> dict[str, int] | None:
    """Reads the flags `--devices` and `--mesh`.

    Args:
        devices: size of the first axis; 0 if not given.
        mesh: sizes as in "data=4,ensemble=2"; "" if not given.
        axes: that the command has.

    Returns:
        The size of each axis that was named, or None if neither flag was given.

    Raises:
        UserError: the flags cannot be read.
    """
    if devices < 0 or (devices and mesh):
        raise UserError(
            f"--devices takes a number of devices from 1, and --mesh can be given instead, got "
            f"{devices}{f' and {mesh}' if mesh else ''}"
        )
    if devices:
        return {axes[0]: devices}
    if not mesh:
        return None
    sizes: dict[str, int] = {}
    for part in mesh.split(","):
        match = re.fullmatch(r"([a-z]+)=([1-9][0-9]{0,5})", part.strip())
        if not match or match[1] not in axes or match[1] in sizes:
            form = ",".join(f"{name}=2" for name in axes)
            hint = ""
            if match and match[1] == "ensemble":
                hint = " (one run has no ensemble; a study, experiments/optimizers.py, has)"
            raise UserError(f"--mesh takes sizes of axes as in {form}, got {mesh!r}{hint}")
        sizes[match[1]] = int(match[2])
    return sizes


def make_mesh(axes: Mapping[str, int]) -> Mesh:
    """Makes a mesh of the first devices.

    Args:
        axes: sizes of "data" and "ensemble"; 1 for one that is missing.

    Raises:
        UserError: there are fewer devices, or the mesh leaves out devices of several processes.
    """
    shape = [axes.get(name, 1) for name in _AXES]
    needed, there = int(np.prod(shape)), jax.device_count()
    asked = ",".join(f"{name}={size}" for name, size in axes.items())
    if needed > there:
        hint = ""
        if jax.default_backend() == "cpu":
            hint = (
                f", or XLA_FLAGS=--xla_force_host_platform_device_count={needed} to simulate them"
            )
        raise UserError(
            f"a mesh of {asked} takes {needed} devices and there are {there}: give a smaller "
            f"--mesh or --devices{hint}"
        )
    if needed < there and jax.process_count() > 1:
        raise UserError(
            f"a mesh of {asked} takes {needed} of the {there} devices that "
            f"{jax.process_count()} processes have: give sizes that take all of them"
        )
    return Mesh(np.array(jax.devices()[:needed]).reshape(shape), _AXES)


def describe_mesh(mesh: Mesh) -> str:
    """Returns a mesh as text, for example "mesh data=8 of 2 processes"."""
    sizes = ",".join(f"{name}={size}" for name, size in mesh.shape.items() if size > 1)
    many = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"mesh {sizes or 'data=1'}{many}"


@dataclass(frozen=True)
class Placement:
    """The shardings of a run's arrays on a mesh, and what puts arrays there and takes them back.

    In shapes, K is a number of batches, B the global batch size, E the number of members.

    Attributes:
        mesh: of `make_mesh`, or None for jax's default device.
    """

    mesh: Mesh | None = None

    def size(self, axis: AxisName) -> int:
        """Returns the number of devices along an axis."""
        return 1 if self.mesh is None else self.mesh.shape[axis]

    def check_batch(self, batch_size: int) -> None:
        """Refuses a batch that does not divide over the devices along "data".

        Raises:
            UserError: it does not.
        """
        data = self.size("data")
        if batch_size % data:
            below, above = batch_size // data * data, -(-batch_size // data) * data
            raise UserError(
                f"--batch-size {batch_size} does not divide over {data} devices: take "
                f"{f'{below} or ' if below else ''}{above}, or another --mesh"
            )

    def model(self, model: nn.Module) -> nn.Module:
        """Returns the network in the form that trains on sharded batches.

        The stages that train on CPU process a batch in slices, and would fetch each slice from the
        device that holds it; layer by layer, each device processes its own part.
        """
        if self.size("data") > 1 and hasattr(model, "staged"):
            return model.clone(staged=False)
        return model

    @property
    def replicated(self) -> NamedSharding | None:
        """Sharding that replicates an array on every device; None without a mesh."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())

    def batches(self, batch_size: int) -> NamedSharding | None:
        """Sharding for [K, B, ...] that splits B over the data axis; None without a mesh.

        A batch size that does not divide, as the last one of an epoch may not, is replicated:
        padding would change BatchNorm's statistics.
        """
        if self.mesh is None:
            return None
        divides = batch_size % self.size("data") == 0
        return NamedSharding(self.mesh, PartitionSpec(None, "data") if divides else PartitionSpec())

    @property
    def members(self) -> NamedSharding | None:
        """Sharding for [E, ...] that splits E over the ensemble axis; None without a mesh."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec("ensemble"))

    def shard_members(self, tree: Any) -> Any:
        """Puts arrays [E, ...], the same in every process, on the devices of their members.

        Those that are there already stay there.
        """
        members = self.members
        if members is None or jax.process_count() == 1:
            return jax.device_put(tree, members)

        def put(leaf: Any) -> jax.Array:
            there = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
            return leaf if there else _put(leaf, members)

        return jax.tree.map(put, tree)

    def gather_members(self, tree: Any) -> Any:
        """Returns arrays [E, ...] from the devices of their members as NumPy arrays."""
        if jax.process_count() == 1:
            return jax.device_get(tree)
        return multihost_utils.process_allgather(tree, tiled=True)

    def over_members(self, function: Callable[..., Any], mapped: int) -> Callable[..., Any]:
        """Makes each device along "ensemble" call a function on its own members.

        Args:
            function: of arrays [E, ...] first, and of others.
            mapped: number of arguments of the first kind.
        """
        ours = PartitionSpec("ensemble")

        def call(*args: Any) -> Any:
            specs = (ours,) * mapped + (PartitionSpec(),) * (len(args) - mapped)
            return jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=specs,
                out_specs=ours,
                axis_names={"ensemble"},
                check_vma=False,
            )(*args)

        return call

    def shard_batch(self, indices: jax.Array) -> jax.Array:
        """Shards the indices of a batch's images, int32[B], and so the batch, over "data"."""
        if self.size("data") == 1 or indices.size % self.size("data"):
            return indices
        assert self.mesh is not None
        return jax.lax.with_sharding_constraint(indices, PartitionSpec("data"))

    def rows(self, batch_size: int) -> slice:
        """Returns the range of positions in a batch that the devices of this process need."""
        sharding = self.batches(batch_size)
        if sharding is None:
            return slice(0, batch_size)
        parts = sharding.addressable_devices_indices_map((1, batch_size)).values()
        bounds = [part[1].indices(batch_size) for part in parts if part is not None]
        return slice(min(first for first, *_ in bounds), max(last for _, last, _ in bounds))

    def send(self, arrays: Mapping[str, np.ndarray], batch_size: int) -> dict[str, jax.Array]:
        """Sends batches to the devices, without waiting.

        Args:
            arrays: [K, b, ...], the b images of each batch that `rows` selects.
            batch_size: B.

        Returns:
            [K, B, ...], sharded as `batches` says.
        """
        sharding = self.batches(batch_size)
        if sharding is None:
            return jax.device_put(dict(arrays))
        return {
            name: jax.make_array_from_process_local_data(
                sharding, array, (array.shape[0], batch_size, *array.shape[2:])
            )
            for name, array in arrays.items()
        }

    def replicate(self, tree: Any) -> Any:
        """Puts a pytree of arrays, the same in every process, on every device."""
        replicated = self.replicated
        if replicated is None:
            return tree
        return jax.tree.map(lambda leaf: _put(leaf, replicated), tree)

    def fetch(self, tree: Any) -> Any:
        """Returns replicated arrays of a pytree as arrays of one device."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Shards an array that is the same in every process, which `jax.device_put` would check."""
    array = np.asarray(unwrap_key(leaf))
    sent = jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
    return wrap_key(sent, leaf)


ONE_DEVICE = Placement()
