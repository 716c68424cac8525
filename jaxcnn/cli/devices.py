"""The flags of devices, processes and kernels, which all training commands have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from tyro import conf

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxcnn.devices.mesh import AxisName


@conf.configure(conf.OmitArgPrefixes)
@dataclass(frozen=True)
class DeviceFlags:
    """Devices, processes and compiled programs."""

    count: Annotated[
        int, conf.arg(name="devices", metavar="N", help_behavior_hint="(default: one)")
    ] = 0
    """Number of devices to train on. Each gets a part of every batch, or in a study some of the
    runs."""
    mesh: Annotated[str, conf.arg(metavar="AXIS=N,...", help_behavior_hint="(default: none)")] = ""
    """The same as a mesh with named axes: data, along which batches are cut, and in a study
    ensemble, along which runs are. Several processes take all their devices by default."""
    processes: Annotated[str, conf.arg(metavar="N|auto")] = "1"
    """Number of processes, on one host or several, all started with the same flags; auto where jax
    recognizes the cluster (SLURM, Open MPI, Kubernetes, TPU pods)."""
    coordinator: Annotated[str, conf.arg(metavar="HOST:PORT", help_behavior_hint="")] = ""
    """Where process 0 listens for the others."""
    process_id: Annotated[int, conf.arg(metavar="K", help_behavior_hint="")] = -1
    """Number of this process, from 0."""
    kernels: Literal["auto", "native", "xla"] = "auto"
    """What computes convolutional layers on CPU: kernels compiled for this processor (native), XLA,
    or the kernels where a C++ compiler is found. Results differ by rounding only."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next start is quick."""

    def join(self, axes: "Sequence[AxisName]", workdir: str) -> "Mesh | None":
        """Connects the processes of a run and makes its mesh.

        Args:
            axes: names that the mesh of this command can have; --devices counts along the first.
            workdir: of the command, "" if not given.

        Returns:
            The mesh, or None for jax's default device.

        Raises:
            UserError: the flags contradict each other, there are too few devices, the kernels that
                are asked for are not available, or the other processes cannot be reached in time.
        """
        from jaxcnn.devices import processes
        from jaxcnn.devices.mesh import make_mesh, parse_mesh
        from jaxcnn.networks.cpu import library

        sizes = parse_mesh(self.count, self.mesh, axes)
        processes.join(self.processes, self.coordinator, self.process_id)
        if not workdir:
            processes.require_one(
                "several processes have one workdir: give --workdir, the same to all"
            )
        sizes = sizes or processes.default_axes(axes[0])
        if self.kernels != "auto":
            library.choose(self.kernels)
        library.in_use()  # compiles them now, before anything is timed or drawn
        return make_mesh(sizes) if sizes else None
