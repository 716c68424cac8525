"""A workdir: the folder of a run. One process at a time writes there, each file whole or not."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from jaxcnn.errors import WORKDIR_REMEDY, UserError, writing


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Creates a folder and keeps it for this process.

    The lock is the operating system's: it goes with the process, however that ends.

    Raises:
        UserError: another process has it.
        WriteError: it cannot be written.
    """
    # Imported here: only what writes locks.
    import filelock

    lock = filelock.FileLock(folder / ".lock", timeout=0)
    with writing(folder, WORKDIR_REMEDY):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except filelock.Timeout:
            raise UserError(
                f"{folder} is in use by another process: wait for it, or give another --workdir"
            ) from None
    try:
        yield
    finally:
        lock.release(force=True)


def write(path: Path, content: bytes, remedy: str = WORKDIR_REMEDY) -> None:
    """Writes a file whole or not at all; once this returns it outlasts a power cut.

    Args:
        path: of the file; one that is there is replaced.
        content: of it.
        remedy: what to do where that fails.

    Raises:
        WriteError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    with writing(path, remedy):
        try:
            with partial.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
