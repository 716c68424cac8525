"""Meshes: how the arrays of a run lie on many devices.

Batches are cut along the axis `data`, the members of an ensemble along `ensemble`; all else is on
every device. The compiler adds the sums over devices that the gradient and BatchNorm's statistics
need, so a step on a mesh is that of one device on the same global batch.
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
# The last one varies fastest, so that a process has neighbours along `data`.
_AXES: tuple[AxisName, ...] = ("ensemble", "data")


def parse_mesh(devices: int, mesh: str, axes: Sequence[AxisName]) -> dict[str, int] | None:
    """Reads the flags `--devices` and `--mesh`.

    Args:
        devices: how many along the first axis; 0 if not given.
        mesh: as in "data=4,ensemble=2"; "" if not given.
        axes: that the command has.

    Returns:
        The size of every axis that was named, or None where neither flag was given.

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
    """Makes a mesh of the first devices there are.

    Args:
        axes: sizes of "data" and "ensemble"; 1 for one that is missing.

    Raises:
        UserError: there are fewer devices, or devices of other processes would be left out.
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
    """Returns what a mesh is, "mesh data=8 of 2 processes" say."""
    sizes = ",".join(f"{name}={size}" for name, size in mesh.shape.items() if size > 1)
    many = f" of {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"mesh {sizes or 'data=1'}{many}"


@dataclass(frozen=True)
class Placement:
    """Where the arrays of a run lie.

    Attributes:
        mesh: of `make_mesh`, or None for jax's default device.
    """

    mesh: Mesh | None = None

    def size(self, axis: AxisName) -> int:
        """Returns the number of devices along an axis."""
        return 1 if self.mesh is None else self.mesh.shape[axis]

    def check_batch(self, batch_size: int) -> None:
        """Refuses a batch that cannot be cut into equal parts.

        Raises:
            UserError: it cannot.
        """
        data = self.size("data")
        if batch_size % data:
            below, above = batch_size // data * data, -(-batch_size // data) * data
            raise UserError(
                f"--batch-size {batch_size} does not divide over {data} devices: take "
                f"{f'{below} or ' if below else ''}{above}, or another --mesh"
            )

    def model(self, model: nn.Module) -> nn.Module:
        """Returns a network that trains on cut batches.

        The stages that train on CPU work through a batch in slices, which would fetch every slice
        from the device that has it; layer by layer a batch stays where it is.
        """
        if self.size("data") > 1 and hasattr(model, "staged"):
            return model.clone(staged=False)
        return model

    @property
    def everywhere(self) -> NamedSharding | None:
        """Of an array that every device has the whole of; None without a mesh."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec())

    def batches(self, batch_size: int) -> NamedSharding | None:
        """Of [K, B, ...], K batches of B pictures; None without a mesh.

        An epoch's last batch can be smaller. Where it does not divide, every device takes all of
        it: padding would change BatchNorm's statistics.
        """
        if self.mesh is None:
            return None
        whole = batch_size % self.size("data") != 0
        return NamedSharding(self.mesh, PartitionSpec() if whole else PartitionSpec(None, "data"))

    @property
    def members(self) -> NamedSharding | None:
        """Of [E, ...], the arrays of an ensemble; None without a mesh."""
        return None if self.mesh is None else NamedSharding(self.mesh, PartitionSpec("ensemble"))

    def spread(self, tree: Any) -> Any:
        """Puts arrays of [E, ...], the same in every process, on the devices of their members."""
        members = self.members
        if members is None or jax.process_count() == 1:
            return jax.device_put(tree, members)

        def put(leaf: Any) -> jax.Array:
            there = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
            return leaf if there else _put(leaf, members)

        return jax.tree.map(put, tree)

    def collect(self, tree: Any) -> Any:
        """Returns arrays of [E, ...] that lie on the devices of their members as NumPy arrays."""
        if jax.process_count() == 1:
            return jax.device_get(tree)
        return multihost_utils.process_allgather(tree, tiled=True)

    def over_members(self, function: Callable[..., Any], mapped: int) -> Callable[..., Any]:
        """Lets every device along "ensemble" call a function on its own members.

        Args:
            function: of arrays [E, ...] first, and of others.
            mapped: how many arguments are of the first kind.
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

    def cut(self, indices: jax.Array) -> jax.Array:
        """Cuts the positions of a batch's pictures, int32[B], and so the batch, along "data"."""
        if self.size("data") == 1 or indices.size % self.size("data"):
            return indices
        assert self.mesh is not None
        return jax.lax.with_sharding_constraint(indices, PartitionSpec("data"))

    def rows(self, batch_size: int) -> slice:
        """Returns the positions in a batch that this process's devices need."""
        sharding = self.batches(batch_size)
        if sharding is None:
            return slice(0, batch_size)
        parts = sharding.addressable_devices_indices_map((1, batch_size)).values()
        bounds = [part[1].indices(batch_size) for part in parts if part is not None]
        return slice(min(first for first, *_ in bounds), max(last for _, last, _ in bounds))

    def send(self, arrays: Mapping[str, np.ndarray], batch_size: int) -> dict[str, jax.Array]:
        """Sends batches to the devices, without waiting.

        Args:
            arrays: [K, b, ...], of K batches the pictures that `rows` tells.
            batch_size: B.

        Returns:
            [K, B, ...], of which each device has its part.
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
        """Puts a tree of arrays, the same in every process, on every device."""
        everywhere = self.everywhere
        if everywhere is None:
            return tree

        return jax.tree.map(lambda leaf: _put(leaf, everywhere), tree)

    def fetch(self, tree: Any) -> Any:
        """Returns the arrays of a tree that every device has as arrays of one device."""
        if self.mesh is None:
            return tree
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)


def _put(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """Puts an array, the same in every process, on the devices that each part of it is for."""
    numbers = np.asarray(unwrap_key(leaf))
    sent = jax.make_array_from_callback(numbers.shape, sharding, lambda index: numbers[index])
    return wrap_key(sent, leaf)


ONE_DEVICE = Placement()
