"""The command `jaxcnn find-rate`: a learning rate range test."""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro import conf

from jaxcnn.cli.console import Echo, echo_source_files, make_echo
from jaxcnn.cli.flags import DataFlags, find_recipe, is_recipe_file, new_folder
from jaxcnn.cli.values import check_range, parse_pairs, replace_fields, trust_optimizers
from jaxcnn.errors import OUT_REMEDY, UserError, as_path, writing
from jaxcnn.recipes import optimizer_defaults
from jaxcnn.recipes.recipe import NetworkName, Recipe

if TYPE_CHECKING:
    from rich.console import Console

    from jaxcnn.data.dataset import Dataset
    from jaxcnn.study.rate_range import RateRange

_THE_RECIPE_S = "(default: the recipe's)"


@dataclass(frozen=True, kw_only=True)
class FindRateCommand:
    """Suggests a learning rate for an optimizer, by many short runs in one program.

    They are scored on held-out training images; the test images are not used.
    """

    network: Annotated[NetworkName, conf.Positional]
    """Which network and data set."""
    optimizers: Annotated[
        tuple[str, ...],
        conf.arg(name="optimizer", metavar="NAME ...", help_behavior_hint=_THE_RECIPE_S),
    ] = ()
    """One or several, any of optax and optax.contrib, soap, or module:factory for your own."""
    recipe: Annotated[str, conf.arg(metavar="reference|fast|best|sprint|FILE")] = "fast"
    """Where everything else comes from."""
    batch_size: Annotated[int | None, conf.arg(metavar="N", help_behavior_hint=_THE_RECIPE_S)] = (
        None
    )
    """Images per step."""
    weight_decay: Annotated[
        float | None, conf.arg(metavar="X", help_behavior_hint="(default: its own)")
    ] = None
    """Of kernels."""
    clip: Annotated[float | None, conf.arg(metavar="X", help_behavior_hint=_THE_RECIPE_S)] = None
    """Largest norm of the gradient; 0 for no limit."""
    optimizer_args: Annotated[
        tuple[str, ...], conf.arg(metavar="KEY=VALUE ...", help_behavior_hint="(default: none)")
    ] = ()
    """Further arguments of the optimizer, by the names of optax's documentation."""
    low: Annotated[
        float | None,
        conf.arg(metavar="RATE", help_behavior_hint="(default: the usual one / 1000)"),
    ] = None
    """Smallest learning rate to try."""
    high: Annotated[
        float | None,
        conf.arg(metavar="RATE", help_behavior_hint="(default: the usual one * 1000)"),
    ] = None
    """Largest learning rate to try."""
    rates: int = 19
    """Number of learning rates, at equal ratios."""
    steps: Annotated[
        int | None, conf.arg(metavar="N", help_behavior_hint="(default: 300, at most one epoch)")
    ] = None
    """Of each run."""
    seed: int = 0
    """Of every run."""
    source: Annotated[str, conf.arg(name="data", metavar="auto|synthetic|NAME|PATH")] = "auto"
    """As of an experiment: the network's own data set where it is available, else a synthetic one
    (auto); the synthetic one; a data set by its name in TFDS; or a folder or .npz file of yours."""
    out: Annotated[
        str, conf.arg(metavar="DIR", help_behavior_hint="(default: a new folder below runs/)")
    ] = ""
    """Where find-rate.json and find-rate.png go."""
    data: DataFlags = field(default_factory=DataFlags)

    def run(self, console: "Console") -> None:
        """Prints a table and the suggestions, and writes the losses and their picture."""
        recipes = self._recipes()
        check_range("--rates", self.rates, 3, 1000)
        check_range("--steps", 1 if self.steps is None else self.steps, 1, 10**6)
        check_range("--seed", self.seed, 0, 2**32 - 1)
        from jaxcnn.data.own_data import normalized
        from jaxcnn.storage import compilation
        from jaxcnn.study.plots import write_rate_plot
        from jaxcnn.study.rate_range import make_rates
        from jaxcnn.train.setup import check_recipe

        for recipe in recipes:  # mistakes show before any run
            make_rates(recipe, self.low, self.high, self.rates)
            check_recipe(recipe)
        echo = make_echo(console)
        compilation.enable_cache(echo)
        echo_source_files([recipe.optimizer for recipe in recipes], echo)
        folder = as_path(self.out or new_folder(f"find-rate-{self.network}"))
        dataset = self.data.load(self.network, self.source, echo)
        if not is_recipe_file(self.recipe):
            recipes = [normalized(recipe, dataset) for recipe in recipes]
        with writing(folder, OUT_REMEDY):
            folder.mkdir(parents=True, exist_ok=True)
        ranges = self._train(recipes, dataset, console, echo)
        _print(ranges, echo)
        self._write(ranges, recipes, dataset, folder)
        title = f"{recipes[0].title}, batch {recipes[0].batch_size}"
        write_rate_plot(ranges, title, folder, OUT_REMEDY)
        echo(f"results: {folder}")

    def _recipes(self) -> list[Recipe]:
        """Returns the recipe of each optimizer.

        Raises:
            UserError: a value is out of range, or an optimizer is named twice.
        """
        base = find_recipe(self.network, self.recipe)
        if len(set(self.optimizers)) < len(self.optimizers):
            raise UserError("--optimizer: each name once")
        trust_optimizers(self.optimizers)
        given = {"batch_size": self.batch_size, "weight_decay": self.weight_decay}
        given |= {"clip": self.clip}
        changes: dict[str, Any] = {name: x for name, x in given.items() if x is not None}
        args = parse_pairs("--optimizer-args", self.optimizer_args)
        recipes = []
        for name in self.optimizers or (base.optimizer,):
            recipe = replace_fields(replace_fields(base, optimizer=name), **changes)
            recipes.append(recipe.replace(optimizer_args={**recipe.optimizer_args, **args}))
        return recipes

    def _train(
        self, recipes: Sequence[Recipe], dataset: "Dataset", console: "Console", echo: Echo
    ) -> "list[RateRange]":
        """Tests the range of each recipe's optimizer; on a terminal a bar shows the progress."""
        from rich.progress import Progress

        from jaxcnn.study.rate_range import find_rate

        ranges = []
        with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
            for recipe in recipes:
                name, size = recipe.optimizer, recipe.batch_size
                echo(f"{name}: {self.rates} learning rates, batch {size}")
                task = bar.add_task(name, total=1.0)
                found = find_rate(
                    recipe,
                    dataset,
                    low=self.low,
                    high=self.high,
                    count=self.rates,
                    steps=self.steps,
                    seed=self.seed,
                    report=partial(bar.advance, task),
                )
                ranges.append(found)
                bar.remove_task(task)
        return ranges

    def _write(
        self,
        ranges: "Sequence[RateRange]",
        recipes: Sequence[Recipe],
        dataset: "Dataset",
        folder: Path,
    ) -> None:
        """Writes all that is known about the runs as find-rate.json."""
        from jaxcnn.devices import environment
        from jaxcnn.storage import atomic, fingerprint

        content = {
            "dataset": dataset.name,
            "dataset_version": dataset.version,
            "dataset_is_real": dataset.is_real,
            "seed": self.seed,
            "command": shlex.join([Path(sys.executable).name, *sys.argv]),
            "versions": environment.versions(),
            "device": environment.device(),
            "ranges": [
                {**found.asdict(), "recipe": fingerprint.of(recipe.asdict())}
                for found, recipe in zip(ranges, recipes, strict=True)
            ],
        }
        text = json.dumps(content, indent=1, allow_nan=False)
        atomic.write(folder / "find-rate.json", text.encode(), OUT_REMEDY)


def _print(ranges: "Sequence[RateRange]", echo: Echo) -> None:
    """Prints a row for each optimizer, what to think of it, and the flags to go on with."""
    rows: list[tuple[str, ...]] = [
        ("optimizer", "learns from", "diverges from", "held-out loss", "suggested rate")
    ]
    for found in ranges:
        loss = "" if found.suggestion is None else f"{found.loss:.4f}"
        rates = (found.learns_from, found.diverges_from)
        cells = ["none" if rate is None else f"{rate:g}" for rate in (*rates, found.suggestion)]
        rows.append((found.optimizer, *cells[:2], loss, cells[2]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        echo("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
    for found in ranges:
        if found.at_edge:
            flag = "--low" if found.suggestion == found.rates[0] else "--high"
            echo(f"{found.optimizer}: the best rate is at the edge of those tried; change {flag}")
        if found.optimizer in optimizer_defaults.ESTIMATING:
            echo(
                f"{found.optimizer} estimates its step size, of which the learning rate is a "
                "factor: its default is seldom far off"
            )
        if found.suggestion is None:
            echo(
                f"{found.optimizer} has learnt nothing at any rate: change --low and --high, or "
                "give more --steps",
                "bold red",
            )
        else:
            flags = f"--optimizer {found.optimizer} --learning-rate {found.suggestion:g}"
            echo(f"suggested: {flags}", "bold")
