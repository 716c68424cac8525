import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcnn.cli import screen
from jaxcnn.cli.console import ending_on_errors
from jaxcnn.cli.screen import Screen


class Full(io.StringIO):
    """A stream that fails after a number of writes."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room

    def write(self, text: str) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.room -= 1
        return super().write(text)


def test_a_failure_is_remembered_and_the_rest_dropped() -> None:
    stream = Full(1)
    shown = Screen(stream)
    assert [shown.write(text) for text in ("ab", "c", "d")] == [2, 1, 1]
    stream.room = 9
    shown.write("e")
    shown.flush()
    assert stream.getvalue() == "ab"
    assert shown.failure is not None
    assert shown.failure.errno == errno.ENOSPC


def test_characters_that_it_lacks_are_replaced() -> None:
    raw = io.BytesIO()
    shown = Screen(io.TextIOWrapper(raw, encoding="ascii"))
    shown.write("caf\u00e9 \udcff")
    shown.flush()
    assert raw.getvalue() == b"caf? ?"
    assert shown.failure is None
    assert shown.encoding == "ascii"  # all else is the stream's


def test_no_stream_is_no_failure() -> None:
    shown = Screen(None)
    shown.write("nowhere")
    shown.flush()
    assert shown.failure is None


def test_the_streams_are_put_back() -> None:
    before = sys.stdout, sys.stderr

    def fail() -> None:
        with screen.guarded():
            assert isinstance(sys.stdout, Screen)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (sys.stdout, sys.stderr) == before


def test_nothing_is_kept_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of either stream, however the command ends."""
    raws = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, raw in raws.items():
        monkeypatch.setattr(sys, name, io.TextIOWrapper(raw))
    with screen.guarded():
        for name in raws:
            getattr(sys, name).write("a line")
            assert raws[name].getvalue() == b""
    assert [raw.getvalue() for raw in raws.values()] == [b"a line"] * 2


def test_a_line_is_nothing_but_shown() -> None:
    assert screen.line("caf\u00e9 [b]: a\tb\x1b[31m\nc\x00\udcff") == (
        "caf\u00e9 [b]: a\ufffdb\ufffd[31m\ufffdc\ufffd\ufffd"
    )


def test_what_is_lost_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert screen.output_failure() == ""
    monkeypatch.setattr(sys, "stdout", Full(0))
    with screen.guarded():
        assert screen.output_failure() == ""
        sys.stdout.write("a line")
        assert screen.output_failure() == "standard output: the disk is full"


def test_work_is_done_and_its_command_says_that_not_all_was_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", Full(1))
    done: list[int] = []

    def work() -> None:
        with ending_on_errors("x"):
            for number in range(3):
                sys.stdout.write(f"{number}\n")
                done.append(number)

    with pytest.raises(SystemExit) as end:
        work()
    assert done == [0, 1, 2]
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.endswith(": error: standard output: the disk is full; everything else was done\n")
    assert len(said.splitlines()) == 1


FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")


@pytest.mark.parametrize(
    ("streams", "argv", "status", "said"),
    [
        pytest.param("> /dev/full", "--help", 2, "standard output: the disk is full", marks=FULL),
        pytest.param("2> /dev/full", "evaluate", 2, "", marks=FULL),
        ("2>&-", "evaluate", 2, ""),
        (">&-", "--help", 0, ""),
        ("> /dev/null", "--help", 0, ""),
    ],
)
def test_streams_of_a_process(streams: str, argv: str, status: int, said: str) -> None:
    ended = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" -m jaxcnn {argv} {streams}'],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == status
    assert said in ended.stderr
    assert len(ended.stderr.splitlines()) == bool(said)
