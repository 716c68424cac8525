"""The boundary of every command: errors become one sentence and an exit status; output."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from jaxcnn.cli import interrupts, screen
from jaxcnn.errors import DivergedError, UserError, describe

if TYPE_CHECKING:
    from rich.console import Console

    from jaxcnn.data.dataset import Dataset

# Prints a line, in a style of rich's if there is a second argument.
Echo: TypeAlias = Callable[..., None]


@contextlib.contextmanager
def ending_on_errors(name: str) -> Iterator[None]:
    """Turns the errors of a command into one sentence and the exit status of the process.

    Args:
        name: of the command, for a process that has none (`python -m jaxcnn`, `python -c`).

    Raises:
        SystemExit: with status 2 after a user's mistake, 1 after a diverged run, 130 after Ctrl-C,
            143 after SIGTERM.
    """
    program = Path(sys.argv[0]).name
    program = name if program in ("", "__main__.py") else program
    with screen.guarded(), interrupts.raising_on_sigterm():
        status, message = 0, ""
        try:
            yield
        except SystemExit as end:  # of --help, tyro's errors, and a run that was stopped
            if end.code or not screen.output_failure():
                raise
        except UserError as error:
            status, message = 1 if isinstance(error, DivergedError) else 2, f"error: {error}"
        except OSError as error:
            status, message = 2, f"error: {describe(error)}; give another path, or repair this one"
        except (RuntimeError, AssertionError):
            if not (reason := _missing_device()):
                raise
            status, message = 2, f"error: {reason}"
        except KeyboardInterrupt:
            status, message = 130, "interrupted"
        except interrupts.Terminated:
            status, message = 143, "terminated"
        if (reason := screen.output_failure()) and not status:
            status, message = 2, f"error: {reason}; everything else was done"
        if status:
            sys.stderr.write(screen.line(f"{program}: {message}") + "\n")
            _leave(status)
            raise SystemExit(status)


def _missing_device() -> str:
    """Returns the reason if jax has no device at all, else "".

    Several of jax's errors can be the consequence, so jax is queried once more.
    """
    if not (jax := sys.modules.get("jax")):
        return ""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:200] or "no further details"
        platforms = os.environ.get("JAX_PLATFORMS", "")
        return (
            f"jax has no device ({reason}): unset JAX_PLATFORMS, which is {platforms!r}, or "
            "install jax for it"
        )
    return ""


def _leave(status: int) -> None:
    """Ends one of several processes; where there is one, the module may not be imported."""
    if processes := sys.modules.get("jaxcnn.devices.processes"):
        processes.leave(status)


def make_echo(console: "Console") -> Echo:
    """Returns a function that prints a line, in process 0 only.

    Args:
        console: to print on.

    Returns:
        `echo(line, style=None)`. The line is printed unwrapped and without control characters.
    """
    from jaxcnn.devices import processes

    def echo(line: str, style: str | None = None) -> None:
        console.print(screen.line(line), style=style, soft_wrap=True, markup=False)

    return processes.main_only(echo, lambda line, style=None: None)


def echo_source_files(optimizers: Sequence[str], echo: Echo) -> None:
    """Prints the file of each user-defined optimizer.

    Args:
        optimizers: names, see `jaxcnn.recipes.optimizer_defaults`.
        echo: see `make_echo`.

    Raises:
        UserError: one cannot be imported.
    """
    from jaxcnn.optim.named import source_file

    for name in optimizers:
        if code := source_file(name):
            echo(f"optimizer: {name} of {code}")


def describe_score(dataset: "Dataset", correct: int, total: int, *, tta: bool = False) -> str:
    """Returns the line that reports an evaluation on the test images.

    Args:
        dataset: of the test images.
        correct: number of correct predictions.
        total: number of images.
        tta: whether with test-time augmentation.
    """
    how = " with test-time augmentation" if tta else ""
    return (
        f"test set of {dataset.name}{how}: {correct:,} correct of {total:,} total, accuracy "
        f"{correct / total:.2%}"
    )
