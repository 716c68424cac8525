"""A manifest: what a folder of files holds, and a digest of each, so that damage is noticed."""

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from jaxcnn.storage import document

NAME = "manifest.json"


class DamagedError(Exception):
    """Files are not what their manifest states; the message names the first such file."""


def seal(folder: Path, content: Mapping[str, Any]) -> None:
    """Writes the manifest of all files that are in a folder.

    Args:
        folder: of the files.
        content: what else the manifest is to say, as JSON values; see `verify`.

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
    """Returns the content of a folder's manifest, with "files"; only the manifest is verified.

    Raises:
        DamagedError: it is missing or was altered.
        ReadError: it cannot be read, which is no damage.
    """
    try:
        manifest = document.read(folder / NAME)
        content: dict[str, Any] = manifest["content"]
        if manifest["sha256"] != _digest(content):
            raise DamagedError(f"{NAME} was altered")
        if not all(_is_entry(*entry) for entry in content["files"].items()):
            raise DamagedError(f"{NAME} is none")
    except FileNotFoundError:
        raise DamagedError(f"{NAME} is missing") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise DamagedError(f"{NAME} is none") from None
    return content


def verify(folder: Path) -> dict[str, Any]:
    """Reads every file of a folder and compares it with the manifest.

    Returns:
        The content of the manifest.

    Raises:
        DamagedError: a file is missing or was altered.
        ReadError: one cannot be read, which is no damage.
    """
    content = read(folder)
    stated: dict[str, list[Any]] = content["files"]
    for name, (size, _) in stated.items():
        # Cheaper than a digest, and says more.
        there = _patiently(folder, name, lambda path: path.stat().st_size)
        if there != size:
            raise DamagedError(f"{name} has {there} bytes instead of {size}")
    found = _digests(folder, list(stated))
    for name, expected in stated.items():
        if found[name] != expected:
            raise DamagedError(f"{name} was altered")
    return content


def _digests(folder: Path, names: list[str]) -> dict[str, list[Any]]:
    """Returns size in bytes and SHA-256 of each file."""

    def digest(path: Path) -> list[Any]:
        if not path.is_file():  # a pipe keeps its reader waiting
            raise FileNotFoundError
        with path.open("rb") as file:
            return [path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()]

    with ThreadPoolExecutor() as threads:
        found = threads.map(lambda name: _patiently(folder, name, digest), names)
        return dict(zip(names, found, strict=True))


def _patiently(folder: Path, name: str, use: Callable[[Path], Any]) -> Any:
    try:
        return document.patiently(folder / name, lambda: use(folder / name))
    except FileNotFoundError:
        raise DamagedError(f"{name} is missing") from None


def _is_entry(name: str, entry: Any) -> bool:
    """Whether that is a file below the folder, with its size and digest."""
    path = PurePosixPath(name)
    below = not path.is_absolute() and ".." not in path.parts
    return below and isinstance(entry, list) and [type(value) for value in entry] == [int, str]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def short_digest(text: str) -> str:
    """Returns twelve hexadecimal digits that stand for `text` in a folder's name."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]
