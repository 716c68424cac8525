import errno
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from jaxcnn.cli import console
from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import DivergedError, UserError


@pytest.fixture(autouse=True)
def _sigterm() -> Iterator[None]:
    """Restores what a command changes for the process."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The statuses with which the process ended for the other processes of its run."""
    statuses: list[int] = []
    monkeypatch.setattr("jaxcnn.devices.processes.leave", statuses.append)
    return statuses


def end(work: Callable[[], object], name: str = "name") -> object:
    """Runs a command that does this, and returns its status."""
    try:
        with console.ending_on_errors(name):
            work()
    except SystemExit as stop:
        return stop.code
    return 0


def raising(error: BaseException) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (UserError("no disk: buy one"), 2, "error: no disk: buy one"),
        (UserError("a\nb\x1b[31m"), 2, "error: a\ufffdb\ufffd[31m"),
        (DivergedError("no number"), 1, "error: no number"),
        (
            OSError(errno.EDQUOT, "", "/a/b"),
            2,
            "error: /a/b: the disk quota is used up; give another path, or repair this one",
        ),
    ],
)
def test_errors_end_with_one_sentence_and_their_status(
    error: BaseException,
    status: int,
    message: str,
    left: list[int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/mnist.py"])
    assert end(raising(error)) == status
    assert capsys.readouterr() == ("", f"mnist.py: {message}\n")
    assert left == [status]  # so that the other processes of a run end as well


def test_defects_keep_their_traceback(left: list[int]) -> None:
    with pytest.raises(RuntimeError, match="a defect"), console.ending_on_errors("name"):
        raise RuntimeError("a defect")
    assert left == []


def test_sigterm(
    left: list[int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def wait() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        while True:
            time.sleep(0.001)

    monkeypatch.setattr(sys, "argv", [""])
    assert end(wait, "mnist") == 143
    assert capsys.readouterr() == ("", "mnist: terminated\n")
    assert left == [143]


@pytest.mark.parametrize("platform", ["cuda", "nonsense"])
def test_a_missing_device(platform: str, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "jaxcnn", "doctor"],
        env={**os.environ, "JAX_PLATFORMS": platform, "JAXCNN_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    message = (
        rf"jaxcnn: error: jax has no device \(.*\): unset JAX_PLATFORMS, which is '{platform}'"
    )
    assert re.match(message, ran.stderr)
    assert ran.stderr.count("\n") == 1


def test_lines_are_printed_in_process_0(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    narrow = Console(file=file, width=9, force_terminal=True, color_system=None)
    console.make_echo(narrow)("a line of [bold] more than 9 letters\x1b[31m", "bold red")
    assert file.getvalue() == "a line of [bold] more than 9 letters\ufffd[31m\n"
    monkeypatch.setattr("jaxcnn.devices.processes.is_main", lambda: False)
    console.make_echo(narrow)("of another process", style="bold")
    assert "another" not in file.getvalue()


def test_the_file_of_a_user_defined_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"sgd": None, "mine:make": "/here/mine.py"}
    monkeypatch.setattr("jaxcnn.optim.named.source_file", files.get)
    lines: list[str] = []
    console.echo_source_files(["sgd", "mine:make"], lines.append)
    assert lines == ["optimizer: mine:make of /here/mine.py"]


def test_scores(tiny_mnist: Dataset) -> None:
    assert console.describe_score(tiny_mnist, 995, 1000) == (
        "test set of mnist: 995 correct of 1,000 total, accuracy 99.50%"
    )
    text = console.describe_score(tiny_mnist, 1000, 1000, tta=True)
    assert text.startswith("test set of mnist with test-time augmentation: 1,000 correct of 1,000")
