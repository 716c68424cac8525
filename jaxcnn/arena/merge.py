"""Entries of several machines or jobs, joined in one folder."""

from collections.abc import Sequence
from pathlib import Path

from jaxcnn.arena.files import (
    PROTOCOL,
    SPEED,
    Entry,
    comparable,
    differing,
    file_name,
    load_entries,
)
from jaxcnn.arena.speed import add_speeds, load_speeds
from jaxcnn.arena.track import track_title
from jaxcnn.errors import UserError
from jaxcnn.storage import atomic


def merge(folders: Sequence[Path], out: Path) -> dict[Path, Entry]:
    """Joins the entries of several folders. Nothing is written into the folders.

    Args:
        folders: workdirs of the arena, at least one.
        out: the workdir of the joined entries. Those that it holds are joined too.

    Returns:
        All entries by their paths below `out`.

    Raises:
        UserError: a folder has no entries, an entry is damaged or of another protocol, code or
            settings than another one of its track, or two results of the same entry differ.
        WriteError: `out` cannot be written.
    """
    found: dict[Path, tuple[Path, Entry]] = {}
    for folder in [*folders, *([out] if out.exists() else [])]:
        entries = load_entries(folder)
        if not entries and folder != out:
            raise UserError(f"{folder} holds no entries of the arena: give the workdir of one")
        for path, entry in entries.items():
            _check_place(folder / path, entry)
            other, known = found.setdefault(path, (folder, entry))
            if known != entry:
                raise UserError(
                    f"{other / path} and {folder / path} are different results of the same entry: "
                    "leave one of them out"
                )
    first: dict[Path, tuple[Path, Entry]] = {}
    for path, (folder, entry) in found.items():
        other, known = first.setdefault(path.parent, (folder / path, entry))
        if names := differing(comparable(known), entry):
            raise UserError(
                f"{other} and {folder / path} differ in {', '.join(names)}: join entries of the "
                "same protocol, code and settings"
            )
    for path, (folder, _) in sorted(found.items()):
        if folder != out:
            with atomic.locked(out / path.parent, f".{path.stem}.lock"):
                atomic.write(out / path, (folder / path).read_bytes())
    for folder in folders:
        for path in folder.glob(f"*/{SPEED}"):
            _join_speeds(path.parent, out / path.parent.name)
    return {path: entry for path, (_, entry) in sorted(found.items())}


def _check_place(path: Path, entry: Entry) -> None:
    """Refuses an entry of another protocol, or in the folder or under the name of another one."""
    if entry["protocol"] != PROTOCOL:
        raise UserError(
            f"{path} is of protocol {entry['protocol']}, this is protocol {PROTOCOL}: compute it "
            "anew"
        )
    title = track_title(entry["track"], entry["variant"])
    place = f"{title}/{file_name(entry['optimizer'])}.json"
    if path.parts[-2:] != Path(place).parts:
        raise UserError(f"{path} is the entry {place}: move it there")


def _join_speeds(folder: Path, out: Path) -> None:
    """Adds the measurements of a folder, unless there are those of another device."""
    here, there = load_speeds(folder), load_speeds(out)
    if folder.resolve() != out.resolve() and there.get("device", here["device"]) == here["device"]:
        add_speeds(out, here["device"], here["optimizers"] | there.get("optimizers", {}))
