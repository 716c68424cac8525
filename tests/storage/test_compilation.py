import os
import subprocess
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from jaxcnn.devices import environment
from jaxcnn.storage import compilation

PROGRAM = """
import jax
from jaxcnn.storage import compilation
if {enabled}:
    compilation.enable_cache(print)
jax.jit(lambda x: x * 2 + 1)(1.0)
"""


def run(enabled: bool) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-c", PROGRAM.format(enabled=enabled)]
    return subprocess.run(argv, check=True, capture_output=True, text=True)


def entries(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*-cache")}


@pytest.fixture
def unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Takes the tests' own settings away, see conftest; returns where the programs then are."""
    monkeypatch.setenv("JAXCNN_CACHE_DIR", str(tmp_path))
    for name in (
        "JAX_COMPILATION_CACHE_DIR",
        "JAX_COMPILATION_CACHE_MAX_SIZE",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES",
    ):
        monkeypatch.delenv(name)
    return tmp_path / "xla" / environment.processor()


def test_programs_are_kept_however_quick_to_compile(unset: Path, tmp_path: Path) -> None:
    run(enabled=False)
    assert list(tmp_path.iterdir()) == []
    run(enabled=True)
    first = entries(unset)
    assert any("lambda" in name for name in first)
    run(enabled=True)
    assert entries(unset) == first


def test_a_program_that_was_cut_is_compiled_anew(unset: Path) -> None:
    """By jax alone it would be reported at every start, and stay as it is."""
    assert run(enabled=True).stdout == ""
    path = next(path for path in unset.glob("*lambda*-cache"))
    size = path.stat().st_size
    for left in (size - 1, 0):
        os.truncate(path, left)
        ended = run(enabled=True)
        assert ended.stdout == (
            f"removed compiled programs that were written in part (1): {unset}\n"
        )
        assert ended.stderr == ""
        zlib.decompress(path.read_bytes())
        ended = run(enabled=True)
        assert (ended.stdout, ended.stderr) == ("", "")


def test_programs_are_checked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / f"{name}-cache" for name in "abc"]
    for second, path in enumerate(paths, start=1):
        path.write_bytes(zlib.compress(b"program"))
        os.utime(path, (second, second))
    (tmp_path / "other").write_bytes(b"")
    read: list[bytes] = []
    monkeypatch.setattr(
        "jaxcnn.storage.compilation._is_complete", lambda content: not read.append(content)
    )
    for new, count in ((0, 3), (0, 1), (2, 2), (2, 1)):  # the newest one is read again
        os.utime(paths[0], (new + 2, new + 2))
        assert compilation._remove_truncated(tmp_path) == 0
        assert len(read) == count
        read.clear()


def test_programs_of_either_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = zlib.compress(b"program")
    assert compilation._is_complete(whole)
    assert not compilation._is_complete(whole[:-1])
    other = b"\x28\xb5\x2f\xfd rest"
    monkeypatch.setitem(sys.modules, "zstandard", None)  # is not installed
    assert compilation._is_complete(other)

    def decompress(content: bytes) -> None:
        if not content.endswith(b"rest"):
            raise RuntimeError

    library = SimpleNamespace(ZstdDecompressor=lambda: SimpleNamespace(decompress=decompress))
    monkeypatch.setitem(sys.modules, "zstandard", library)
    assert compilation._is_complete(other)
    assert not compilation._is_complete(other[:-1])


def test_jax_s_own_variable_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAXCNN_CACHE_DIR", str(tmp_path / "ours"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "theirs"))
    run(enabled=True)
    assert entries(tmp_path / "theirs")
    assert not (tmp_path / "ours").exists()


def test_no_program_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/theirs")
    settings = {
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,  # jax: even where it advises a minimum
    }
    before = {name: getattr(jax.config, name) for name in settings}
    folder = jax.config.jax_compilation_cache_dir
    try:
        for name in settings:
            jax.config.update(name, 5)
        compilation.enable_cache()
        assert {name: getattr(jax.config, name) for name in settings} == settings
        assert jax.config.jax_compilation_cache_dir == folder
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
