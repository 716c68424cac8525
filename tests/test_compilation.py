import subprocess
import sys
from pathlib import Path

import pytest

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
