"""Checkpoints of a run: complete or not there at all, and verified before they are restored.

A checkpoint is a folder with the arrays of a pytree, the SHA-256 of that file, and all else that is
needed to resume the run. `jaxcnn.storage.store` writes them.
"""

import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from jaxcnn.errors import UserError, as_path
from jaxcnn.storage import manifest
from jaxcnn.storage.arrays import deserialize_pytree

# Part of every manifest: raised when the layout of the folder changes.
FORMAT = 3
ARRAYS = "arrays.safetensors"
_NAME = re.compile(r"step-(\d{10})")

Resume = Literal["auto", "never", "must"]
Used = TypeVar("Used")


@dataclass(frozen=True)
class Every:
    """The interval between two saves.

    Attributes:
        count: number of epochs or optimizer steps; 0 to save only at the end of the run.
        unit: what is counted.
    """

    count: int = 1
    unit: Literal["epochs", "steps"] = "epochs"

    @classmethod
    def parse(cls, text: str) -> "Every":
        """Reads "2" or "2epochs", and "500steps".

        Raises:
            UserError: the text has neither form.
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
        """Returns the number of steps between two saves; 0 for none before the end."""
        return self.count * (1 if self.unit == "steps" else steps_an_epoch)


@dataclass(frozen=True)
class Policy:
    """Where and when a run is saved, and what happens to a run that is already there.

    Attributes:
        folder: the checkpoints of one run, and nothing else.
        every: the interval between two saves.
        keep: number of latest checkpoints to keep; the best one is kept too.
        resume: "must" resumes the run in the folder, "never" starts a new one, "auto" resumes the
            run if there is one.
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
    """A saved checkpoint.

    Attributes:
        folder: of its files.
        step: optimizer steps taken until then.
    """

    folder: Path
    step: int

    def read(self) -> dict[str, Any]:
        """Returns what the manifest states; the arrays are not verified.

        Returns:
            "run", "progress" and "score" as they were saved, "leaves" as of
            `jaxcnn.storage.arrays.leaf_types`, "files" as of `jaxcnn.storage.manifest.read`.

        Raises:
            DamagedError: the manifest is missing or was altered.
            ReadError: it cannot be read, which is no damage.
            UserError: it has the format of another version of jaxcnn.
        """
        return self._checked(manifest.read(self.folder))

    def verify(self) -> dict[str, Any]:
        """Compares the SHA-256 of every file with the manifest, and returns the same as `read`.

        Raises:
            DamagedError: a file is missing or was altered; the message names it.
            ReadError: a file cannot be read, which is no damage.
            UserError: the checkpoint has the format of another version of jaxcnn.
        """
        return self._checked(manifest.verify(self.folder))

    def restore(self, like: Any, *, partial: bool = False) -> Any:
        """Verifies the checkpoint and returns its arrays.

        Args:
            like: a pytree of arrays, or of their shapes and dtypes, with the structure of the one
                that was saved.
            partial: whether `like` may be a part of what was saved.

        Returns:
            That pytree with bit-identical arrays.

        Raises:
            DamagedError: a file is missing or was altered; the message names it.
            ReadError: a file cannot be read, which is no damage.
            UserError: the names, shapes or dtypes of `like` differ from those that were saved.
        """
        content = self.read()
        arrays = manifest.read_verified(self.folder, ARRAYS, content)
        return deserialize_pytree(arrays, like, content["leaves"], self.folder, partial=partial)

    def _checked(self, content: dict[str, Any]) -> dict[str, Any]:
        """Returns the content of the manifest if it is a checkpoint's."""
        if isinstance(found := content.get("format"), int) and found != FORMAT:
            raise UserError(
                f"{self.folder} was saved by another version of jaxcnn (its format is {found}, and "
                f"this version reads {FORMAT}): use that version, or give another --workdir"
            )
        kinds = {"format": int, "run": dict, "progress": dict, "leaves": dict, "step": int}
        good = all(isinstance(content.get(name), kind) for name, kind in kinds.items())
        good = good and isinstance(content.get("score", ""), float | int | None)
        good = good and all(isinstance(leaf, str) for leaf in content["leaves"].values())
        if not good:
            raise manifest.DamagedError(f"{manifest.NAME} is not a checkpoint's")
        if content["step"] != self.step:
            raise manifest.DamagedError(
                f"{manifest.NAME} is of step {content['step']}, and the folder's name is not"
            )
        return content


def folder_name(step: int) -> str:
    """Returns the name of the folder of a checkpoint: step-0000000123."""
    return f"step-{step:010d}"


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Returns the checkpoints in a folder, the oldest first; none if there is no folder."""
    if not folder.is_dir():
        return []
    found = ((path, _NAME.fullmatch(path.name)) for path in folder.iterdir())
    checkpoints = [Checkpoint(path, int(match[1])) for path, match in found if match]
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def best_checkpoint(folder: Path) -> Checkpoint | None:
    """Returns the checkpoint with the highest score, the latest of equal ones; None without scores.

    Raises:
        ReadError: a manifest cannot be read.
        UserError: a checkpoint has the format of another version of jaxcnn.
    """
    scored: list[tuple[float, int, Checkpoint]] = []
    for checkpoint in list_checkpoints(folder):
        with contextlib.suppress(manifest.DamagedError):
            score = checkpoint.read()["score"]
            if score is not None:
                scored.append((score, checkpoint.step, checkpoint))
    return max(scored, key=lambda entry: entry[:2])[2] if scored else None


def newest_undamaged(
    folder: Path, use: Callable[[Checkpoint], Used], report: Callable[[str], None]
) -> tuple[Checkpoint, Used] | None:
    """Finds the newest checkpoint that is not damaged.

    Args:
        folder: of the checkpoints.
        use: called with one checkpoint after the other, for example to restore it, until it does
            not raise `DamagedError`.
        report: called with a line of text about each damaged checkpoint.

    Returns:
        The checkpoint and what `use` returned for it; None if there is none.
    """
    for checkpoint in reversed(list_checkpoints(folder)):
        try:
            return checkpoint, use(checkpoint)
        except manifest.DamagedError as error:
            report(f"the checkpoint {checkpoint.folder} is damaged and not used: {error}")
    return None
