"""The command line of the experiments.

Nothing heavy is imported before the flags are read, so that `--help` and mistakes answer at once.
"""

import ast
import contextlib
import io
import itertools
import math
import os
import re
import secrets
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro import conf

from jaxcnn import catalog, interrupts, recipes, screen
from jaxcnn.errors import DivergedError, StoppedError, UserError, as_path, describe

if TYPE_CHECKING:
    from rich.console import Console

    from jaxcnn.data import Dataset
    from jaxcnn.parallel import AxisName
    from jaxcnn.training import Result


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
    schedule: recipes.ScheduleName = "constant"
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


_FLAGS: dict[str, type[Flags]] = {"mnist": MnistFlags, "cifar10": Cifar10Flags}


def main(network: recipes.NetworkName, argv: Sequence[str] | None = None) -> None:
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
        run(*parse(network, argv))


@contextlib.contextmanager
def ending_on_errors(name: str) -> Iterator[None]:
    """Turns the errors of a command into one sentence and the status of the process.

    Args:
        name: of the command, where the process has none.

    Raises:
        SystemExit: see `main`.
    """
    program = Path(sys.argv[0]).name
    program = name if program in ("", "__main__.py") else program  # python -m jaxcnn
    with screen.guarded(), interrupts.raising_on_sigterm():
        status, said = 0, ""
        try:
            yield
        except SystemExit as end:  # --help, or a run that was asked to stop and has said so
            if end.code or not screen.lost():
                raise
        except UserError as error:
            status, said = 1 if isinstance(error, DivergedError) else 2, f"error: {error}"
        except OSError as error:
            status, said = 2, f"error: {describe(error)}; give another path, or mend this one"
        except (RuntimeError, AssertionError):
            if not (reason := _no_device()):
                raise
            status, said = 2, f"error: {reason}"
        except KeyboardInterrupt:
            status, said = 130, "interrupted"
        except interrupts.Terminated:
            status, said = 143, "terminated"
        if (reason := screen.lost()) and not status:
            status, said = 2, f"error: {reason}; all else was done"
        if status:
            sys.stderr.write(screen.line(f"{program}: {said}") + "\n")
            _leave(status)
            raise SystemExit(status)


def _no_device() -> str:
    """Returns what is wrong if jax has no device at all; which of its errors says so depends."""
    if not (jax := sys.modules.get("jax")):
        return ""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200] or "it says no more"
        asked = os.environ.get("JAX_PLATFORMS", "")
        return (
            f"jax has no device ({reason}): unset JAX_PLATFORMS, which is {asked!r}, or install "
            "jax for it"
        )
    return ""


def _leave(status: int) -> None:
    """Ends one of several processes; with one, that module may not have been imported at all."""
    if processes := sys.modules.get("jaxcnn.processes"):
        processes.leave(status)


def parse(network: recipes.NetworkName, argv: Sequence[str]) -> tuple[Flags, recipes.Recipe]:
    """Reads the flags; those not given have the values of the recipe.

    Raises:
        UserError: a flag is unknown or its value is not one that it takes.
    """
    defaults = recipes.get(network, "fast")
    # The defaults of the other flags, and so what --help shows, depend on these two.
    for name in ("recipe", "optimizer"):
        value = _peek(f"--{name}", argv)
        if name == "recipe" and value:
            defaults = _find_recipe(network, value)
        elif name == "optimizer" and value:
            defaults = replace(defaults, optimizer=value)
    kind = _FLAGS[network]
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
    recipe = replace(
        defaults,
        **{field: getattr(flags, field) for field in changed},
        optimizer_args={
            **defaults.optimizer_args,
            **parse_pairs("--optimizer-args", flags.optimizer_args),
        },
    )
    return flags, recipe


def _find_recipe(network: recipes.NetworkName, value: str) -> recipes.Recipe:
    """Returns the recipe of a name or in a file."""
    is_file = value.endswith(".toml")
    try:
        return recipes.load(network, value) if is_file else recipes.get(network, value)
    except ValueError as error:
        raise UserError(f"--recipe: {error}{'' if is_file else ', or a .toml file'}") from None


def parse_pairs(flag: str, pairs: Sequence[str]) -> dict[str, Any]:
    """Reads the "key=value" pairs of a flag; what is no Python literal is text.

    Raises:
        UserError: one is not of that form.
    """
    args: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not (equals and key.isidentifier()):
            raise UserError(f"{flag} takes key=value pairs, got {pair!r}")
        try:
            args[key] = ast.literal_eval(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            args[key] = value
        if isinstance(args[key], float) and not math.isfinite(args[key]):
            raise UserError(f"{flag} takes finite numbers, got {pair!r}")
    return args


def say_code(names: Sequence[str], say: Callable[..., None]) -> None:
    """Says which file each optimizer of one's own is taken from.

    Raises:
        UserError: one cannot be imported.
    """
    from jaxcnn import optimizers

    for name in names:
        if code := optimizers.code(name):
            say(f"optimizer: {name} of {code}")


def replace(recipe: recipes.Recipe, **changes: Any) -> recipes.Recipe:
    """Returns a copy of a recipe with some fields changed.

    Raises:
        UserError: a value is not taken; the message names the flag.
    """
    try:
        return recipe.replace(**changes)
    except ValueError as error:
        field, rest = str(error).split(" ", 1)
        raise UserError(f"--{field.replace('_', '-')} {rest}") from None


def run(flags: Flags, recipe: recipes.Recipe) -> None:
    """Loads the data, trains, and writes the results.

    Raises:
        UserError: the data, the workdir or a value cannot be used.
    """
    # Imported here, see the module's docstring.
    from rich.console import Console

    from jaxcnn import (
        checkpoint,
        compilation,
        doctor,
        environment,
        parallel,
        processes,
        progress,
        records,
        training,
    )
    from jaxcnn.data.feed import choose

    console = Console(highlight=False)

    every = checkpoint.Every.parse(flags.checkpoint_every)
    axes = join_processes(flags, ("data",))
    say = say_on(console)
    mesh = parallel.make_mesh(axes) if axes else None
    # Other runs may begin in the same second.
    started = f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
    workdir = as_path(flags.workdir or f"runs/{recipe.network}-{started}")
    processes.from_main(lambda: records.check_workdir(workdir, flags.resume))
    training.check_recipe(recipe)  # before the data is loaded, which takes longer
    say_code([recipe.optimizer], say)
    if flags.compilation_cache:
        compilation.enable_cache(say)
    doctor.warn([recipe.optimizer], say)
    dataset = processes.main_first(lambda: load_data(recipe.network, flags, say))
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
        + (f", {parallel.describe(mesh)}" if mesh else "")
    )
    with interrupts.watched() as interrupted, processes.noticing_losses():
        try:
            result = training.fit(
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
    settings: dict[str, Any] = {"seed": flags.seed, "feed": choose(flags.feed)}
    if mesh:
        settings["mesh"] = parallel.describe(mesh)
    processes.from_main(lambda: _finish(flags, recipe, dataset, result, settings, workdir, say))


def _finish(
    flags: Flags,
    recipe: recipes.Recipe,
    dataset: "Dataset",
    result: "Result",
    settings: dict[str, Any],
    workdir: Path,
    say: Callable[..., None],
) -> None:
    """Writes what a run leaves, and tells its scores; once all is there it has ended."""
    from jaxcnn import records, training

    command = shlex.join([Path(sys.executable).name, *sys.argv])
    settings["command"] = command
    scores = [describe_score(dataset, result.test_correct, result.test_total)]
    if flags.tta:
        correct, total, _ = training.evaluate(
            recipe, result.state.eval_variables, dataset.test, tta=True
        )
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
        from jaxcnn import report, trained

        say(f"report: {report.write(trained.load(workdir), dataset, workdir, content)}")
    if reason := screen.lost():
        content["screen"] = reason
    records.write_result(workdir, content)  # last: the same command goes on unless it is there
    say(f"results: {workdir}")


def join_processes(flags: Any, axes: "Sequence[AxisName]") -> dict[str, int] | None:
    """Makes this process one of several where the flags of a command say so.

    Args:
        flags: with `processes`, `coordinator`, `process_id`, `workdir`, `devices` and `mesh`.
        axes: of a mesh that the command has.

    Returns:
        The mesh's axes, see `jaxcnn.parallel.make_mesh`. Where the flags name none: all devices
        along the first axis if there are several processes, or None.

    Raises:
        UserError: the flags do not go together, or the other processes are not there in time.
    """
    import jax

    from jaxcnn import parallel, processes

    sizes = parallel.parse_mesh(flags.devices, flags.mesh, axes)
    processes.join(flags.processes, flags.coordinator, flags.process_id)
    interrupts.raise_on_sigterm()  # jax has put a handler of its own there, which ignores it
    if processes.count() > 1 and not flags.workdir:
        raise UserError("several processes have one workdir: give --workdir, the same to all")
    if processes.count() > 1 and not sizes:
        return {axes[0]: jax.device_count()}
    return sizes


def say_on(console: "Console") -> Callable[..., None]:
    """Returns what prints a line, in a style if there is a second argument, in process 0."""
    from jaxcnn import processes

    def say(line: str, style: str | None = None) -> None:
        if processes.is_main():
            console.print(screen.line(line), style=style, soft_wrap=True, markup=False)

    return say


def describe_score(dataset: "Dataset", correct: int, total: int, *, tta: bool = False) -> str:
    """Returns how many test images were answered right, as the commands print it.

    Args:
        dataset: whose test images.
        correct: right answers.
        total: images.
        tta: whether with test-time augmentation.
    """
    how = " with test-time augmentation" if tta else ""
    return (
        f"test set of {dataset.name}{how}: {correct:,} right of {total:,} total, ratio "
        f"{correct / total:.2%}"
    )


def trust_own(argv: Sequence[str]) -> None:
    """Lets the user's own optimizers that a command line names be found where it runs.

    Those that only a recipe file names stay what they are: the name of a stranger's code.
    """
    values = {argument.rpartition("=")[2] for argument in argv}
    if own := list(filter(catalog.is_own, values)):
        for name in own:
            catalog.trust(name)
        sys.path.append(str(Path.cwd()))


def load_data(network: recipes.NetworkName, flags: Any, say: Callable[..., None]) -> "Dataset":
    """Loads the data set of a command, and says loudly if it is not the real one.

    Args:
        network: whose data set.
        flags: with `data`, `data_dir` and `archive_dir`.
        say: prints a line, in a style if there is a second argument.

    Raises:
        UserError: the data cannot be had.
    """
    from jaxcnn import data

    dataset = data.load(
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


def call_tyro(kind: Any, default: Any, argv: Sequence[str], **options: Any) -> Any:
    """Calls tyro and folds what it says of a mistake, a box of several lines, into one sentence.

    Raises:
        UserError: that sentence.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if default is None:  # a choice of commands
                return tyro.cli(kind, args=list(argv), prog="jaxcnn", **options)
            return tyro.cli(kind, default=default, args=list(argv), **options)
    except SystemExit as stop:
        if not stop.code:  # --help
            raise
        raise UserError(f"{_fold(said.getvalue())}; see --help for what each flag takes") from None


def _fold(box: str) -> str:
    """Returns the first paragraph of a box that tyro drew, as one clause."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip(" │|") for line in plain.splitlines()][1:]  # without the title
    body = itertools.dropwhile(_is_rule, lines)
    text = " ".join(itertools.takewhile(lambda line: not _is_rule(line), body))
    text = text.split("Got errors:")[0].strip().rstrip(".")
    # "invalid choice 'x'. Expected one of ..." becomes one clause.
    return re.sub(r"\. ([A-Z])", lambda match: f", {match[1].lower()}", text)


def _is_rule(line: str) -> bool:
    return bool(line) and set(line) <= set("-─╰╯")
