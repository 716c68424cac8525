"""The command line of a study."""

import dataclasses
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import tyro
from tyro import conf

from jaxcnn.cli.console import echo_source_files, ending_on_errors, make_echo
from jaxcnn.cli.devices import DeviceFlags
from jaxcnn.cli.flags import DataFlags
from jaxcnn.cli.values import check_range, replace_fields, trust_optimizers
from jaxcnn.errors import UserError, as_path
from jaxcnn.recipes import named, optimizer_defaults
from jaxcnn.recipes.problems import PROBLEMS
from jaxcnn.recipes.recipe import NetworkName, RecipeName

if TYPE_CHECKING:
    from rich.console import Console

    from jaxcnn.study.runs import Run
    from jaxcnn.study.specification import Study


@dataclass(frozen=True)
class StudyFlags:
    """Compares optimizers, each at its best learning rate.

    That is found on a part of the training images; then all of them are trained on, and the test
    images scored once. The same command resumes a study that was stopped.
    """

    optimizers: Annotated[tuple[str, ...], conf.arg(metavar="NAME ...")] = (
        "sgd",
        "adamw",
        "muon",
        "lion",
    )
    """Any of optax and optax.contrib, soap, or module:factory for your own."""
    learning_rates: Annotated[tuple[str, ...], conf.arg(metavar="RATE ...")] = ("default",)
    """To try with every optimizer: numbers, ranges like 1e-4:1:log10 (times 10 from 1e-4 to 1), or
    default (each optimizer's own, times 0.1, 0.3, 1, 3 and 10)."""
    seeds: int = 8
    """Runs at the best learning rate, on all training images."""
    tune_seeds: int = 2
    """Runs at every learning rate."""
    network: Annotated[str, conf.arg(metavar="mnist|cifar10|MODULE:CLASS")] = "mnist"
    """Which network, and its data set unless --data names another; or a Flax module of yours, with
    the recipe and the data set of cifar10 if --data is cifar10, else of mnist."""
    network_args: Annotated[
        tuple[str, ...], conf.arg(metavar="KEY=VALUE ...", help_behavior_hint="(default: none)")
    ] = ()
    """Arguments of your network."""
    recipe: RecipeName = "fast"
    """Where everything else comes from."""
    epochs: int = 5
    """Passes over the training images."""
    batch_size: int = 0
    """Images a step; 0 for the recipe's."""
    validation: int = 5000
    """Training images held out for tuning."""
    target: float = 0.0
    """Validation accuracy whose time is reported, 0..1; 0 for 0.98 (mnist) or 0.7 (cifar10)."""
    chunk: int = 0
    """Runs at once in one program; 0 for what suits the device."""
    source: Annotated[str, conf.arg(name="data", metavar="auto|synthetic|NAME|PATH")] = "auto"
    """As of an experiment: the network's own data set where it is available, else a synthetic one
    (auto); the synthetic one; a data set by its name in TFDS; or a folder or .npz file of yours."""
    workdir: Annotated[
        str, conf.arg(metavar="DIR", help_behavior_hint="(default: runs/study-NETWORK)")
    ] = ""
    """Where results go."""
    join: Annotated[
        tuple[str, ...], conf.arg(metavar="DIR ...", help_behavior_hint="(default: none)")
    ] = ()
    """Join finished studies of different optimizers, whose workdirs these are, into --workdir. All
    else is taken from the studies."""
    data: DataFlags = field(default_factory=DataFlags)
    devices: DeviceFlags = field(default_factory=DeviceFlags)

    @property
    def problem(self) -> NetworkName:
        """Whose recipe and data set are used where no others are named."""
        if self.network in get_args(NetworkName):
            return cast("NetworkName", self.network)
        return "cifar10" if self.source == "cifar10" else "mnist"


@dataclass(frozen=True)
class _JoinFlags:
    """The only flags that go together with --join, and --join."""

    join: tuple[str, ...] = ()
    workdir: str = ""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a study from its command line and ends the process on an error.

    Args:
        argv: the arguments; those of the process if None.

    Raises:
        SystemExit: with status 2 after a mistake of the user's, 130 after Ctrl-C.
    """
    with ending_on_errors("study"):
        argv = sys.argv[1:] if argv is None else argv
        flags = parse_study_flags(argv)
        trust_optimizers(flags.optimizers)
        command = shlex.join([Path(sys.executable).name, sys.argv[0], *argv])
        run_study_flags(flags, command)


def parse_study_flags(argv: Sequence[str]) -> StudyFlags:
    """Reads the flags.

    Raises:
        UserError: a flag is unknown or its value is not one that it takes.
    """
    flags = tyro.cli(StudyFlags, default=StudyFlags(), args=argv)
    if flags.join:
        _check_join(argv)
    check_range("--seeds", flags.seeds, 1, 10_000)
    check_range("--tune-seeds", flags.tune_seeds, 1, 10_000)
    if not 0 <= flags.target <= 1:
        raise UserError(f"--target takes a number from 0 to 1, got {flags.target}")
    if ":" not in flags.network and flags.network != flags.problem:
        raise UserError(
            f"--network takes mnist, cifar10 or module:Class for your own, got {flags.network!r}"
        )
    if not flags.optimizers:
        raise UserError("--optimizers takes at least one name")
    if len(set(flags.optimizers)) < len(flags.optimizers):
        raise UserError("--optimizers: each name once")
    for name in flags.optimizers:
        try:
            optimizer_defaults.get(name)
        except ValueError as error:
            raise UserError(f"--optimizers: {error}") from None
    return flags


def _check_join(argv: Sequence[str]) -> None:
    """Refuses flags that --join cannot take into account."""
    flags, rest = tyro.cli(_JoinFlags, args=argv, return_unknown_args=True)
    if given := [argument.split("=")[0] for argument in rest if argument.startswith("--")]:
        raise UserError(f"--join takes all else from the studies: leave out {', '.join(given)}")
    if not flags.workdir:
        raise UserError("--join takes --workdir too, the folder of the joined study")


def run_study_flags(flags: StudyFlags, command: str = "") -> None:
    """Trains the missing runs of a study, or joins studies, and writes tables and plots.

    Args:
        flags: as `parse_study_flags` returns them.
        command: that they come from, to be kept in the workdir.

    Raises:
        UserError: the data, the workdir or a value cannot be used.
    """
    # Imported here, so that --help and mistakes answer at once.
    from rich.console import Console

    console = Console(highlight=False)
    if flags.join:
        from jaxcnn.study.join import join_studies

        folder = as_path(flags.workdir)
        study, runs = join_studies([as_path(name) for name in flags.join], folder, command)
        _write(study, runs, folder, console)
    else:
        from jaxcnn.devices import processes

        trained = _train(flags, command, console)
        processes.on_main(_write)(*trained, console)


def _train(flags: StudyFlags, command: str, console: "Console") -> "tuple[Study, list[Run], Path]":
    """Trains the missing runs; returns the study, all its runs and its workdir."""
    from jaxcnn.cli.network import check_network, named_network
    from jaxcnn.cli.progress import StudyProgress
    from jaxcnn.data.own_data import normalized
    from jaxcnn.devices import processes
    from jaxcnn.devices.mesh import Placement
    from jaxcnn.storage import compilation
    from jaxcnn.study.learning_rates import parse_rates
    from jaxcnn.study.specification import Study
    from jaxcnn.study.study import run_study
    from jaxcnn.train import doctor
    from jaxcnn.train.setup import check_recipe

    changes = {"epochs": flags.epochs}
    if flags.batch_size:
        changes["batch_size"] = flags.batch_size
    own = "" if flags.network == flags.problem else flags.network
    model = named_network(own, flags.network_args)
    recipe = replace_fields(named.recipe(flags.problem, flags.recipe), **changes)
    mesh = flags.devices.join(("ensemble", "data"), flags.workdir)
    Placement(mesh).check_batch(recipe.batch_size)
    rates = parse_rates(
        flags.learning_rates,
        flags.optimizers,
        lambda name: recipe.replace(optimizer=name).learning_rate,
    )
    for name in flags.optimizers:
        check_recipe(recipe.replace(optimizer=name))  # mistakes show before any run
    target = flags.target or PROBLEMS[flags.problem].target
    study = Study(recipe, rates, flags.tune_seeds, flags.seeds, flags.validation, target)
    folder = as_path(flags.workdir or f"runs/study-{flags.network.rpartition(':')[2]}")
    echo = make_echo(console)
    if flags.devices.compilation_cache:
        compilation.enable_cache(echo)
    echo_source_files(flags.optimizers, echo)
    doctor.warn(flags.optimizers, echo)
    dataset = flags.data.load(flags.problem, flags.source, echo)
    if model is not None:
        check_network(flags.network, model, recipe, dataset)
    study = dataclasses.replace(study, recipe=normalized(recipe, dataset))
    with processes.noticing_losses():
        runs = run_study(
            study,
            dataset,
            folder,
            chunk=flags.chunk or None,
            mesh=mesh,
            model=model,
            observer=processes.main_only(StudyProgress(console), None),
            command=command,
        )
    return study, runs, folder


def _write(study: "Study", runs: "list[Run]", folder: Path, console: "Console") -> None:
    """Writes the results of a study, and prints its tables."""
    from jaxcnn.storage import atomic
    from jaxcnn.study import comparison
    from jaxcnn.study.plots import write_plots
    from jaxcnn.study.specification import load_specification

    about = load_specification(folder)
    table = (
        f"{comparison.markdown_tables(study, runs)}\n"
        f"{about['dataset']} {about['dataset_version']}, "
        f"{study.recipe.epochs} epochs at batch {study.recipe.batch_size}, on "
        f"{'; and on '.join(about['machines'])}\n"
    )
    for name, text in (("table.md", table), ("curves.csv", comparison.curves_csv(runs))):
        atomic.write(folder / name, text.encode())
    write_plots(study, runs, folder)
    console.print(table, soft_wrap=True, markup=False)
    console.print(f"results: {folder}", soft_wrap=True, markup=False)
