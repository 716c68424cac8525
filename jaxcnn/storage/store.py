"""The checkpoints of a run that is being trained: claimed by one process, saved and resumed.

Once a save returns, the checkpoint survives a power cut; a save that fails leaves the checkpoints
before it as they were.
"""

import contextlib
import itertools
import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxcnn.errors import WORKDIR_REMEDY, ReadError, UserError, WriteError, writing
from jaxcnn.storage import atomic, document, fingerprint, manifest
from jaxcnn.storage.arrays import leaf_types, serialize_pytree
from jaxcnn.storage.checkpoint import (
    ARRAYS,
    FORMAT,
    Checkpoint,
    Policy,
    best_checkpoint,
    folder_name,
    list_checkpoints,
    newest_undamaged,
)

# What the run is. Every checkpoint states it too; this file serves until there is one.
_RUN = "run.json"
# Of the names of unfinished and removed checkpoints.
_STAGING = ".step-"


class CheckpointStore:
    """The checkpoints of one run, open for writing; see `open_store`.

    Attributes:
        every: the interval between two saves.
    """

    def __init__(
        self, policy: Policy, run: Mapping[str, Any], growing: Collection[str] = ()
    ) -> None:
        self._policy = policy
        self._growing = growing
        self.every = policy.every
        self._run: dict[str, Any] = fingerprint.of(run)

    def claim(self) -> None:
        """Makes the folder this run's, or checks that the run in it may be resumed.

        Raises:
            UserError: the folder holds another run, or the policy excludes what is to be done.
            WriteError: the folder cannot be written.
        """
        folder, path = self._policy.folder, self._policy.folder / _RUN
        begun = path.exists() or bool(list_checkpoints(folder))
        if begun and self._policy.resume == "never":
            raise UserError(
                f"{folder} holds a run already: give another --workdir, or --resume auto to resume "
                "it"
            )
        if not begun and self._policy.resume == "must":
            raise UserError(
                f"{folder} holds no run to resume: give the --workdir of one, or --resume auto"
            )
        known = _known_run(folder)
        if known is None:
            content = json.dumps(self._run, indent=1) + "\n"
            atomic.write(path, content.encode())
        else:
            _check_same_run(known, self._run, self._growing, folder)

    def resume(self, like: Any) -> tuple[Any, dict[str, Any], Path] | None:
        """Restores the newest undamaged checkpoint, and sets aside the damaged ones after it.

        Args:
            like: a pytree of arrays, or of their shapes and dtypes, as it is saved.

        Returns:
            The pytree that was saved, its progress and its folder; None if nothing was saved yet.

        Raises:
            ReadError: a checkpoint cannot be read, which is no damage.
            UserError: all checkpoints are damaged, or the newest undamaged one does not fit `like`.
        """
        folder = self._policy.folder

        def restore(checkpoint: Checkpoint) -> tuple[Any, dict[str, Any]]:
            return checkpoint.restore(like), checkpoint.read()["progress"]

        there = list_checkpoints(folder)
        found = newest_undamaged(folder, restore, self._policy.report)
        if found is None:
            if there:
                raise UserError(
                    f"every checkpoint in {folder} is damaged: remove the folder to start again, "
                    "or give another --workdir"
                )
            return None
        checkpoint, (tree, progress) = found
        for newer in there[there.index(checkpoint) + 1 :]:
            _set_aside(newer.folder)
        return tree, progress, checkpoint.folder

    def save(
        self, step: int, tree: Any, progress: Mapping[str, Any], score: float | None = None
    ) -> Path:
        """Saves a checkpoint, and removes those that are not to be kept.

        Args:
            step: optimizer steps taken.
            tree: a pytree of arrays.
            progress: what else is needed to resume, as JSON values.
            score: higher is better; the best checkpoint is kept.

        Returns:
            The folder of the checkpoint.

        Raises:
            WriteError: the checkpoint cannot be written, or cannot be read back.
        """
        folder = self._policy.folder / folder_name(step)
        arrays = serialize_pytree(tree)
        content = {
            "format": FORMAT,
            "step": step,
            "run": self._run,
            "progress": dict(progress),
            "score": score,
            "leaves": leaf_types(tree),
        }
        with writing(folder, WORKDIR_REMEDY):
            with atomic.replacing(folder, _STAGING) as new:
                (new / ARRAYS).write_bytes(arrays)
                manifest.seal(new, content)
                _check_written(Checkpoint(new, step), arrays)
                for path in (*new.iterdir(), new):
                    atomic.sync(path)
            atomic.sync(folder.parent)
            self._remove_old()
        return folder

    def _remove_old(self) -> None:
        there = list_checkpoints(self._policy.folder)
        kept = {checkpoint.step for checkpoint in there[-self._policy.keep :]}
        best = best_checkpoint(self._policy.folder)
        for checkpoint in there:
            if checkpoint.step not in kept and checkpoint != best:
                # Renamed first, so that no listed checkpoint is ever incomplete.
                with atomic.staging(self._policy.folder, _STAGING) as stage:
                    checkpoint.folder.rename(stage / checkpoint.folder.name)


@contextlib.contextmanager
def open_store(
    policy: Policy, run: Mapping[str, Any], growing: Collection[str] = ()
) -> Iterator[CheckpointStore]:
    """Opens the checkpoints of a run for this process alone.

    Args:
        policy: where they are.
        run: what identifies the run, as JSON values: a run with other values is not resumed.
        growing: names of whole numbers in `run` that may be larger than those of the run to resume.

    Raises:
        UserError: another process writes there, or see `CheckpointStore.claim`.
        WriteError: the folder cannot be written.
    """
    with atomic.locked(policy.folder):
        atomic.remove_stale(policy.folder, _STAGING)
        store = CheckpointStore(policy, run, growing)
        store.claim()
        yield store


def _check_written(checkpoint: Checkpoint, arrays: bytes) -> None:
    """Reads back what was written, before it counts as a checkpoint."""
    try:
        content = checkpoint.read()
        if manifest.read_verified(checkpoint.folder, ARRAYS, content) != arrays:
            raise manifest.DamagedError(f"{ARRAYS} holds other bytes than were written")
    except (manifest.DamagedError, ReadError) as error:
        raise WriteError(
            f"{checkpoint.folder} cannot be read back ({error}); {WORKDIR_REMEDY}"
        ) from error


def _known_run(folder: Path) -> dict[str, Any] | None:
    """Returns what identifies the run in a folder, by its newest file that is not damaged."""
    for checkpoint in reversed(list_checkpoints(folder)):
        with contextlib.suppress(manifest.DamagedError):
            run: dict[str, Any] = checkpoint.read()["run"]
            return run
    with contextlib.suppress(FileNotFoundError, ValueError):
        content = document.read_json(folder / _RUN)
        return content if isinstance(content, dict) else None
    return None


def _check_same_run(
    there: Mapping[str, Any], here: Mapping[str, Any], growing: Collection[str], folder: Path
) -> None:
    """Refuses to resume another run, and names the differences."""

    def may_be(name: str, old: Any, new: Any) -> bool:
        return old == new or (name in growing and type(old) is type(new) is int and old < new)

    different = [
        f"{name} {there.get(name)} there and {here.get(name)} here"
        for name in sorted(there.keys() | here.keys())
        if not may_be(name, there.get(name), here.get(name))
    ]
    if different:
        raise UserError(
            f"{folder} holds another run ({'; '.join(different)}): give another --workdir, or the "
            "flags of that run to resume it"
        )


def _set_aside(folder: Path) -> None:
    """Renames a damaged checkpoint, for its owner to look at; it is never removed."""
    endings = itertools.chain(["damaged"], (f"damaged-{number}" for number in itertools.count(2)))
    asides = (folder.with_name(f"{folder.name}.{ending}") for ending in endings)
    with writing(folder, WORKDIR_REMEDY):
        folder.rename(next(path for path in asides if not path.exists()))
