"""The flags of the commands, in groups that each command composes.

Nothing heavy is imported before the flags are parsed, so that `--help` and mistakes answer at once.
"""

import dataclasses
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import tyro
from tyro import conf

from jaxcnn.cli.console import Echo
from jaxcnn.cli.devices import DeviceFlags
from jaxcnn.cli.values import check_range, parse_pairs, replace_fields, trust_optimizers
from jaxcnn.errors import UserError, as_path
from jaxcnn.recipes import named
from jaxcnn.recipes.recipe import NetworkName, Recipe, ScheduleName

if TYPE_CHECKING:
    import flax.linen as nn

    from jaxcnn.data.dataset import Dataset, SourceName
    from jaxcnn.storage.checkpoint import Policy


@conf.configure(conf.OmitArgPrefixes)
@dataclass(frozen=True)
class RecipeFlags:
    """Hyperparameters, see `jaxcnn.recipes.Recipe`. Those not given are the recipe's."""

    name: Annotated[str, conf.arg(name="recipe", metavar="reference|fast|best|sprint|FILE")]
    """Where the other defaults come from: the original's hyperparameters (reference), the most
    accuracy in minutes (fast), the most accuracy (best), or a user-defined .toml file."""
    epochs: int
    """Passes over the training images; with more of them a run that has ended goes on."""
    batch_size: int
    """Images per step."""
    optimizer: Annotated[str, conf.arg(metavar="NAME")]
    """Any of optax and optax.contrib, soap, or module:factory for a user-defined one. Another one
    than the recipe's brings its own defaults for the flags below."""
    learning_rate: float
    """Per step, at its peak."""
    optimizer_args: Annotated[tuple[str, ...], conf.arg(metavar="KEY=VALUE ...")]
    """Further arguments of the optimizer, by the names of optax's documentation."""
    weight_decay: float
    """Of kernels; biases and BatchNorm are not decayed."""
    schedule: ScheduleName
    """How the learning rate falls."""
    warmup: float
    """Share of the steps in which the learning rate rises first."""
    clip: float
    """Largest norm of the gradient; 0 for no limit."""
    ema: float
    """Decay per step of the average of the parameters that is evaluated; 0 for no average."""

    @property
    def is_file(self) -> bool:
        """Whether the recipe is a file, which states the normalization too."""
        return is_recipe_file(self.name)

    @classmethod
    def of(cls, name: str, recipe: Recipe) -> "RecipeFlags":
        """Returns the flags that stand for a recipe.

        Args:
            name: the value of --recipe.
            recipe: all other values.
        """
        values = {field.name: getattr(recipe, field.name) for field in dataclasses.fields(cls)[1:]}
        args = tuple(f"{key}={value}" for key, value in recipe.optimizer_args.items())
        return cls(**values | {"name": name, "optimizer_args": args})

    def change(self, recipe: Recipe) -> Recipe:
        """Returns a copy of a recipe with the values of the flags.

        Raises:
            UserError: a value is out of range.
        """
        values = {name: value for name, value in vars(self).items() if name != "name"}
        args = parse_pairs("--optimizer-args", self.optimizer_args)
        values["optimizer_args"] = {**recipe.optimizer_args, **args}
        return replace_fields(recipe, **values)


@conf.configure(conf.OmitArgPrefixes)
@dataclass(frozen=True)
class DataFlags:
    """Folders of the data sets."""

    data_dir: Annotated[
        str, conf.arg(metavar="DIR", help_behavior_hint="(default: TFDS_DATA_DIR, or TFDS's own)")
    ] = ""
    """Where TFDS keeps prepared data sets."""
    archive_dir: Annotated[
        str, conf.arg(metavar="DIR", help_behavior_hint="(default: JAXCNN_ARCHIVE_DIR, or none)")
    ] = ""
    """A folder with the official archives, for machines without network."""
    hold_out: Annotated[float, conf.arg(metavar="SHARE")] = 0.1
    """Share of the images that is held out to test on, where a data set has no test images."""

    def load(self, network: NetworkName, source: str, echo: Echo) -> "Dataset":
        """Loads a data set and warns if it is not the real one.

        Args:
            network: "mnist" or "cifar10", the network that the data set is for.
            source: "auto", "real" or "synthetic", see `jaxcnn.load_data`; the name of a data set;
                or the path of a data set of the user's own.
            echo: prints a line, see `jaxcnn.cli.console.make_echo`.

        Raises:
            UserError: the data is not available.
        """
        from jaxcnn.data.dataset import load_data
        from jaxcnn.data.own_data import load_own
        from jaxcnn.data.tfds import VERSIONS
        from jaxcnn.devices import processes

        if not 0 < self.hold_out < 1:
            raise UserError(
                f"--hold-out takes a number between 0 and 1, got {self.hold_out}: give a share"
            )
        is_name = source not in ("auto", "real", "synthetic")
        if is_name and source not in VERSIONS and as_path(source).exists():
            shape = named.recipe(network, "fast").image_shape
            return processes.main_first(load_own)(
                source, shape, hold_out=self.hold_out, report=echo
            )
        dataset = processes.main_first(load_data)(
            source if is_name else network,
            source="real" if is_name else cast("SourceName", source),
            data_dir=self.data_dir or None,
            archive_dir=self.archive_dir or None,
            hold_out=self.hold_out,
            report=echo,
        )
        if not dataset.is_real:
            warning = f"NOT THE REAL DATA: {dataset.name}, generated by this package"
            echo(f"*** {warning}, because {dataset.notice} ***", "bold red")
        return dataset


@conf.configure(conf.OmitArgPrefixes)
@dataclass(frozen=True)
class CheckpointFlags:
    """Where a run is saved, how often, and whether it is resumed."""

    workdir: Annotated[
        str, conf.arg(metavar="DIR", help_behavior_hint="(default: a new folder below runs/)")
    ] = ""
    """Where results go."""
    every: Annotated[str, conf.arg(name="checkpoint-every", metavar="N|Nsteps")] = "1"
    """Epochs between two checkpoints, or steps as in 500steps; 0 for one at the end."""
    keep: int = 2
    """Number of latest checkpoints to keep; the best one is kept too."""
    resume: Literal["auto", "never", "must"] = "auto"
    """Resume a run of the same flags that the workdir holds: if there is one, never, or fail
    without."""

    def folder(self, network: NetworkName) -> Path:
        """Returns the workdir: the given one, or a new name in the folder `runs`."""
        return as_path(self.workdir or new_folder(network))

    def policy(self, folder: Path, echo: Echo) -> "Policy":
        """Returns how `jaxcnn.fit` saves and resumes.

        Args:
            folder: of the checkpoints.
            echo: prints a line, see `jaxcnn.cli.console.make_echo`.

        Raises:
            UserError: --checkpoint-every is malformed.
        """
        from jaxcnn.storage.checkpoint import Every, Policy

        return Policy(folder, Every.parse(self.every), self.keep, self.resume, report=echo)


@conf.configure(conf.OmitArgPrefixes)
@dataclass(frozen=True)
class NetworkFlags:
    """A network of your own."""

    name: Annotated[
        str,
        conf.arg(
            name="network", metavar="MODULE:CLASS", help_behavior_hint="(default: the recipe's)"
        ),
    ] = ""
    """A Flax module of yours, or a function that returns one, from images to logits."""
    args: Annotated[
        tuple[str, ...],
        conf.arg(
            name="network-args", metavar="KEY=VALUE ...", help_behavior_hint="(default: none)"
        ),
    ] = ()
    """Its arguments."""

    def make(self) -> "nn.Module | None":
        """Returns the network, or None for the recipe's.

        Raises:
            UserError: see `jaxcnn.cli.network.named_network`.
        """
        from jaxcnn.cli.network import named_network

        return named_network(self.name, self.args)


@dataclass(frozen=True)
class TrainFlags:
    """The flags of an experiment; each network has a subclass."""

    recipe: RecipeFlags
    source: Annotated[str, conf.arg(name="data", metavar="auto|synthetic|NAME|PATH")] = "auto"
    """The network's own data set where it is available, else a synthetic one of its shape (auto);
    the synthetic one; a data set by its name in TFDS, as mnist, cifar10, fashion_mnist, kmnist,
    emnist/letters, cifar100 or svhn_cropped; or your own: a folder with a folder of images for each
    class, or an .npz file."""
    seed: int = 0
    """Of all random numbers; the same seed gives the same run."""
    loss: Annotated[
        str, conf.arg(metavar="MODULE:FUNCTION", help_behavior_hint="(default: cross entropy)")
    ] = ""
    """A user-defined loss, from logits and labels to the loss of each image."""
    log_every: Annotated[int, conf.arg(metavar="N")] = 0
    """Log loss, learning rate and norms every N steps, in steps.jsonl and for TensorBoard; 0 for no
    such log."""
    start: Annotated[
        str,
        conf.arg(name="from", metavar="FILE|WORKDIR", help_behavior_hint="(default: random)"),
    ] = ""
    """Weights to begin with: the workdir of a run, or a .pt or .safetensors file. For another
    number of classes the last layer begins anew."""
    freeze: Annotated[
        tuple[str, ...], conf.arg(metavar="GLOB ...", help_behavior_hint="(default: none)")
    ] = ()
    """Parameters that are not trained, by patterns of their paths such as 'params/conv*'."""
    network: NetworkFlags = NetworkFlags()
    feed: Literal["auto", "device", "stream"] = "auto"
    """Keep the training images on the device, or stream them from the host; same results. Auto
    streams where there are several processes."""
    tta: bool = False
    """Test-time augmentation: also score the average prediction for several views of each test
    image, reported separately."""
    report: Literal["auto", "never"] = "auto"
    """Write a page with figures of the run to the workdir, report.html."""
    data: DataFlags = DataFlags()
    checkpoints: CheckpointFlags = CheckpointFlags()
    devices: DeviceFlags = dataclasses.field(default_factory=DeviceFlags)


@dataclass(frozen=True)
class MnistFlags(TrainFlags):
    """Trains the MNIST network and scores it on all test images."""


@dataclass(frozen=True)
class Cifar10Flags(TrainFlags):
    """Trains the CIFAR-10 network and scores it on all test images."""


_TRAIN_FLAGS: dict[NetworkName, type[TrainFlags]] = {"mnist": MnistFlags, "cifar10": Cifar10Flags}


@dataclass(frozen=True)
class _Defaults:
    """The flags on which the defaults of others depend."""

    recipe: str = "fast"
    optimizer: str = ""


def parse_flags(
    network: NetworkName, argv: Sequence[str] | None = None
) -> tuple[TrainFlags, Recipe]:
    """Parses the flags of an experiment; those not given have the values of the recipe.

    Args:
        network: "mnist" or "cifar10".
        argv: the arguments; those of the process if None.

    Returns:
        The flags, and the recipe with their values.

    Raises:
        UserError: a value is out of range.
        SystemExit: with status 2 and tyro's message on standard error: a flag is unknown or its
            value of another type; with status 0 after --help.
    """
    given, _ = tyro.cli(_Defaults, args=argv, add_help=False, return_unknown_args=True)
    recipe = find_recipe(network, given.recipe)
    if given.optimizer:
        trust_optimizers([given.optimizer])
        recipe = replace_fields(recipe, optimizer=given.optimizer)
    kind = _TRAIN_FLAGS[network]
    flags = tyro.cli(kind, default=kind(RecipeFlags.of(given.recipe, recipe)), args=argv)
    check_range("--keep", flags.checkpoints.keep, 1, 10**6)
    check_range("--seed", flags.seed, 0, 2**32 - 1)
    check_range("--log-every", flags.log_every, 0, 10**9)
    return flags, flags.recipe.change(recipe)


def new_folder(name: str) -> str:
    """Returns a new path in the folder `runs` that begins with a name."""
    # The token: other runs may begin in the same second.
    return f"runs/{name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def is_recipe_file(name: str) -> bool:
    """Whether the value of --recipe is a file's path."""
    return name.endswith(".toml")


def find_recipe(network: NetworkName, name: str) -> Recipe:
    """Returns the recipe of a name or in a file.

    Args:
        network: "mnist" or "cifar10".
        name: the value of --recipe.

    Raises:
        UserError: there is none of that name, or the file is not one.
    """
    is_file = is_recipe_file(name)
    try:
        return named.load_recipe(network, name) if is_file else named.recipe(network, name)
    except ValueError as error:
        raise UserError(f"--recipe: {error}{'' if is_file else ', or a .toml file'}") from None
