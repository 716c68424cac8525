"""A cache of decoded arrays: written once, verified at every start, then memory-mapped."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.errors import CACHE_REMEDY, DataError, writing
from jaxcnn.storage import document, manifest
from jaxcnn.storage.atomic import locked, replacing

# Part of every manifest. Increased when the layout changes, so that older caches are rebuilt.
_FORMAT = 2


@dataclass(frozen=True)
class Arrays:
    """The decoded arrays of a data set.

    Attributes:
        arrays: by name, for example "train_images".
        class_names: by label.
    """

    arrays: dict[str, np.ndarray]
    class_names: tuple[str, ...]


def load_or_build(
    folder: Path,
    *,
    fingerprint: dict[str, Any],
    build: Callable[[], Arrays],
    report: Callable[[str], None] = lambda line: None,
) -> Arrays:
    """Opens the cache in `folder`, or builds it if it is absent, stale or damaged.

    A cache is valid if its manifest has the same `fingerprint` and every file has the SHA-256 that
    the manifest states. Of processes that start together one holds the lock and builds the cache,
    which appears under its name in a single rename; the others wait for it.

    Args:
        folder: the folder of this cache.
        fingerprint: identifies the source of the arrays, as JSON values. A cache with another
            fingerprint is stale.
        build: makes the arrays.
        report: called with a line of text when a cache is discarded.

    Returns:
        The arrays, memory-mapped and read-only.

    Raises:
        WriteError: the folder cannot be written.
        DataError: the cache differs from what was just written.
    """
    arrays, _ = _open(folder, fingerprint)
    if arrays is not None:
        return arrays
    lock = locked(folder.parent, f".{folder.name}.lock", wait=True, remedy=CACHE_REMEDY)
    with writing(folder, CACHE_REMEDY), lock:
        arrays, defect = _open(folder, fingerprint)  # another process may have built it
        if arrays is not None:
            return arrays
        if defect:
            report(f"the cache {folder} is rebuilt: {defect}")
        with replacing(folder, f".{folder.name}-") as new:
            _write(new, fingerprint, build())
    arrays, defect = _open(folder, fingerprint)
    if arrays is None:
        raise DataError(
            f"the cache {folder} does not read back as written ({defect}): check the disk, or set "
            "JAXCNN_CACHE_DIR to a folder on another one"
        )
    return arrays


def _open(folder: Path, fingerprint: dict[str, Any]) -> tuple[Arrays | None, str]:
    """Returns the verified arrays, or None and the defect (empty if there is no cache)."""
    try:
        content = manifest.read(folder)
        if content.get("format") != _FORMAT or content.get("fingerprint") != fingerprint:
            return None, "it was built from another version of the data"
        manifest.verify(folder)
        document.check(content["class_names"], [str], "class_names")
        arrays = {
            Path(name).stem: np.load(folder / name, mmap_mode="r", allow_pickle=False)
            for name in content["files"]
        }
        return Arrays(arrays, tuple(content["class_names"])), ""
    except manifest.DamagedError as error:
        return None, str(error) if folder.exists() else ""
    except (OSError, ValueError, KeyError, TypeError) as error:
        return None, f"it cannot be read ({type(error).__name__})"


def _write(folder: Path, fingerprint: dict[str, Any], built: Arrays) -> None:
    """Writes a new cache, each array as a .npy file, and its manifest."""
    for name, array in built.arrays.items():
        # Not np.save, whose error for a full disk does not name the cause.
        with (folder / f"{name}.npy").open("wb") as file:
            header = np.lib.format.header_data_from_array_1_0(array)
            np.lib.format.write_array_header_1_0(file, header)
            file.write(np.ascontiguousarray(array).data)
    content = {
        "format": _FORMAT,
        "fingerprint": fingerprint,
        "class_names": list(built.class_names),
    }
    manifest.seal(folder, content)
