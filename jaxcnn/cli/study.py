"""The command line of a study."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro import conf

from jaxcnn.cli.console import echo_source_files, ending_on_errors, make_echo
from jaxcnn.cli.flags import DataFlags, DeviceFlags
from jaxcnn.cli.values import check_range, replace_fields, trust_optimizers
from jaxcnn.errors import UserError, as_path
from jaxcnn.recipes import named, optimizer_defaults
from jaxcnn.recipes.recipe import NetworkName, RecipeName
from jaxcnn.study.shards import Shard

if TYPE_CHECKING:
    from rich.console import Console

    from jaxcnn.study.runs import Run, Study
from jaxcnn.cli.progress import make_study_observer


@dataclass(frozen=True)
class StudyFlags:
    """Compares optimizers, each at its best learning rate.

    That is found on a part of the training images; then all of them are trained on, and the test
    images scored once. The same command goes on with a study that was stopped.
    """

    optimizers: Annotated[tuple[str, ...], conf.arg(metavar="NAME ...")] = (
        "sgd",
        "adamw",
        "muon",
        "lion",
    )
    """Any of optax and optax.contrib, or module:factory for your own."""
    learning_rates: Annotated[tuple[str, ...], conf.arg(metavar="RATE ...")] = ("default",)
    """To try with every optimizer: numbers, ranges like 1e-4:1:log10 (times 10 from 1e-4 to 1), or
    default (each optimizer's own, times 0.1, 0.3, 1, 3 and 10)."""
    seeds: int = 8
    """Runs at the best learning rate, on all training images."""
    tune_seeds: int = 2
    """Runs at every learning rate."""
    network: NetworkName = "mnist"
    """Which network and data set."""
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
    source: Annotated[Literal["auto", "real", "synthetic"], conf.arg(name="data")] = "auto"
    """The real data or nothing, a synthetic data set, or the real data where it is available
    (auto)."""
    workdir: Annotated[
        str, conf.arg(metavar="DIR", help_behavior_hint="(default: runs/study-NETWORK)")
    ] = ""
    """Where results go."""
    shard: Annotated[str, conf.arg(metavar="K/N", help_behavior_hint="(default: all)")] = ""
    """Do only the K-th of N parts, in a folder of its own in the workdir. A part is all runs of
    some of the optimizers, so it waits for no other; all else is the same for all parts."""
    merge: Annotated[
        tuple[str, ...], conf.arg(metavar="DIR ...", help_behavior_hint="(default: none)")
    ] = ()
    """Join finished shards instead, whose folders these are, or lie in these. All else is taken
    from the shards, but --workdir can be given too (default: where the shards lie)."""
    data: DataFlags = field(default_factory=DataFlags)
    devices: DeviceFlags = field(default_factory=DeviceFlags)


@dataclass(frozen=True)
class _MergeFlags:
    """The flags that --merge can be given with."""

    merge: tuple[str, ...] = ()
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
        run_flags(flags, command)


def parse_study_flags(argv: Sequence[str]) -> StudyFlags:
    """Reads the flags.

    Raises:
        UserError: a flag is unknown or its value is not one that it takes.
    """
    flags = tyro.cli(StudyFlags, default=StudyFlags(), args=argv)
    if flags.merge:
        _, rest = tyro.cli(_MergeFlags, args=argv, return_unknown_args=True)
        if given := [argument.split("=")[0] for argument in rest if argument.startswith("--")]:
            raise UserError(
                f"--merge takes all else from the shards: leave {', '.join(given)} away"
            )
    check_range("--seeds", flags.seeds, 1, 10_000)
    check_range("--tune-seeds", flags.tune_seeds, 1, 10_000)
    if not 0 <= flags.target <= 1:
        raise UserError(f"--target takes a number from 0 to 1, got {flags.target}")
    if not flags.optimizers:
        raise UserError("--optimizers takes at least one name")
    if len(set(flags.optimizers)) < len(flags.optimizers):
        raise UserError("--optimizers: each name once")
    for name in flags.optimizers:
        try:
            optimizer_defaults.get(name)
        except ValueError as error:
            raise UserError(f"--optimizers: {error}") from None
    if flags.shard:
        Shard.parse(flags.shard).optimizers(flags.optimizers)
    return flags


def study_workdir(flags: StudyFlags) -> Path:
    """Returns where the results of a study go."""
    return as_path(flags.workdir or f"runs/study-{flags.network}")


def run_flags(flags: StudyFlags, command: str = "") -> None:
    """Trains what is missing, or joins shards, and writes the tables and pictures.

    Args:
        flags: as `parse` gives them.
        command: that they stand for, to be kept in the workdir.

    Raises:
        UserError: the data, the workdir or a value cannot be used.
    """
    # Imported here, so that --help and mistakes answer at once.
    from rich.console import Console

    console = Console(highlight=False)
    if flags.merge:
        _write(*_merge(flags, command), console)
    else:
        from jaxcnn.devices import processes

        trained = _train(flags, command, console)
        processes.from_main(lambda: _write(*trained, console))


def _merge(flags: StudyFlags, command: str) -> "tuple[Study, list[Run], Path]":
    """Joins shards; returns the study, its runs and where they are."""
    from jaxcnn.study import merge

    folders = merge.find([as_path(folder) for folder in flags.merge])
    parents = {folder.resolve().parent for folder in folders}
    if not flags.workdir and len(parents) > 1:
        raise UserError("--merge of shards that lie in several folders takes --workdir too")
    out = as_path(flags.workdir) if flags.workdir else folders[0].parent
    plan, runs = merge.merge_shards(folders, out, command)
    return plan, runs, out


def _train(flags: StudyFlags, command: str, console: "Console") -> "tuple[Study, list[Run], Path]":
    """Trains what is missing; returns the study, its runs and where they are."""
    from jaxcnn.devices import processes
    from jaxcnn.devices.mesh import Placement
    from jaxcnn.storage import compilation
    from jaxcnn.study.learning_rates import parse_rates
    from jaxcnn.study.runs import Study
    from jaxcnn.study.study import run_study
    from jaxcnn.train import doctor
    from jaxcnn.train.setup import check_recipe

    changes = {"epochs": flags.epochs}
    if flags.batch_size:
        changes["batch_size"] = flags.batch_size
    recipe = replace_fields(named.recipe(flags.network, flags.recipe), **changes)
    mesh = flags.devices.join(("ensemble", "data"), flags.workdir)
    Placement(mesh).check_batch(recipe.batch_size)
    rates = parse_rates(
        flags.learning_rates,
        flags.optimizers,
        lambda name: recipe.replace(optimizer=name).learning_rate,
    )
    for name in flags.optimizers:
        check_recipe(recipe.replace(optimizer=name))  # mistakes show before any run
    target = flags.target or {"mnist": 0.98, "cifar10": 0.7}[flags.network]
    plan = Study(recipe, rates, flags.tune_seeds, flags.seeds, flags.validation, target)
    shard, folder = None, study_workdir(flags)
    if flags.shard:
        shard = Shard.parse(flags.shard)
        folder = shard.folder(folder)
    say = make_echo(console)
    if flags.devices.compilation_cache:
        compilation.enable_cache(say)
    echo_source_files(flags.optimizers, say)
    doctor.warn(flags.optimizers, say)
    dataset = flags.data.load(flags.network, flags.source, say)
    with processes.noticing_losses():
        runs = run_study(
            plan,
            dataset,
            folder,
            chunk=flags.chunk or None,
            mesh=mesh,
            observer=make_study_observer(console) if processes.is_main() else None,
            shard=shard,
            command=command,
        )
    return (plan.part(shard.optimizers(flags.optimizers)) if shard else plan), runs, folder


def _write(plan: "Study", runs: "list[Run]", folder: Path, console: "Console") -> None:
    """Writes and prints what a study, or a shard of it, has found."""
    from jaxcnn.storage import atomic
    from jaxcnn.study import comparison
    from jaxcnn.study.plots import write_plots
    from jaxcnn.study.runs import load_specification

    about = load_specification(folder)
    table = (
        f"{comparison.markdown(plan, runs)}\n{about['dataset']} {about['dataset_version']}, "
        f"{plan.recipe.epochs} epochs at batch {plan.recipe.batch_size}, on "
        f"{'; and on '.join(about['machines'])}\n"
    )
    for name, text in (("table.md", table), ("curves.csv", comparison.curves_csv(runs))):
        atomic.write(folder / name, text.encode())
    write_plots(plan, runs, folder)
    console.print(table, soft_wrap=True, markup=False)
    console.print(f"results: {folder}", soft_wrap=True, markup=False)
