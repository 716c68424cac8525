"""JAX's persistent compilation cache, with which a second start takes less time."""

import contextlib
import importlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import jax

from jaxcnn.devices import environment
from jaxcnn.storage.atomic import cache_root

_VARIABLE = "JAX_COMPILATION_CACHE_DIR"
_ZSTANDARD = b"\x28\xb5\x2f\xfd"  # how a compressed content begins, RFC 8878


def enable_cache(report: Callable[[str], None] = lambda line: None) -> None:
    """Keeps compiled programs in the user's cache folder, or in `JAX_COMPILATION_CACHE_DIR`.

    Args:
        report: called with a line of text if truncated programs were removed.
    """
    if not os.environ.get(_VARIABLE):
        jax.config.update("jax_compilation_cache_dir", str(folder()))
    # By default JAX leaves out programs that compile in under a second, as most of these do.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    with contextlib.suppress(OSError):  # a cache that cannot be used costs time only
        if removed := _remove_truncated(folder()):
            report(f"removed compiled programs that were written in part ({removed}): {folder()}")


def folder() -> Path:
    """Returns the folder of the compiled programs."""
    # JAX's keys do not name the processor, and machines may share a home folder.
    return Path(os.environ.get(_VARIABLE) or cache_root() / "xla" / environment.processor())


def _remove_truncated(folder: Path) -> int:
    """Removes programs truncated by a kill or a full disk, which JAX would never replace.

    Programs that were complete at the last call are not read again.

    Returns:
        The number of programs removed.
    """
    mark, removed = folder / ".whole", 0
    latest = before = mark.stat().st_mtime_ns if mark.exists() else 0
    for path in folder.glob("*-cache"):
        changed = path.stat().st_mtime_ns
        if changed < before:
            continue
        if _is_complete(path.read_bytes()):
            latest = max(latest, changed)
        else:
            path.unlink(missing_ok=True)
            removed += 1
    mark.touch()
    os.utime(mark, ns=(latest, latest))
    return removed


def _is_complete(content: bytes) -> bool:
    """Returns whether a compressed program is complete; True if that cannot be checked."""
    try:
        if content.startswith(_ZSTANDARD):  # JAX uses it where it is installed
            importlib.import_module("zstandard").ZstdDecompressor().decompress(content)
        else:
            zlib.decompress(content)
    except ImportError:
        return True
    except Exception:  # both libraries raise their own
        return False
    return True
