"""jax's persistent compilation cache, so that a second start is quick."""

import contextlib
import importlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path

import jax

from jaxcnn.devices import environment
from jaxcnn.storage.atomic import cache_root

_JAX_S_OWN = "JAX_COMPILATION_CACHE_DIR"
_ZSTANDARD = b"\x28\xb5\x2f\xfd"  # the first bytes of what it compresses, RFC 8878


def enable_cache(report: Callable[[str], None] = lambda line: None) -> None:
    """Keeps compiled programs in the user's cache folder, unless jax was told another place.

    Args:
        report: called with a line of text about programs of which only a part was written.
    """
    if not os.environ.get(_JAX_S_OWN):
        jax.config.update("jax_compilation_cache_dir", str(folder()))
    # By default jax leaves out programs that compile in under a second, most of ours.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    with contextlib.suppress(OSError):  # without a cache all is compiled, as it would be then
        if removed := _remove_cut(folder()):
            report(f"removed compiled programs that were written in part ({removed}): {folder()}")


def folder() -> Path:
    """Returns where `enable_cache` keeps the programs."""
    # jax's keys leave the processor out, and machines may share a home folder.
    return Path(os.environ.get(_JAX_S_OWN) or cache_root() / "xla" / environment.processor())


def _remove_cut(folder: Path) -> int:
    """Removes programs that were cut by a kill or a full disk: jax would never write them anew.

    Those that were whole the last time are not read again.

    Returns:
        How many.
    """
    mark, removed = folder / ".whole", 0
    latest = before = mark.stat().st_mtime_ns if mark.exists() else 0
    for path in folder.glob("*-cache"):
        changed = path.stat().st_mtime_ns
        if changed < before:
            continue
        if _is_whole(path.read_bytes()):
            latest = max(latest, changed)
        else:
            path.unlink(missing_ok=True)
            removed += 1
    mark.touch()
    os.utime(mark, ns=(latest, latest))
    return removed


def _is_whole(content: bytes) -> bool:
    """Returns whether a compressed program has its end, as far as that can be told here."""
    try:
        if content.startswith(_ZSTANDARD):  # which jax takes where it is installed
            importlib.import_module("zstandard").ZstdDecompressor().decompress(content)
        else:
            zlib.decompress(content)
    except ImportError:
        return True
    except Exception:  # of either library
        return False
    return True
