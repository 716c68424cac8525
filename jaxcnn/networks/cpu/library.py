"""The library of kernels: the folder `native`, compiled for this processor when it is first wanted.

Without a C++ compiler, or where the library cannot be kept, XLA computes everything; the results
are the same up to rounding.
"""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from jaxcnn.devices import environment
from jaxcnn.errors import CACHE_REMEDY, UserError
from jaxcnn.storage.atomic import cache_root, locked

KernelsName = Literal["auto", "native", "xla"]

VARIABLE = "JAXCNN_KERNELS"
FORWARD, BACKWARD = "jaxcnn_forward", "jaxcnn_backward"
GROUP_NORM = "jaxcnn_group_norm_forward"
GROUP_NORM_BACKWARD = "jaxcnn_group_norm_backward"
_SYMBOLS = {
    FORWARD: "JaxcnnForward",
    BACKWARD: "JaxcnnBackward",
    GROUP_NORM: "JaxcnnGroupNormForward",
    GROUP_NORM_BACKWARD: "JaxcnnGroupNormBackward",
}

_SOURCES = Path(__file__).with_name("native")
_COMPILERS = ("c++", "g++", "clang++")
_HOST = "-mcpu=native" if platform.machine() in ("aarch64", "arm64") else "-march=native"
_FLAGS = ["-std=c++17", "-O3", _HOST, "-fPIC", "-shared", "-pthread"]
_SECONDS = 600  # that a compiler may take; usual are 5 to 15
_REMEDY = (
    "training on CPU takes four to nine times as long as with a C++ compiler (c++, g++, clang++ or "
    f"CXX) and a cache folder of one's own for libraries; {VARIABLE}=xla silences this"
)

_log = logging.getLogger(__name__)


class UnavailableError(Exception):
    """The kernels cannot be compiled or loaded here; the message says why."""


def choose(kernels: KernelsName) -> None:
    """Sets what computes convolutional layers on CPU, for this process and those it starts.

    To be called before anything is traced.

    Args:
        kernels: "native" for the kernels or an error, "xla" for XLA, "auto" for the kernels where
            they can be compiled.
    """
    os.environ[VARIABLE] = kernels


def in_use() -> bool:
    """Returns whether the kernels compute convolutional layers, which are loaded then.

    They do so on CPU unless `JAXCNN_KERNELS` is "xla". The first call on a machine compiles them;
    where that fails, a line is logged, once in a process.

    Raises:
        UserError: `JAXCNN_KERNELS` has another value than "auto", "native" and "xla", or it is
            "native" and the kernels are not available.
    """
    wanted = os.environ.get(VARIABLE, "auto")
    if wanted not in get_args(KernelsName):
        known = ", ".join(get_args(KernelsName))
        raise UserError(f"{VARIABLE} takes one of {known}, got {wanted!r}")
    if wanted == "xla" or jax.default_backend() != "cpu":
        return False
    reason = _load()
    if reason and wanted == "native":
        raise UserError(f"the kernels are not available: {reason}")
    return not reason


def kernel(name: str, shapes: Sequence[tuple[int, ...]]) -> Any:
    """Returns a kernel as a function of arrays that returns a list of float32 arrays.

    Members of an ensemble come one after the other: a kernel alone fills the machine.

    Args:
        name: `FORWARD`, say.
        shapes: of the arrays that it returns.

    Raises:
        UserError: there are no kernels here, see `in_use`.
    """
    if not in_use():
        raise UserError(f"stages are computed by kernels for CPU: unset {VARIABLE}=xla")
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.ffi.ffi_call(name, results, vmap_method="sequential")


def description() -> str:
    """Returns what computes convolutional layers: "native" or "xla"."""
    return "native" if in_use() else "xla"


@functools.cache
def _load() -> str:
    """Compiles, loads and registers the kernels, and returns why it failed, or ""."""
    try:
        library = ctypes.CDLL(str(_compiled()))
        for target, symbol in _SYMBOLS.items():
            handler = jax.ffi.pycapsule(getattr(library, symbol))
            jax.ffi.register_ffi_target(target, handler, platform="cpu")
    except (UnavailableError, UserError, OSError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        if os.environ.get(VARIABLE, "auto") == "auto":
            _log.warning("no kernels for this processor (%s): %s", reason, _REMEDY)
        return reason
    return ""


def path() -> Path:
    """Returns where the library is kept: by its source, the compiler, flags and the processor.

    Raises:
        UnavailableError: there is no compiler.
    """
    return cache_root() / "kernels" / f"{_digest([*_compiler(), *_FLAGS])}.so"


def _compiled() -> Path:
    """Returns the path of the library, which is compiled if it is not there yet.

    Raises:
        UnavailableError: there is no compiler, it fails, or the folder is not the user's alone.
        WriteError: the folder cannot be written.
    """
    file = path()
    folder = file.parent
    if not file.exists():
        # Of processes that start together one compiles, and the others wait for it.
        with locked(folder, wait=True, remedy=CACHE_REMEDY):
            folder.chmod(0o700)
            if not file.exists():
                _compile(file)
    for place in (folder, file):
        status = place.stat()
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
            raise UnavailableError(f"others can write to {place}")
    return file


def _compile(file: Path) -> None:
    """Compiles the library to a file that is whole or not there."""
    command = [*_compiler(), *_FLAGS]
    _log.warning("compiling kernels for this processor, which takes some seconds, once")
    partial = file.with_suffix(f".{os.getpid()}.partial")
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [
                *command,
                "-isystem",
                jax.ffi.include_dir(),
                str(_SOURCES / "kernels.cpp"),
                "-o",
                str(partial),
            ],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
        )
        if done.returncode:
            errors = [line for line in done.stderr.splitlines() if "error" in line]
            detail = (errors or done.stderr.splitlines() or ["no message"])[0]
            raise UnavailableError(f"{command[0]} ends with status {done.returncode}: {detail}")
        partial.chmod(0o700)
        os.replace(partial, file)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{command[0]} takes more than {_SECONDS} s") from None
    finally:
        partial.unlink(missing_ok=True)
    _log.info("compiled %s in %.1f s", file, time.perf_counter() - began)


def _compiler() -> list[str]:
    """Returns the command of the C++ compiler: `CXX`, or the first that is found.

    Raises:
        UnavailableError: there is none.
    """
    named = shlex.split(os.environ.get("CXX", ""))
    candidates = [named] if named else [[name] for name in _COMPILERS]
    for command in candidates:
        if found := shutil.which(command[0]):
            return [found, *command[1:]]
    raise UnavailableError(f"there is no C++ compiler: {' '.join(named) or ', '.join(_COMPILERS)}")


def _digest(command: list[str]) -> str:
    """Returns a digest of all that decides the library: its sources, compiler, flags, processor."""
    compiler = Path(command[0]).resolve()
    status = compiler.stat()
    changed = f"{status.st_size} {status.st_mtime_ns}"  # asking the compiler takes a process
    parts = [*command, str(compiler), changed, environment.processor(), version("jaxlib")]
    sources = [path.read_bytes() for path in sorted(_SOURCES.iterdir()) if path.is_file()]
    return hashlib.sha256(b"\n".join(["\n".join(parts).encode(), *sources])).hexdigest()[:32]
