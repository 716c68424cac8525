import functools
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxcnn.errors import UserError
from jaxcnn.networks.cpu import library


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process that has not loaded the kernels yet, and its cache folder."""
    monkeypatch.setenv("JAXCNN_CACHE_DIR", str(tmp_path))
    # Once in a process, and the tests have it already.
    monkeypatch.setattr(jax.ffi, "register_ffi_target", lambda *_, **__: None)
    monkeypatch.setattr(library, "_load", functools.cache(library._load.__wrapped__))
    return tmp_path


def compiler(folder: Path, script: str) -> str:
    """A compiler that does as the script says; `$out` is the file that it should write."""
    path = folder / "compiler"
    path.write_text(f'#!/bin/sh\nfor out; do :; done\necho run >> "{folder}/runs"\n{script}\n')
    path.chmod(0o700)
    return str(path)


def test_the_library_is_compiled_once_for_the_user_alone(fresh: Path) -> None:
    assert library.in_use()
    (file,) = (fresh / "kernels").glob("*.so")
    assert file == library.path()
    assert stat.S_IMODE(file.stat().st_mode) == stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    changed = file.stat().st_mtime_ns
    library._load.cache_clear()
    assert library.in_use()
    assert file.stat().st_mtime_ns == changed
    assert not list(fresh.rglob("*.partial"))


def test_another_compiler_makes_another_library(
    fresh: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = library.path()
    monkeypatch.setenv("CXX", compiler(fresh, "exit 1"))
    other = library.path()
    monkeypatch.setenv("CXX", f"{fresh / 'compiler'} -O1")
    assert len({usual, other, library.path()}) == 3


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ('echo "a.cpp: fatal error: no such header" >&2; exit 1', "no such header"),
        ("exit 3", "status 3"),
        ('echo "not a library" > "$out"', "file too short|invalid ELF|not a library|image"),
    ],
)
def test_a_compiler_that_fails_is_no_obstacle(
    script: str,
    reason: str,
    fresh: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("CXX", compiler(fresh, script))
    assert not library.in_use()
    assert library.description() == "xla"
    (line,) = [r.getMessage() for r in caplog.records if "no kernels" in r.getMessage()]
    assert "\n" not in line
    assert library.VARIABLE in line
    assert re.search(reason, line)
    monkeypatch.setenv(library.VARIABLE, "native")
    with pytest.raises(UserError, match="not available"):
        library.in_use()


def test_without_a_compiler_xla_computes(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert not library.in_use()
    assert not library.in_use()
    assert len(caplog.records) == 1
    assert "there is no C++ compiler: no-such-compiler" in caplog.text


def test_a_folder_that_cannot_be_written_is_no_obstacle(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JAXCNN_CACHE_DIR", str(fresh / "file" / "cache"))
    (fresh / "file").touch()
    assert not library.in_use()
    assert str(fresh / "file") in caplog.text


def test_a_library_that_others_can_change_is_not_loaded(
    fresh: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert library.in_use()
    (fresh / "kernels").chmod(0o777)
    library._load.cache_clear()
    assert not library.in_use()
    assert f"others can write to {fresh / 'kernels'}" in caplog.text


def test_the_user_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(library.VARIABLE, "xla")
    assert not library.in_use()
    library.choose("native")
    assert os.environ[library.VARIABLE] == "native"
    assert library.in_use()
    monkeypatch.setenv(library.VARIABLE, "fast")
    with pytest.raises(UserError, match="auto, native, xla, got 'fast'"):
        library.in_use()


def test_on_a_gpu_nothing_is_compiled(fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not library.in_use()
    assert not list(fresh.iterdir())


def test_processes_that_start_together_compile_once(fresh: Path) -> None:
    script = f'exec {library._compiler()[0]} "$@"'
    environment = {**os.environ, "CXX": compiler(fresh, script)}
    code = "from jaxcnn.networks.cpu import library; assert library.in_use()"
    started = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [process.wait() for process in started] == [0, 0, 0]
    assert (fresh / "runs").read_text() == "run\n"
