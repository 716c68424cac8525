import subprocess
import sys
from pathlib import Path

import jax
import pytest

from jaxcnn import compilation

PROGRAM = """
import jax
from jaxcnn import compilation
if {enabled}:
    compilation.enable_cache()
jax.jit(lambda x: x * 2 + 1)(1.0)
"""


def run(enabled: bool) -> None:
    subprocess.run([sys.executable, "-c", PROGRAM.format(enabled=enabled)], check=True)


def entries(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("*-cache")}


def test_programs_are_kept_however_quick_to_compile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JAXCNN_CACHE_DIR", str(tmp_path))
    # The tests have settings of their own, see conftest.
    for name in (
        "JAX_COMPILATION_CACHE_DIR",
        "JAX_COMPILATION_CACHE_MAX_SIZE",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES",
    ):
        monkeypatch.delenv(name)
    run(enabled=False)
    assert list(tmp_path.iterdir()) == []
    run(enabled=True)
    first = entries(tmp_path / "xla")
    assert any("lambda" in name for name in first)
    run(enabled=True)
    assert entries(tmp_path / "xla").keys() == first.keys()


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
