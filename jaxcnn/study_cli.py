"""The command line of a study."""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro import conf

from jaxcnn import catalog, cli, recipes
from jaxcnn.errors import UserError, as_path
from jaxcnn.shards import Shard

if TYPE_CHECKING:
    from rich.console import Console

    from jaxcnn.study import Observer, Run, Study


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
    network: recipes.NetworkName = "mnist"
    """Which network and data set."""
    recipe: recipes.RecipeName = "fast"
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
    with cli.ending_on_errors("study"):
        argv = sys.argv[1:] if argv is None else argv
        cli.trust_own(argv)
        command = shlex.join([Path(sys.executable).name, sys.argv[0], *argv])
        run(parse(argv), command)


def parse(argv: Sequence[str]) -> StudyFlags:
    """Reads the flags.

    Raises:
        UserError: a flag is unknown or its value is not one that it takes.
    """
    flags: StudyFlags = cli.call_tyro(StudyFlags, StudyFlags(), argv)
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
            catalog.get(name)
        except ValueError as error:
            raise UserError(f"--optimizers: {error}") from None
    if flags.shard:
        Shard.parse(flags.shard).optimizers(flags.optimizers)
    return flags


def workdir(flags: StudyFlags) -> Path:
    """Returns where the results of a study go."""
    return as_path(flags.workdir or f"runs/study-{flags.network}")


def run(flags: StudyFlags, command: str = "") -> None:
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
        from jaxcnn import processes

        trained = _train(flags, command, console)
        processes.from_main(lambda: _write(*trained, console))


def _merge(flags: StudyFlags, command: str) -> "tuple[Study, list[Run], Path]":
    """Joins shards; returns the study, its runs and where they are."""
    from jaxcnn import merge

    folders = merge.find([as_path(folder) for folder in flags.merge])
    parents = {folder.resolve().parent for folder in folders}
    if not flags.workdir and len(parents) > 1:
        raise UserError("--merge of shards that lie in several folders takes --workdir too")
    out = as_path(flags.workdir) if flags.workdir else folders[0].parent
    plan, runs = merge.merge(folders, out, command)
    return plan, runs, out


def _train(flags: StudyFlags, command: str, console: "Console") -> "tuple[Study, list[Run], Path]":
    """Trains what is missing; returns the study, its runs and where they are."""
    from jaxcnn import (
        compilation,
        doctor,
        learning_rates,
        parallel,
        processes,
        study,
        training,
    )

    changes = {"epochs": flags.epochs}
    if flags.batch_size:
        changes["batch_size"] = flags.batch_size
    recipe = cli.replace(recipes.get(flags.network, flags.recipe), **changes)
    axes = cli.join_processes(flags, ("ensemble", "data"))
    mesh = parallel.make_mesh(axes) if axes else None
    parallel.Placement(mesh).check_batch(recipe.batch_size)
    rates = learning_rates.parse(
        flags.learning_rates,
        flags.optimizers,
        lambda name: recipe.replace(optimizer=name).learning_rate,
    )
    for name in flags.optimizers:
        training.check_recipe(recipe.replace(optimizer=name))  # mistakes show before any run
    target = flags.target or {"mnist": 0.98, "cifar10": 0.7}[flags.network]
    plan = study.Study(recipe, rates, flags.tune_seeds, flags.seeds, flags.validation, target)
    shard, folder = None, workdir(flags)
    if flags.shard:
        shard = Shard.parse(flags.shard)
        folder = shard.folder(folder)
    say = cli.say_on(console)
    if flags.compilation_cache:
        compilation.enable_cache(say)
    cli.say_code(flags.optimizers, say)
    doctor.warn(flags.optimizers, say)
    dataset = processes.main_first(lambda: cli.load_data(flags.network, flags, say))
    with processes.noticing_losses():
        runs = study.run(
            plan,
            dataset,
            folder,
            chunk=flags.chunk or None,
            mesh=mesh,
            observer=_observer(console) if processes.is_main() else None,
            shard=shard,
            command=command,
        )
    return (plan.part(shard.optimizers(flags.optimizers)) if shard else plan), runs, folder


def _write(plan: "Study", runs: "list[Run]", folder: Path, console: "Console") -> None:
    """Writes and prints what a study, or a shard of it, has found."""
    from jaxcnn import comparison, plots, study, workdir

    about = study.load_specification(folder)
    table = (
        f"{comparison.markdown(plan, runs)}\n{about['dataset']} {about['dataset_version']}, "
        f"{plan.recipe.epochs} epochs at batch {plan.recipe.batch_size}, on "
        f"{'; and on '.join(about['machines'])}\n"
    )
    for name, text in (("table.md", table), ("curves.csv", comparison.curves_csv(runs))):
        workdir.write(folder / name, text.encode())
    plots.write(plan, runs, folder)
    console.print(table, soft_wrap=True, markup=False)
    console.print(f"results: {folder}", soft_wrap=True, markup=False)


def _observer(console: "Console") -> "Observer":
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    from jaxcnn.study import Observer, Phase

    class Bar(Observer):
        """One bar for the whole study; a line for every optimizer where there is no terminal."""

        def __init__(self) -> None:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:3.0f} %"),
                TimeRemainingColumn(),
                TextColumn("left"),
            )
            self._progress = Progress(*columns, console=console, transient=True)
            self._task: TaskID | None = None
            self._images = self._done = 0

        def start(self, runs: int, images: int, done: int) -> None:
            self._images, self._done = images, done
            if runs:
                console.print(f"{runs} runs are there already", soft_wrap=True)
            if console.is_terminal:
                self._task = self._progress.add_task("", total=images, completed=done)
                self._progress.start()

        def runs(self, phase: Phase, optimizer: str, count: int) -> None:
            line = f"{phase} {optimizer}: {count} runs"
            if self._task is None:
                share = self._done / max(self._images, 1)
                console.print(f"{line} ({share:.0%} of the study done)", soft_wrap=True)
            else:
                self._progress.update(self._task, description=line)

        def advance(self, images: int) -> None:
            self._done += images
            if self._task is not None:
                self._progress.advance(self._task, images)

        def stop(self) -> None:
            self._progress.stop()

    return Bar()
