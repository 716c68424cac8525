"""The command line of the experiments.

Nothing heavy is imported before the flags are read, so that `--help` and mistakes answer at once.
"""

import secrets
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxcnn.cli import interrupts, screen
from jaxcnn.errors import StoppedError, as_path
from jaxcnn.recipes.recipe import NetworkName, Recipe

if TYPE_CHECKING:
    from jaxcnn.data.dataset import Dataset
    from jaxcnn.train.result import Result
from jaxcnn.cli.console import describe_score, ending_on_errors, say_code, say_on, trust_own
from jaxcnn.cli.flags import Flags, join_processes, load_dataset, parse_flags


def main(network: NetworkName, argv: Sequence[str] | None = None) -> None:
    """Runs an experiment from its command line and ends the process on an error.

    Args:
        network: "mnist" or "cifar10".
        argv: the arguments; those of the process if None.

    Raises:
        SystemExit: with status 2 after a mistake of the user's, 1 after a diverged run, 130 after
            Ctrl-C, 143 after SIGTERM; one sentence on standard error says why.
    """
    with ending_on_errors(network):
        argv = sys.argv[1:] if argv is None else argv
        trust_own(argv)
        run_flags(*parse_flags(network, argv))


def run_flags(flags: Flags, recipe: Recipe) -> None:
    """Loads the data, trains, and writes the results.

    Raises:
        UserError: the data, the workdir or a value cannot be used.
    """
    # Imported here, see the module's docstring.
    from rich.console import Console

    from jaxcnn.cli import progress
    from jaxcnn.devices import environment, processes
    from jaxcnn.devices.mesh import describe_mesh, make_mesh
    from jaxcnn.storage import checkpoint, compilation
    from jaxcnn.train import doctor, records
    from jaxcnn.train.feed import choose_feed
    from jaxcnn.train.fit import fit
    from jaxcnn.train.setup import check_recipe

    console = Console(highlight=False)

    every = checkpoint.Every.parse(flags.checkpoint_every)
    axes = join_processes(flags, ("data",))
    say = say_on(console)
    mesh = make_mesh(axes) if axes else None
    # Other runs may begin in the same second.
    started = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    workdir = as_path(flags.workdir or f"runs/{recipe.network}-{started}")
    processes.on_main(records.check_workdir)(workdir, flags.resume)
    check_recipe(recipe)  # before the data is loaded, which takes longer
    say_code([recipe.optimizer], say)
    if flags.compilation_cache:
        compilation.enable_cache(say)
    doctor.warn([recipe.optimizer], say)
    dataset = processes.main_first(load_dataset)(recipe.network, flags, say)
    same: dict[str, Any] = {
        "seed": flags.seed,
        "mesh": axes,
        "feed": flags.feed,
        "dataset": dataset.name,
    }
    same["checkpoint_every"] = flags.checkpoint_every
    processes.check_same({**recipe.asdict(), **same})
    say(
        f"data: {dataset.name} {dataset.version}, {len(dataset.train):,} training and "
        f"{len(dataset.test):,} test images"
    )
    say(
        f"recipe: {recipe.name}, {recipe.epochs} epochs at batch {recipe.batch_size} with "
        f"{recipe.optimizer} {recipe.learning_rate:g}, seed {flags.seed}, on {environment.device()}"
        + (f", {describe_mesh(mesh)}" if mesh else "")
    )
    with interrupts.watched() as interrupted, processes.noticing_losses():
        try:
            result = fit(
                recipe,
                dataset,
                seed=flags.seed,
                feed=flags.feed,
                mesh=mesh,
                observers=[records.Records(workdir), progress.make_progress(console)],
                checkpoints=checkpoint.Policy(
                    workdir / records.CHECKPOINTS, every, flags.keep, flags.resume, report=say
                ),
                interrupted=interrupted,
            )
        except StoppedError as error:
            # Where there are several processes, another one may have been asked.
            number = interrupted.received or signal.SIGTERM
            if processes.is_main():
                advice = f"the same flags with --workdir {workdir} go on from there"
                sys.stderr.write(f"{error}; {advice}\n")
            raise SystemExit(128 + number) from None
    settings: dict[str, Any] = {"seed": flags.seed, "feed": choose_feed(flags.feed)}
    if mesh:
        settings["mesh"] = describe_mesh(mesh)
    processes.on_main(_finish)(flags, recipe, dataset, result, settings, workdir, say)


def _finish(
    flags: Flags,
    recipe: Recipe,
    dataset: "Dataset",
    result: "Result",
    settings: dict[str, Any],
    workdir: Path,
    say: Callable[..., None],
) -> None:
    """Writes what a run leaves, and tells its scores; once all is there it has ended."""
    from jaxcnn.train import records
    from jaxcnn.train.evaluate import evaluate

    command = shlex.join([Path(sys.executable).name, *sys.argv])
    settings["command"] = command
    scores = [describe_score(dataset, result.test_correct, result.test_total)]
    if flags.tta:
        correct, total, _ = evaluate(recipe, result.state.eval_variables, dataset.test, tta=True)
        settings |= {"tta_test_correct": correct, "tta_test_accuracy": correct / total}
        scores.append(describe_score(dataset, correct, total, tta=True))
    content = records.make_result(result, recipe, dataset, settings)
    say(
        f"trained in {result.train_seconds:.1f} s ({result.images_per_second:,.0f} images/s), "
        f"compiled in {result.compile_seconds:.1f} s, evaluated in {result.eval_seconds:.1f} s"
    )
    for score in scores:
        say(score, "bold")
    if not dataset.is_real:
        say(
            f"*** {dataset.name} is a stand-in: this says nothing about {recipe.network} ***",
            "bold red",
        )
    if flags.report != "never":
        from jaxcnn.report.page import write_report
        from jaxcnn.train.trained import load_trained

        say(f"report: {write_report(load_trained(workdir), dataset, workdir, content)}")
    if reason := screen.lost():
        content["screen"] = reason
    records.write_result(workdir, content)  # last: the same command goes on unless it is there
    say(f"results: {workdir}")
