"""The command line of a study."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro import conf

from jaxcnn import catalog, cli, recipes
from jaxcnn.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from jaxcnn.study import Observer


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
        run(parse(sys.argv[1:] if argv is None else argv))


def parse(argv: Sequence[str]) -> StudyFlags:
    """Reads the flags.

    Raises:
        UserError: a flag is unknown or its value is not one that it takes.
    """
    flags: StudyFlags = cli.call_tyro(StudyFlags, StudyFlags(), argv)
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
    return flags


def run(flags: StudyFlags) -> None:
    """Loads the data, trains what is missing, and writes the tables and pictures.

    Raises:
        UserError: the data, the workdir or a value cannot be used.
    """
    # Imported here, so that --help and mistakes answer at once.
    from rich.console import Console

    from jaxcnn import (
        comparison,
        compilation,
        environment,
        learning_rates,
        plots,
        study,
        training,
    )
    from jaxcnn.errors import WORKDIR_REMEDY, writing

    console = Console(highlight=False)
    changes = {"epochs": flags.epochs}
    if flags.batch_size:
        changes["batch_size"] = flags.batch_size
    recipe = cli.replace(recipes.get(flags.network, flags.recipe), **changes)
    rates = learning_rates.parse(
        flags.learning_rates,
        flags.optimizers,
        lambda name: recipe.replace(optimizer=name).learning_rate,
    )
    cli.look_for_own(flags.optimizers)
    for name in flags.optimizers:
        training.check_recipe(recipe.replace(optimizer=name))  # mistakes show before any run
    target = flags.target or {"mnist": 0.98, "cifar10": 0.7}[flags.network]
    plan = study.Study(recipe, rates, flags.tune_seeds, flags.seeds, flags.validation, target)
    workdir = Path(flags.workdir or f"runs/study-{flags.network}").expanduser()
    if flags.compilation_cache:
        compilation.enable_cache()
    dataset = cli.load_data(flags.network, flags, cli.say_on(console))
    runs = study.run(plan, dataset, workdir, chunk=flags.chunk or None, observer=_observer(console))
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions().items())
    table = (
        f"{comparison.markdown(plan, runs)}\n{dataset.name} {dataset.version}, "
        f"{recipe.epochs} epochs at batch {recipe.batch_size}, on {environment.device()}, "
        f"{versions}\n"
    )
    with writing(workdir, WORKDIR_REMEDY):
        (workdir / "table.md").write_text(table)
        comparison.write_csv(workdir / "curves.csv", runs)
        plots.write(plan, runs, workdir)
    console.print(table, soft_wrap=True, markup=False)
    console.print(f"results: {workdir}", soft_wrap=True, markup=False)


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
