"""A manifest: what a folder of files holds and each file's SHA-256, so that damage is detected."""

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from jaxcnn.storage import document

NAME = "manifest.json"


class DamagedError(Exception):
    """Files differ from what their manifest states; the message names the first such file."""


def seal(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes the manifest of all files in a folder.

    Args:
        folder: of the files.
        content: further JSON values for the manifest; `read` returns them.

    Raises:
        OSError: the manifest cannot be written.
        ReadError: a file cannot be read.
    """
    names = sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )
    whole = {**content, "files": _digests(folder, names)}
    text = json.dumps({"sha256": _digest(whole), "content": whole}, indent=1, allow_nan=False)
    (folder / NAME).write_text(text)  # without a new line, so that every byte counts


def read(folder: Path) -> dict[str, Any]:
    """Returns the content of a folder's manifest; of the files, only the manifest is verified.

    Returns:
        What `seal` was given, and "files": size in bytes and SHA-256 of each file by its name.

    Raises:
        DamagedError: the manifest is missing or was altered.
        ReadError: it cannot be read, which is no damage.
    """
    try:
        manifest = document.read_json(folder / NAME)
        content: dict[str, Any] = manifest["content"]
        if manifest["sha256"] != _digest(content):
            raise DamagedError(f"{NAME} was altered")
        if not all(_is_entry(*entry) for entry in content["files"].items()):
            raise DamagedError(f"{NAME} is not a manifest")
    except FileNotFoundError:
        raise DamagedError(f"{NAME} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedError(f"{NAME} is not a manifest") from None
    return content


def verify(folder: Path) -> dict[str, Any]:
    """Reads every file of a folder and compares its SHA-256 with the manifest.

    Returns:
        The content of the manifest, see `read`.

    Raises:
        DamagedError: a file is missing or was altered.
        ReadError: a file cannot be read, which is no damage.
    """
    content = read(folder)
    stated: dict[str, list[Any]] = content["files"]
    for name, (size, _) in stated.items():  # before any digest: this takes no time
        _check_size(folder, name, size)
    found = _digests(folder, list(stated))
    for name, expected in stated.items():
        if found[name] != expected:
            raise DamagedError(f"{name} was altered")
    return content


def read_verified(folder: Path, name: str, content: Mapping[str, Any]) -> bytes:
    """Returns the bytes of one file once their SHA-256 equals the one that the manifest states.

    Args:
        folder: of the file and its manifest.
        name: of the file.
        content: of the manifest, see `read`.

    Raises:
        DamagedError: the file is missing or was altered.
        ReadError: it cannot be read, which is no damage.
    """
    if name not in content["files"]:
        raise DamagedError(f"{NAME} does not list {name}")
    size, sha256 = content["files"][name]
    _check_size(folder, name, size)
    found = _retried(folder, name, Path.read_bytes)
    if hashlib.sha256(found).hexdigest() != sha256:
        raise DamagedError(f"{name} was altered")
    return found


def _check_size(folder: Path, name: str, size: int) -> None:
    def measure(path: Path) -> int:
        if not path.is_file():  # the reader of a pipe would wait for ever
            raise FileNotFoundError
        return path.stat().st_size

    if (found := _retried(folder, name, measure)) != size:
        raise DamagedError(f"{name} has {found} bytes instead of {size}")


def _digests(folder: Path, names: list[str]) -> dict[str, list[Any]]:
    """Returns size in bytes and SHA-256 of each file."""

    def digest(path: Path) -> list[Any]:
        with path.open("rb") as file:
            return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]

    with ThreadPoolExecutor() as threads:
        found = threads.map(lambda name: _retried(folder, name, digest), names)
        return dict(zip(names, found, strict=True))


def _retried(folder: Path, name: str, use: Callable[[Path], Any]) -> Any:
    """Returns `use(folder / name)`, tried again where the system cannot read for a moment."""
    try:
        return document.with_retries(folder / name, lambda: use(folder / name))
    except FileNotFoundError:
        raise DamagedError(f"{name} is missing") from None


def _is_entry(name: str, entry: Any) -> bool:
    """Returns whether `name` is below the folder, and `entry` a size and a digest."""
    path = PurePosixPath(name)
    below = not path.is_absolute() and ".." not in path.parts
    return below and isinstance(entry, list) and [type(value) for value in entry] == [int, str]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def short_digest(text: str) -> str:
    """Returns the first twelve hexadecimal digits of a text's SHA-256, for a folder's name."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
