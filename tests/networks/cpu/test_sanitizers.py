"""The kernels under the sanitizers of the C++ compiler, which find what a wrong result may not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jaxcnn.networks.cpu import library

HERE = Path(__file__).parent
GCC = shutil.which("g++")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(GCC is None, reason="g++ and its sanitizers are not there"),
]


def sanitizer(name: str) -> str:
    """The path of a sanitizer's library, which has to be loaded before Python's first."""
    assert GCC is not None
    found = subprocess.check_output([GCC, f"-print-file-name=lib{name}.so"], text=True).strip()
    if not Path(found).is_absolute():
        pytest.skip(f"this g++ comes without lib{name}")
    return found


def test_no_access_is_out_of_bounds_and_no_operation_undefined(tmp_path: Path) -> None:
    """All tests of the kernels again, with AddressSanitizer and UBSan."""
    preload = f"{sanitizer('asan')} {sanitizer('ubsan')}"
    environment = {
        **os.environ,
        "CXX": f"{GCC} -fsanitize=address,undefined -fno-sanitize-recover=undefined",
        library.VARIABLE: "native",
        "LD_PRELOAD": preload,
        "ASAN_OPTIONS": "detect_leaks=0",  # Python's own are many
    }
    names = ("test_stages.py", "test_convolution.py", "test_group_norm.py")
    tests = [str(HERE / name) for name in names]
    options = ["-q", "-n0", "-p", "no:cacheprovider", f"--basetemp={tmp_path / 'tests'}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        env=environment,
        cwd=HERE.parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]


def test_calls_at_once_neither_race_nor_wait_for_each_other(tmp_path: Path) -> None:
    assert GCC is not None
    sanitizer("tsan")
    command = [
        GCC,
        "-std=c++17",
        "-O1",
        "-g",
        "-fsanitize=thread",
        "-pthread",
        f"-I{library._SOURCES}",
    ]
    program = tmp_path / "threads"
    subprocess.run([*command, HERE / "threads.cpp", "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING: ThreadSanitizer" not in done.stderr
