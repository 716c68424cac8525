"""The boundary of every command: errors to one sentence and an exit status, output, tyro."""

import ast
import contextlib
import io
import itertools
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

from jaxcnn.cli import interrupts, screen
from jaxcnn.errors import DivergedError, UserError, describe
from jaxcnn.recipes import optimizer_defaults
from jaxcnn.recipes.recipe import Recipe

if TYPE_CHECKING:
    from rich.console import Console

    from jaxcnn.data.dataset import Dataset


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
    if processes := sys.modules.get("jaxcnn.devices.processes"):
        processes.leave(status)


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
    from jaxcnn.optim.named import source_file

    for name in names:
        if code := source_file(name):
            say(f"optimizer: {name} of {code}")


def replace_fields(recipe: Recipe, **changes: Any) -> Recipe:
    """Returns a copy of a recipe with some fields changed.

    Raises:
        UserError: a value is not taken; the message names the flag.
    """
    try:
        return recipe.replace(**changes)
    except ValueError as error:
        field, rest = str(error).split(" ", 1)
        raise UserError(f"--{field.replace('_', '-')} {rest}") from None


def say_on(console: "Console") -> Callable[..., None]:
    """Returns what prints a line, in a style if there is a second argument, in process 0."""
    from jaxcnn.devices import processes

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
    if own := list(filter(optimizer_defaults.is_own, values)):
        for name in own:
            optimizer_defaults.trust(name)
        sys.path.append(str(Path.cwd()))


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
