"""The flags of the experiments."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro import conf

from jaxcnn.errors import UserError
from jaxcnn.recipes import named
from jaxcnn.recipes.named import load_recipe
from jaxcnn.recipes.recipe import NetworkName, Recipe, ScheduleName

if TYPE_CHECKING:
    from jaxcnn.data.dataset import Dataset
    from jaxcnn.devices.mesh import AxisName
from jaxcnn.cli.console import call_tyro, parse_pairs, replace_fields


@dataclass(frozen=True)
class Flags:
    """Trains the network and scores it on the whole test set."""

    recipe: Annotated[str, conf.arg(metavar="reference|fast|best|FILE")] = "fast"
    """Where the other defaults come from: the original's hyperparameters (reference), the most
    accuracy in minutes (fast), the most accuracy (best), or a .toml file of your own."""
    epochs: int = 1
    """Passes over the training images."""
    batch_size: int = 1
    """Images a step."""
    optimizer: Annotated[str, conf.arg(metavar="NAME")] = "sgd"
    """Any of optax and optax.contrib, or module:factory for your own. Another one than the recipe's
    brings its own defaults for the flags below."""
    learning_rate: float = 1.0
    """Per step, at its peak."""
    optimizer_args: Annotated[tuple[str, ...], conf.arg(metavar="KEY=VALUE ...")] = ()
    """Further arguments of the optimizer, by the names of optax's documentation."""
    weight_decay: float = 0.0
    """Of kernels; biases and BatchNorm are left alone."""
    schedule: ScheduleName = "constant"
    """How the learning rate falls."""
    warmup: float = 0.0
    """Share of the steps in which it rises first."""
    clip: float = 0.0
    """The largest norm that the gradient may have; 0 for any."""
    ema: float = 0.0
    """Decay a step of the average of the parameters that is evaluated; 0 for no average."""
    seed: int = 0
    """Of everything random; the same seed gives the same run."""
    data: Literal["auto", "real", "synthetic"] = "auto"
    """The real data or nothing, or a synthetic stand-in of the same shape; auto takes the real
    data where it can be had."""
    data_dir: Annotated[
        str, conf.arg(metavar="DIR", help_behavior_hint="(default: TFDS_DATA_DIR, or TFDS's own)")
    ] = ""
    """Where TFDS keeps prepared data sets."""
    archive_dir: Annotated[
        str, conf.arg(metavar="DIR", help_behavior_hint="(default: JAXCNN_ARCHIVE_DIR, or none)")
    ] = ""
    """A folder with the official archives, for machines without network."""
    workdir: Annotated[
        str, conf.arg(metavar="DIR", help_behavior_hint="(default: a new folder below runs/)")
    ] = ""
    """Where results go."""
    checkpoint_every: Annotated[str, conf.arg(metavar="N|Nsteps")] = "1"
    """Epochs between two checkpoints, or steps as in 500steps; 0 for one at the end."""
    keep: int = 2
    """Latest checkpoints to keep; the best one stays too."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Go on with a run of the same flags that the workdir holds: if there is one, never, or fail
    without."""
    tta: bool = False
    """Test-time augmentation: also score the average answer for several views of each test image,
    a figure of its own."""
    report: Literal["auto", "never"] = "auto"
    """Leave a page with pictures of the run in the workdir, report.html."""
    feed: Literal["auto", "device", "stream"] = "auto"
    """Keep the training images on the device, or stream them from the host; same results. Auto
    streams where there are several processes."""
    devices: Annotated[int, conf.arg(metavar="N", help_behavior_hint="(default: one)")] = 0
    """Train on so many devices, each with its part of every batch."""
    mesh: Annotated[str, conf.arg(metavar="data=N", help_behavior_hint="(default: none)")] = ""
    """The same as a mesh with named axes; of several processes all devices, by default."""
    processes: Annotated[str, conf.arg(metavar="N|auto")] = "1"
    """Processes of this run, on one host or several, all started with the same flags; auto where
    jax recognises the cluster (SLURM, Open MPI, Kubernetes, TPU pods)."""
    coordinator: Annotated[str, conf.arg(metavar="HOST:PORT", help_behavior_hint="")] = ""
    """Where process 0 listens for the others."""
    process_id: Annotated[int, conf.arg(metavar="K", help_behavior_hint="")] = -1
    """Which of the processes this one is, from 0."""
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next start is quick."""


@dataclass(frozen=True)
class MnistFlags(Flags):
    """Trains the MNIST network and scores it on all 10,000 test images."""

    data: Literal["auto", "mnist", "synthetic"] = "auto"  # type: ignore[assignment]
    """The real data or nothing (mnist), a synthetic stand-in of the same shape (synthetic), or the
    real data where it can be had (auto)."""


@dataclass(frozen=True)
class Cifar10Flags(Flags):
    """Trains the CIFAR-10 network and scores it on all 10,000 test images."""

    data: Literal["auto", "cifar10", "synthetic"] = "auto"  # type: ignore[assignment]
    """The real data or nothing (cifar10), a synthetic stand-in of the same shape (synthetic), or
    the real data where it can be had (auto)."""


FLAGS: dict[str, type[Flags]] = {"mnist": MnistFlags, "cifar10": Cifar10Flags}


def parse_flags(network: NetworkName, argv: Sequence[str]) -> tuple[Flags, Recipe]:
    """Reads the flags; those not given have the values of the recipe.

    Raises:
        UserError: a flag is unknown or its value is not one that it takes.
    """
    defaults = named.recipe(network, "fast")
    # The defaults of the other flags, and so what --help shows, depend on these two.
    for name in ("recipe", "optimizer"):
        value = _peek(f"--{name}", argv)
        if name == "recipe" and value:
            defaults = _find_recipe(network, value)
        elif name == "optimizer" and value:
            defaults = replace_fields(defaults, optimizer=value)
    kind = FLAGS[network]
    default = kind(
        recipe=_peek("--recipe", argv) or "fast",
        epochs=defaults.epochs,
        batch_size=defaults.batch_size,
        optimizer=defaults.optimizer,
        learning_rate=defaults.learning_rate,
        optimizer_args=tuple(f"{key}={value}" for key, value in defaults.optimizer_args.items()),
        weight_decay=defaults.weight_decay,
        schedule=defaults.schedule,
        warmup=defaults.warmup,
        clip=defaults.clip,
        ema=defaults.ema,
    )
    flags = call_tyro(kind, default, argv)
    if not 1 <= flags.keep <= 10**6:
        raise UserError(f"--keep takes a whole number from 1 to 1000000, got {flags.keep}")
    if not 0 <= flags.seed < 2**32:
        raise UserError(f"--seed takes a whole number from 0 to 4294967295, got {flags.seed}")
    changed = (
        "epochs batch_size optimizer learning_rate weight_decay schedule warmup clip ema".split()
    )
    recipe = replace_fields(
        defaults,
        **{field: getattr(flags, field) for field in changed},
        optimizer_args={
            **defaults.optimizer_args,
            **parse_pairs("--optimizer-args", flags.optimizer_args),
        },
    )
    return flags, recipe


def _find_recipe(network: NetworkName, value: str) -> Recipe:
    """Returns the recipe of a name or in a file."""
    is_file = value.endswith(".toml")
    try:
        return load_recipe(network, value) if is_file else named.recipe(network, value)
    except ValueError as error:
        raise UserError(f"--recipe: {error}{'' if is_file else ', or a .toml file'}") from None


def join_processes(flags: Any, axes: "Sequence[AxisName]") -> dict[str, int] | None:
    """Makes this process one of several where the flags of a command say so.

    Args:
        flags: with `processes`, `coordinator`, `process_id`, `workdir`, `devices` and `mesh`.
        axes: of a mesh that the command has.

    Returns:
        The mesh's axes, see `jaxcnn.devices.mesh.make_mesh`. Where the flags name none: all devices
        along the first axis if there are several processes, or None.

    Raises:
        UserError: the flags do not go together, or the other processes are not there in time.
    """
    import jax

    from jaxcnn.devices import processes
    from jaxcnn.devices.mesh import parse_mesh

    sizes = parse_mesh(flags.devices, flags.mesh, axes)
    processes.join(flags.processes, flags.coordinator, flags.process_id)
    if processes.count() > 1 and not flags.workdir:
        raise UserError("several processes have one workdir: give --workdir, the same to all")
    if processes.count() > 1 and not sizes:
        return {axes[0]: jax.device_count()}
    return sizes


def load_dataset(network: NetworkName, flags: Any, say: Callable[..., None]) -> "Dataset":
    """Loads the data set of a command, and says loudly if it is not the real one.

    Args:
        network: whose data set.
        flags: with `data`, `data_dir` and `archive_dir`.
        say: prints a line, in a style if there is a second argument.

    Raises:
        UserError: the data cannot be had.
    """
    from jaxcnn.data.dataset import load_data

    dataset = load_data(
        network,
        source=flags.data if flags.data in ("auto", "synthetic") else "real",
        data_dir=flags.data_dir or None,
        archive_dir=flags.archive_dir or None,
        report=say,
    )
    if not dataset.is_real:
        warning = f"NOT THE REAL DATA: {dataset.name}, drawn by this package"
        say(f"*** {warning}, because {dataset.notice} ***", "bold red")
    return dataset


def _peek(flag: str, argv: Sequence[str]) -> str:
    """Returns the last value given to a flag, or nothing."""
    value = ""
    for position, argument in enumerate(argv):
        if argument == flag and position + 1 < len(argv):
            value = argv[position + 1]
        elif argument.startswith(f"{flag}="):
            value = argument.removeprefix(f"{flag}=")
    return value
