import os
import pwd
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxcnn.errors import UserError, WriteError
from jaxcnn.storage import atomic

HOLD = """
import sys
from pathlib import Path
from jaxcnn.storage import atomic

with atomic.locked(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()  # until it is closed
"""


def test_a_second_process_is_refused_and_a_dead_one_leaves_no_lock(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(UserError, match="in use by another process"), atomic.locked(folder):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with atomic.locked(folder):
            pass


def test_a_lock_ends_with_its_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", pytest.fail)  # a refusal comes at once
    for _ in range(2):
        with atomic.locked(tmp_path):
            pass
    with pytest.raises(ZeroDivisionError), atomic.locked(tmp_path):
        raise ZeroDivisionError
    with atomic.locked(tmp_path):
        with pytest.raises(UserError, match="in use"), atomic.locked(tmp_path):
            pass
        # The refusal has not taken the lock away.
        with pytest.raises(UserError, match="in use"), atomic.locked(tmp_path):
            pass


def test_a_folder_is_made_with_those_above_it(tmp_path: Path) -> None:
    with atomic.locked(tmp_path / "a" / "b"):
        assert (tmp_path / "a" / "b").is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="give --workdir"), atomic.locked(tmp_path / "file" / "x"):
        pass


def test_a_file_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    atomic.write(path, b"one")
    assert path.read_bytes() == b"one"

    def fail(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteError, match="the disk is full; have more"):
        atomic.write(path, b"another", "have more")
    assert path.read_bytes() == b"one"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


# Writes a file and kills itself at the given system call of those that `write` makes.
KILLED = """
import os
import signal
import sys
from pathlib import Path
from jaxcnn.storage import atomic

path, last = Path(sys.argv[1]), int(sys.argv[2])
calls = []


def counted(name):
    call = getattr(os, name)

    def counting(*args):
        calls.append(name)
        if len(calls) == last:
            print(*calls, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args)

    return counting


for name in ("fsync", "replace", "close"):
    setattr(os, name, counted(name))
atomic.write(path, b"2" * 100_000)
print(*calls, flush=True)
"""


def test_a_killed_writer_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def killed(at: int) -> tuple[int, list[str]]:
        command = [sys.executable, "-c", KILLED, str(path), str(at)]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        return process.returncode, process.stdout.split()

    # On the disk before it gets its name, and the name on the disk before `write` returns.
    whole = ["fsync", "replace", "fsync", "close"]
    for at in range(1, 5):
        atomic.write(path, b"1" * 100_000)
        assert killed(at) == (-signal.SIGKILL, whole[:at])
        assert path.read_bytes() == (b"1" if at <= 2 else b"2") * 100_000
    assert killed(0) == (0, whole)
    assert path.read_bytes() == b"2" * 100_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_cache_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert atomic.cache_root("/x") == Path("/x")
    monkeypatch.setenv("JAXCNN_CACHE_DIR", str(tmp_path))
    assert atomic.cache_root() == tmp_path
    monkeypatch.delenv("JAXCNN_CACHE_DIR")
    assert atomic.cache_root().name == "jaxcnn"


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME", "JAXCNN_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match=r"no home folder.*set JAXCNN_CACHE_DIR"):
        atomic.cache_root()
    monkeypatch.setenv("JAXCNN_CACHE_DIR", "/there")
    assert atomic.cache_root() == Path("/there")
