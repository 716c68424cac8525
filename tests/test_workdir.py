import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcnn import workdir
from jaxcnn.errors import UserError, WriteError

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom jaxcnn import workdir\n"
    "with workdir.locked(Path(sys.argv[1])):\n    print('locked', flush=True)\n    time.sleep(60)"
)


def test_a_second_process_is_refused_and_a_dead_one_leaves_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="in use by another process"), workdir.locked(folder):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with workdir.locked(folder):
            pass


def test_a_lock_ends_with_its_block(tmp_path: Path) -> None:
    for _ in range(2):
        with workdir.locked(tmp_path):
            pass
    with pytest.raises(ZeroDivisionError), workdir.locked(tmp_path):
        raise ZeroDivisionError
    with workdir.locked(tmp_path):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="give --workdir"), workdir.locked(tmp_path / "file" / "x"):
        pass


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    workdir.write(path, b"one")
    assert path.read_bytes() == b"one"

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteError, match="the disk is full; have more"):
        workdir.write(path, b"another", "have more")
    assert path.read_bytes() == b"one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def _write_until_killed(path: Path) -> None:
    for number in range(10**6):
        workdir.write(path, str(number % 10).encode() * 100_000)


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    workdir.write(path, b"0" * 100_000)
    for _ in range(5):
        writer = multiprocessing.get_context("spawn").Process(
            target=_write_until_killed, args=(path,)
        )
        writer.start()
        while not list(tmp_path.glob(".*.partial")):
            pass
        writer.kill()
        writer.join()
        content = path.read_bytes()
        assert content == content[:1] * 100_000
