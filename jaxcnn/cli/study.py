"""The command line of a study."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro import conf

from jaxcnn.cli.console import (
    call_tyro,
    ending_on_errors,
    replace_fields,
    say_code,
    say_on,
    trust_own,
)
from jaxcnn.cli.flags import join_processes, load_dataset
from jaxcnn.errors import UserError, as_path
from jaxcnn.recipes import named, optimizer_defaults
from jaxcnn.recipes.problems import PROBLEMS
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
    devices: Annotated[int, conf.arg(metavar="N", help_behavior_hint="(default: one)")] = 0
    """Spread the runs of a program over so many devices."""
    mesh: Annotated[
        str, conf.arg(metavar="ensemble=N,data=N", help_behavior_hint="(default: none)")
    ] = ""
    """The same as a mesh; along data the batches of every run are cut. Of several processes all
    devices along ensemble, by default."""
    processes: Annotated[str, conf.arg(metavar="N|auto")] = "1"
    """Processes of this study, on one host or several, all started with the same flags; auto where
    jax recognises the cluster (SLURM, Open MPI, Kubernetes, TPU pods)."""
    coordinator: Annotated[str, conf.arg(metavar="HOST:PORT", help_behavior_hint="")] = ""
    """Where process 0 listens for the others."""
    process_id: Annotated[int, conf.arg(metavar="K", help_behavior_hint="")] = -1
    """Which of the processes this one is, from 0."""
    data: Literal["auto", "real", "synthetic"] = "auto"
    """The real data or nothing, or a synthetic stand-in; auto takes the real data where it can be
    had."""
    data_dir: Annotated[str, conf.arg(metavar="DIR")] = ""
    """Where TFDS keeps prepared data sets."""
    archive_dir: Annotated[str, conf.arg(metavar="DIR")] = ""
    """A folder with the official archives, for machines without network."""
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
    compilation_cache: bool = True
    """Keep compiled programs in the user's cache folder."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs a study from its command line and ends the process on an error.

    Args:
        argv: the arguments; those of the process if None.

    Raises:
        SystemExit: with status 2 after a mistake of the user's, 130 after Ctrl-C.
    """
    with ending_on_errors("study"):
        argv = sys.argv[1:] if argv is None else argv
        trust_own(argv)
        command = shlex.join([Path(sys.executable).name, sys.argv[0], *argv])
        run_flags(parse_study_flags(argv), command)


def parse_study_flags(argv: Sequence[str]) -> StudyFlags:
    """Reads the flags.

    Raises:
        UserError: a flag is unknown or its value is not one that it takes.
    """
    flags: StudyFlags = call_tyro(StudyFlags, StudyFlags(), argv)
    given = [
        f"--{name.replace('_', '-')}"
        for name, default in vars(StudyFlags()).items()
        if name not in ("merge", "workdir") and getattr(flags, name) != default
    ]
    if flags.merge and given:
        raise UserError(f"--merge takes all else from the shards: leave {', '.join(given)} away")
    for name in ("seeds", "tune_seeds"):
        if not 1 <= getattr(flags, name) <= 10_000:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(
                f"{flag} takes a whole number from 1 to 10000, got {getattr(flags, name)}"
            )
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
    from jaxcnn.devices.mesh import Placement, make_mesh
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
    axes = join_processes(flags, ("ensemble", "data"))
    mesh = make_mesh(axes) if axes else None
    Placement(mesh).check_batch(recipe.batch_size)
    rates = parse_rates(
        flags.learning_rates,
        flags.optimizers,
        lambda name: recipe.replace(optimizer=name).learning_rate,
    )
    for name in flags.optimizers:
        check_recipe(recipe.replace(optimizer=name))  # mistakes show before any run
    target = flags.target or PROBLEMS[flags.network].target
    plan = Study(recipe, rates, flags.tune_seeds, flags.seeds, flags.validation, target)
    shard, folder = None, study_workdir(flags)
    if flags.shard:
        shard = Shard.parse(flags.shard)
        folder = shard.folder(folder)
    say = say_on(console)
    if flags.compilation_cache:
        compilation.enable_cache(say)
    say_code(flags.optimizers, say)
    doctor.warn(flags.optimizers, say)
    dataset = processes.main_first(lambda: load_dataset(flags.network, flags, say))
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
