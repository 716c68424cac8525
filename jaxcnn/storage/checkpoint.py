"""Checkpoints of a run: saved whole or not at all, verified before anything is restored.

A save that has returned is on the disk, in a folder that got its name last. Its manifest has a
digest of every file and, beside the arrays, all that is needed to go on with the run.
"""

import contextlib
import itertools
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from jaxcnn.errors import WORKDIR_REMEDY, UserError, as_path, writing
from jaxcnn.storage import atomic, document, fingerprint, manifest
from jaxcnn.storage.arrays import read_arrays, write_arrays

# Part of every manifest: raised when the layout changes.
_FORMAT = 2
_ARRAYS = "arrays"
# What the run is; for the time before its first checkpoint, which says it too.
_RUN = "run.json"
_NAME = re.compile(r"step-(\d{10})")

Resume = Literal["auto", "never", "must"]
Used = TypeVar("Used")


@dataclass(frozen=True)
class Every:
    """How often to save: every so many epochs or optimizer steps; 0 for at the end only."""

    count: int = 1
    unit: Literal["epochs", "steps"] = "epochs"

    @classmethod
    def parse(cls, text: str) -> "Every":
        """Reads "2" or "2epochs", and "500steps".

        Raises:
            UserError: it is neither.
        """
        match = re.fullmatch(r"([0-9]{1,9}) ?(epochs?|steps?)?", text)
        if not match:
            raise UserError(
                f"--checkpoint-every takes a number of epochs, or of steps as in 500steps; 0 for "
                f"at the end only; got {text!r}"
            )
        unit = match[2] or "epochs"
        return cls(int(match[1]), "steps" if unit.startswith("step") else "epochs")

    def steps(self, steps_an_epoch: int) -> int:
        """Returns after how many steps a save is due again; 0 for never."""
        return self.count * (1 if self.unit == "steps" else steps_an_epoch)


@dataclass(frozen=True)
class Policy:
    """Where checkpoints go, when, and what happens to a run that is there.

    Attributes:
        folder: of one run's checkpoints alone.
        every: how often to save.
        keep: how many of the latest to keep; the best one stays too.
        resume: "auto" goes on with a run that is there or begins one; "never" and "must" do one.
        report: called with a line of text about what is resumed or found damaged.
    """

    folder: Path
    every: Every = Every()
    keep: int = 2
    resume: Resume = "auto"
    report: Callable[[str], None] = lambda line: None

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", as_path(self.folder))
        if self.keep < 1:
            raise UserError(f"--keep takes a whole number from 1, got {self.keep}")


@dataclass(frozen=True)
class Checkpoint:
    """A folder that holds one.

    Attributes:
        folder: of its files.
        step: optimizer steps taken by then.
    """

    folder: Path
    step: int

    def read(self) -> dict[str, Any]:
        """Returns what its manifest says: "run", "progress", "score" and "leaves".

        Raises:
            DamagedError: that is missing or was altered.
            ReadError: it cannot be read, which is no damage.
            UserError: another version of this package has saved it.
        """
        return self._checked(manifest.read(self.folder))

    def verify(self) -> dict[str, Any]:
        """Returns the same once every file has been read and found as it was written.

        Raises:
            DamagedError: one is not; the message names it.
            ReadError: one cannot be read, which is no damage.
            UserError: another version of this package has saved it.
        """
        return self._checked(manifest.verify(self.folder))

    def restore(self, like: Any, *, partial: bool = False) -> Any:
        """Verifies every file and returns the arrays.

        Args:
            like: a tree of arrays, or of their shapes and dtypes, as it was saved.
            partial: whether it may be a part of what was saved.

        Returns:
            That tree with the arrays that were saved, bit by bit.

        Raises:
            DamagedError: a file is missing or was altered, or the arrays are not those saved.
            ReadError: one cannot be read, which is no damage.
            UserError: what was saved has other names, shapes or dtypes than `like`.
        """
        leaves = self.verify()["leaves"]
        return read_arrays(self.folder / _ARRAYS, like, leaves, partial=partial)

    def _checked(self, content: dict[str, Any]) -> dict[str, Any]:
        if isinstance(found := content.get("format"), int) and found != _FORMAT:
            raise UserError(
                f"{self.folder} was saved by another version of this package: take that one, or "
                "give another workdir"
            )
        kinds = {"format": int, "run": dict, "progress": dict, "leaves": list, "step": int}
        good = all(isinstance(content.get(name), kind) for name, kind in kinds.items())
        good = good and isinstance(content.get("score", ""), float | int | None)
        good = good and all(map(_is_leaf, content["leaves"]))
        if not good:
            raise manifest.DamagedError(f"{manifest.NAME} is no checkpoint's")
        if content["step"] != self.step:
            raise manifest.DamagedError(f"it is of step {content['step']}, and its name is not")
        return content


def listed(folder: Path) -> list[Checkpoint]:
    """Returns the checkpoints in a folder, the oldest first; none where there is no folder."""
    if not folder.is_dir():
        return []
    found = ((path, _NAME.fullmatch(path.name)) for path in folder.iterdir())
    checkpoints = [Checkpoint(path, int(match[1])) for path, match in found if match]
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def best(folder: Path) -> Checkpoint | None:
    """Returns the checkpoint with the highest score, the latest of several, if one has a score."""
    scored: list[tuple[float, int, Checkpoint]] = []
    for checkpoint in listed(folder):
        with contextlib.suppress(manifest.DamagedError):
            score = checkpoint.read()["score"]
            if score is not None:
                scored.append((score, checkpoint.step, checkpoint))
    return max(scored, key=lambda entry: entry[:2])[2] if scored else None


def sound(folder: Path, report: Callable[[str], None]) -> Iterator[Checkpoint]:
    """Yields the checkpoints that verify, the newest first, and reports the damaged ones."""
    return (found for found, _ in usable(folder, Checkpoint.verify, report))


def usable(
    folder: Path, use: Callable[[Checkpoint], Used], report: Callable[[str], None]
) -> Iterator[tuple[Checkpoint, Used]]:
    """Yields the checkpoints that can be used, the newest first, and what using them gives.

    Args:
        folder: of the checkpoints.
        use: restores one, say; it raises `DamagedError` where that cannot be.
        report: called with a line of text about each that is damaged.
    """
    for checkpoint in reversed(listed(folder)):
        try:
            used = use(checkpoint)
        except manifest.DamagedError as error:
            report(f"the checkpoint {checkpoint.folder} is damaged and not used: {error}")
        else:
            yield checkpoint, used


class Store:
    """The checkpoints of one run, open for writing. See `opened`."""

    def __init__(self, policy: Policy, run: Mapping[str, Any]) -> None:
        self._policy = policy
        self.every = policy.every
        self._run: dict[str, Any] = fingerprint.of(run)

    def claim(self) -> None:
        """Makes the folder this run's, or finds out whether the run there may be gone on with.

        Raises:
            UserError: it may not: the run there is another one, or the policy is against it.
            WriteError: the folder cannot be written.
        """
        folder, path = self._policy.folder, self._policy.folder / _RUN
        begun = path.exists() or bool(listed(folder))
        if begun and self._policy.resume == "never":
            raise UserError(
                f"{folder} holds a run already: give another --workdir, or --resume auto to go on "
                "with it"
            )
        if not begun and self._policy.resume == "must":
            raise UserError(
                f"{folder} holds no run to go on with: give the --workdir of one, or --resume auto"
            )
        known = _known_run(folder)
        if known is None:
            content = json.dumps(self._run, indent=1) + "\n"
            atomic.write(path, content.encode())
        else:
            _check_same(known, self._run, folder)

    def resume(self, like: Any) -> tuple[Any, dict[str, Any], Path] | None:
        """Restores the newest sound checkpoint, and sets aside damaged ones after it.

        Returns:
            The tree that was saved, its progress and its folder; None where none was saved yet.

        Raises:
            UserError: all of them are damaged.
        """
        folder = self._policy.folder
        there = listed(folder)

        def use(checkpoint: Checkpoint) -> tuple[Any, dict[str, Any]]:
            return checkpoint.restore(like), checkpoint.read()["progress"]

        for checkpoint, (tree, progress) in usable(folder, use, self._policy.report):
            for newer in there[there.index(checkpoint) + 1 :]:
                _set_aside(newer.folder)
            return tree, progress, checkpoint.folder
        if there:
            raise UserError(
                f"no checkpoint in {folder} is sound: remove the folder to begin anew, or give "
                "another --workdir"
            )
        return None

    def save(
        self, step: int, tree: Any, progress: Mapping[str, Any], score: float | None = None
    ) -> Path:
        """Saves a checkpoint, on the disk once this returns, and removes what is not kept.

        Args:
            step: optimizer steps taken.
            tree: of arrays.
            progress: what else is needed to go on, as JSON values.
            score: higher is better; the best checkpoint is kept.

        Returns:
            Its folder.

        Raises:
            WriteError: it cannot be written; those before it are as they were.
        """
        folder = self._policy.folder / f"step-{step:010d}"
        partial = folder.with_name(f"{folder.name}.partial")
        content = {
            "format": _FORMAT,
            "step": step,
            "run": self._run,
            "progress": dict(progress),
            "score": score,
        }
        with writing(folder, WORKDIR_REMEDY):
            try:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir()
                leaves = write_arrays(partial / _ARRAYS, tree)
                manifest.seal(partial, {**content, "leaves": leaves})
                for path in (*partial.rglob("*"), partial):
                    atomic.sync(path)
                if folder.exists():
                    _remove(folder)
                partial.rename(folder)
                atomic.sync(folder.parent)
            except BaseException:
                shutil.rmtree(partial, ignore_errors=True)
                raise
            self._thin_out()
        return folder

    def _thin_out(self) -> None:
        there = listed(self._policy.folder)
        kept = {checkpoint.step for checkpoint in there[-self._policy.keep :]}
        first = best(self._policy.folder)
        for checkpoint in there:
            if checkpoint.step not in kept and checkpoint != first:
                _remove(checkpoint.folder)


@contextlib.contextmanager
def open_store(policy: Policy, run: Mapping[str, Any]) -> Iterator[Store]:
    """Opens a run's checkpoints for this process alone.

    Args:
        policy: where they are.
        run: what the run is, as JSON values: a run with other values is not gone on with.

    Raises:
        UserError: another process writes there, or `Store.claim` is against it.
        WriteError: the folder cannot be written.
    """
    with atomic.locked(policy.folder):
        for pattern in ("step-*.partial", "step-*.removed"):  # left by a process that was killed
            for path in policy.folder.glob(pattern):
                shutil.rmtree(path, ignore_errors=True)
        store = Store(policy, run)
        store.claim()
        yield store


def _known_run(folder: Path) -> dict[str, Any] | None:
    """Returns what the run in a folder is, as far as anything sound says so."""
    for checkpoint in reversed(listed(folder)):
        with contextlib.suppress(manifest.DamagedError):
            run: dict[str, Any] = checkpoint.read()["run"]
            return run
    with contextlib.suppress(FileNotFoundError, ValueError):
        content = document.read(folder / _RUN)
        return content if isinstance(content, dict) else None
    return None


def _check_same(there: Mapping[str, Any], here: Mapping[str, Any], folder: Path) -> None:
    """Refuses to go on with another run, and names the differences."""
    different = [
        f"{name} {there.get(name)} there and {here.get(name)} here"
        for name in sorted(there.keys() | here.keys())
        if there.get(name) != here.get(name)
    ]
    if different:
        raise UserError(
            f"{folder} holds another run ({'; '.join(different)}): give another --workdir, or the "
            "flags of that run to go on with it"
        )


def _is_leaf(leaf: Any) -> bool:
    """Whether that says of an array its path, shape, dtype and digest."""
    form = isinstance(leaf, list) and [type(value) for value in leaf] == [str, list, str, str]
    return form and all(type(size) is int and size >= 0 for size in leaf[1])


def _set_aside(folder: Path) -> None:
    """Takes a damaged checkpoint off the list, for its owner to look at; it is never removed."""
    endings = itertools.chain(["damaged"], (f"damaged-{number}" for number in itertools.count(2)))
    asides = (folder.with_name(f"{folder.name}.{ending}") for ending in endings)
    with writing(folder, WORKDIR_REMEDY):
        folder.rename(next(path for path in asides if not path.exists()))


def _remove(folder: Path) -> None:
    """Takes a checkpoint off the list first, so that none is ever half there."""
    removed = folder.with_name(f"{folder.name}.removed")
    shutil.rmtree(removed, ignore_errors=True)
    folder.rename(removed)
    shutil.rmtree(removed)
