"""The files of entries: one for each that has ended, and one for each that has begun.

An entry that has ended is JSON, with a digest by which damage is noticed. What has been trained of
an unfinished one is in lines of JSON, a chunk of runs each; it is removed at the end.
"""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from jaxcnn.errors import WORKDIR_REMEDY, UserError, writing
from jaxcnn.storage import atomic, document
from jaxcnn.study.specification import with_digest, without_digest

PROTOCOL = 1
SPEED = "speed.json"

Entry = dict[str, Any]
Head = Mapping[str, Any]

_RUN: dict[str, Any] = {
    "seed": int,
    "diverged_at": int,
    "correct": int,
    "total": int,
    "loss": (float, None),
    "progress": [(float, None)],
}
_FORM: dict[str, Any] = {
    "protocol": int,
    "track": str,
    "variant": str,
    "optimizer": str,
    "reference": str,
    "command": str,
    "settings": {
        "dataset": str,
        "dataset_digest": str,
        "network": str,
        "epochs": int,
        "batch_size": int,
        "steps": int,
        "validation": int,
        "trials": int,
        "seeds": int,
    },
    "recipe": {},
    "code": str,
    "versions": {str: str},
    "members_at_once": int,
    "space": {},
    "space_source": str,
    "default": {str: float},
    "device": str,
    "extended": [str],
    "at_edge": [str],
    "trials": [{"values": {str: float}} | _RUN],
    "best": int,
    "final": [_RUN],
    "untuned": [_RUN],
}


def file_name(optimizer: str) -> str:
    """Returns the name of an optimizer's files, without their ending."""
    return optimizer.replace(":", ".")


def load_entry(path: Path) -> Entry:
    """Reads an entry that has ended.

    Args:
        path: of its file.

    Raises:
        UserError: there is none, or it is damaged or was altered.
        ReadError: the file cannot be read.
    """
    try:
        entry = without_digest(document.read_json(path))
        document.check(entry, _FORM, "it")
        _check_runs(entry)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: give the file of an entry") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path} is no entry of the arena, or was altered ({error}): remove it to have the "
            "entry computed anew"
        ) from None
    return entry


def _check_runs(entry: Entry) -> None:
    """Raises ValueError if runs are missing, or their scores are none."""
    if not 1 <= entry["settings"]["trials"] <= len(entry["trials"]):
        raise ValueError("it lacks trials")
    if not 0 <= entry["best"] < len(entry["trials"]):
        raise ValueError("it has no best trial")
    for name in ("trials", "final", "untuned"):
        for run in entry[name]:
            if not 0 <= run["correct"] <= run["total"] != 0:
                raise ValueError(f"{name} has a run without a score")


def write_entry(path: Path, entry: Entry) -> None:
    """Writes an entry, a line for each of its fields and runs.

    Args:
        path: of its file.
        entry: all fields but the digest.

    Raises:
        WriteError: it cannot be written.
    """

    def text(value: Any) -> str:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            rows = ",\n  ".join(json.dumps(one, allow_nan=False) for one in value)
            return f"[\n  {rows}\n ]"
        return json.dumps(value, allow_nan=False)

    fields = with_digest(json.loads(json.dumps(entry, allow_nan=False)))
    lines = ",\n".join(f" {json.dumps(name)}: {text(value)}" for name, value in fields.items())
    atomic.write(path, f"{{\n{lines}\n}}\n".encode())


def differing(one: Head, other: Head) -> list[str]:
    """Returns the names of the fields and settings in which two entries of an optimizer differ.

    Args:
        one: an entry, or what is known of it before its first run.
        other: the other, of which fields that `one` has not are ignored.
    """
    names = [name for name in one if name != "settings" and one[name] != other.get(name)]
    own, others = one["settings"], other.get("settings", {})
    every = dict.fromkeys([*own, *others])
    return names + [name for name in every if own.get(name) != others.get(name)]


def comparable(entry: Entry) -> Head:
    """Returns what the entries of all optimizers of a track and a variant have in common."""
    names = ("protocol", "track", "variant", "settings", "code")
    return {name: entry[name] for name in names}


def load_entries(folder: Path) -> dict[Path, Entry]:
    """Reads all entries in a folder of tracks, `<folder>/<track>/<optimizer>.json`.

    Args:
        folder: to search.

    Returns:
        The entries by their paths below the folder, in alphabetical order.

    Raises:
        UserError: one is damaged.
    """
    paths = [path for path in sorted(folder.glob("*/*.json")) if path.name != SPEED]
    return {path.relative_to(folder): load_entry(path) for path in paths}


class Journal:
    """The runs of an entry that has begun.

    Attributes:
        chunks: the chunks of runs that have ended, by phase and the position of their first run.
        devices: that computed them, in the order of their first chunk.
    """

    def __init__(self, path: Path, head: Head) -> None:
        """Reads what there is. An incomplete last line is removed.

        Args:
            path: of the file.
            head: what decides the results of the runs; it is the first line.

        Raises:
            UserError: the file is damaged, or belongs to other settings.
            ReadError or WriteError: it cannot be read or written.
        """
        self.chunks: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self.devices: list[str] = []
        self._path = path
        try:
            content = document.read_bytes(path)
        except FileNotFoundError:
            content = b""
        except ValueError as error:
            raise UserError(f"{path} holds no runs of the arena ({error}): move it away") from None
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            with writing(path, WORKDIR_REMEDY), path.open("r+b") as file:
                file.truncate(len(whole))
        lines = whole.splitlines()
        if not lines:
            self._append(dict(head))
        for number, line in enumerate(lines, start=1):
            self._read(line, number, head)

    def _read(self, line: bytes, number: int, head: Head) -> None:
        """Takes over a line."""
        try:
            fields = without_digest(document.parse_json(line))
            if number == 1:
                found = dict(fields)
                names = differing(json.loads(json.dumps(head)), found)
            else:
                names, run = [], dict(_RUN)
                form = {"phase": str, "first": int, "device": str, "runs": [run]}
                document.check(fields, form, "it")
                self._keep(fields["phase"], fields["first"], fields["runs"], fields["device"])
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(
                f"{self._path}, line {number}, is no chunk of runs, or was altered: remove the "
                "file to have the entry computed anew"
            ) from None
        if names:
            raise UserError(
                f"{self._path} has runs of another entry (its {', '.join(names)} differs): give "
                "another --workdir, or remove the file"
            )

    def add(self, phase: str, first: int, runs: Iterable[dict[str, Any]], device: str) -> None:
        """Records a chunk that has ended.

        Args:
            phase: of its runs.
            first: position of the first of them in its phase.
            runs: of the chunk.
            device: that computed them.

        Raises:
            WriteError: the file cannot be written.
        """
        runs = list(runs)
        self._append({"phase": phase, "first": first, "device": device, "runs": runs})
        self._keep(phase, first, runs, device)

    def remove(self) -> None:
        """Removes the file: the entry has ended."""
        self._path.unlink(missing_ok=True)

    def _keep(self, phase: str, first: int, runs: list[dict[str, Any]], device: str) -> None:
        self.chunks[phase, first] = runs
        if device not in self.devices:
            self.devices.append(device)

    def _append(self, fields: dict[str, Any]) -> None:
        plain = json.loads(json.dumps(fields, allow_nan=False))
        with writing(self._path, WORKDIR_REMEDY), self._path.open("ab") as file:
            file.write(json.dumps(with_digest(plain)).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
