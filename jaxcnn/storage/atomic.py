"""A workdir: the folder of a run. One process at a time writes there, each file whole or not."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import filelock
import platformdirs

from jaxcnn.errors import WORKDIR_REMEDY, UserError, as_path, writing


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


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the folder of all caches: `cache_dir`, `JAXCNN_CACHE_DIR` or the user's own.

    Raises:
        UserError: the path that was chosen is none, or the user has no folder.
    """
    if chosen := cache_dir or os.environ.get("JAXCNN_CACHE_DIR"):
        return as_path(chosen)
    try:
        return platformdirs.user_cache_path("jaxcnn")
    except RuntimeError:  # in a container, a user without a name
        raise UserError(
            "this user has no home folder, in which data and compiled programs would be kept: set "
            "JAXCNN_CACHE_DIR to a folder that can be written"
        ) from None


@contextmanager
def exclusive(parent: Path, name: str) -> Iterator[None]:
    """Creates `parent` and holds its lock `name`; on failure, takes back what it created."""
    created = [path for path in (parent, *parent.parents) if not path.exists()]
    lock = parent / f"{name}.lock"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(lock):
            # A process that held the lock before, and failed, may have taken the folder back.
            parent.mkdir(parents=True, exist_ok=True)
            yield
    except BaseException:
        with suppress(OSError):  # another process has come to use the folder
            if created:
                lock.unlink(missing_ok=True)
            for path in created:
                if path.exists():
                    path.rmdir()
        raise


@contextmanager
def staging(parent: Path, prefix: str) -> Iterator[Path]:
    """Gives a new folder in `parent` that is gone afterwards, whatever happens.

    What a killed process left under the same prefix is removed first; the caller holds the lock.
    """
    for stale in parent.glob(f"{prefix}*.staging"):
        shutil.rmtree(stale, ignore_errors=True)
    stage = Path(tempfile.mkdtemp(prefix=prefix, suffix=".staging", dir=parent))
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)
