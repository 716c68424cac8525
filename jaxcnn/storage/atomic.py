"""Files and folders that appear complete or not at all, and the lock that protects a folder."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import platformdirs

from jaxcnn.errors import WORKDIR_REMEDY, UserError, as_path, writing


@contextmanager
def locked(
    folder: Path, name: str = ".lock", *, wait: bool = False, remedy: str = WORKDIR_REMEDY
) -> Iterator[None]:
    """Creates a folder and holds a lock in it; on failure, removes what is still empty of it.

    The lock is the operating system's: it ends with the process, however the process ends.

    Args:
        folder: created where it does not exist.
        name: of the lock's file in the folder.
        wait: whether to wait for a process that holds the lock; it is an error otherwise.
        remedy: the advice of an error where the folder cannot be written.

    Raises:
        UserError: another process holds the lock.
        WriteError: the folder cannot be written.
    """
    # Imported here: only what writes locks.
    import filelock

    created = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = filelock.FileLock(folder / name)
    try:
        with writing(folder, remedy):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=-1 if wait else 0)
            except filelock.Timeout:
                raise UserError(
                    f"{folder} is in use by another process: wait for it, or give another --workdir"
                ) from None
            # A process that held the lock before, and failed, may have removed the folder.
            folder.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):  # another process uses the folder
            if created and lock.is_locked and list(folder.iterdir()) == [folder / name]:
                (folder / name).unlink()
            for path in created:
                if path.exists():
                    path.rmdir()
        raise
    finally:
        lock.release(force=True)


def write(path: Path, content: bytes, remedy: str = WORKDIR_REMEDY) -> None:
    """Writes a complete file or none; once this returns, the file survives a power cut.

    Args:
        path: of the file; an existing one is replaced.
        content: of the file.
        remedy: the advice of an error where the file cannot be written.

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


@contextmanager
def staging(parent: Path, prefix: str) -> Iterator[Path]:
    """Creates a temporary folder that is removed afterwards, whatever happens.

    Args:
        parent: where it is created; the caller holds a lock, see `locked`.
        prefix: how its name begins. Folders that killed processes have left under the same prefix
            are removed.

    Yields:
        The folder.
    """
    remove_stale(parent, prefix)
    stage = Path(tempfile.mkdtemp(prefix=prefix, suffix=".staging", dir=parent))
    try:
        yield stage
    finally:
        shutil.rmtree(stage, ignore_errors=True)


@contextmanager
def replacing(folder: Path, prefix: str) -> Iterator[Path]:
    """Creates a folder that gets its name, or takes the place of another, once it is complete.

    Args:
        folder: the name; an existing folder is replaced.
        prefix: see `staging`.

    Yields:
        The new and empty folder. If the block fails, it is removed and the existing one stays.
    """
    with staging(folder.parent, prefix) as stage:
        new = stage / "new"
        new.mkdir()
        yield new
        if folder.exists():
            folder.rename(stage / "old")
        new.rename(folder)


def remove_stale(parent: Path, prefix: str) -> None:
    """Removes the folders of `staging` that killed processes have left.

    Args:
        parent: where they are; the caller holds a lock, see `locked`.
        prefix: how their names begin.
    """
    for stale in parent.glob(f"{prefix}*.staging"):
        shutil.rmtree(stale, ignore_errors=True)


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Returns the folder of all caches: `cache_dir`, `JAXCNN_CACHE_DIR` or the user's own.

    Raises:
        UserError: the given path is not a path, or the user has no home folder.
    """
    if chosen := cache_dir or os.environ.get("JAXCNN_CACHE_DIR"):
        return as_path(chosen)
    try:
        return platformdirs.user_cache_path("jaxcnn")
    except RuntimeError:  # in a container, a user without a name
        raise UserError(
            "this user has no home folder for the caches of data and compiled programs: set "
            "JAXCNN_CACHE_DIR to a folder that can be written"
        ) from None
