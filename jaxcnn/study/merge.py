"""The merge of a study's shards: one folder, as if the study had run in it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxcnn.errors import UserError
from jaxcnn.storage import atomic
from jaxcnn.study.runs import (
    PHASES,
    RUNS,
    SPECIFICATION,
    Run,
    Study,
    check_runs,
    differing,
    load_runs,
    load_specification,
    load_study,
    missing_runs,
    run_lines,
    unknown,
    write_specification,
)
from jaxcnn.study.shards import Shard

# So many missing runs are named, the rest counted.
_NAMED = 4


@dataclass(frozen=True)
class _Part:
    """What a shard has left.

    Attributes:
        folder: where.
        shard: which.
        specification: of the study and the shard.
        runs: that have ended.
    """

    folder: Path
    shard: Shard
    specification: dict[str, Any]
    runs: list[Run]


def find(folders: Sequence[Path]) -> list[Path]:
    """Returns the folders of shards among the given ones and directly below them.

    Raises:
        UserError: one of them is no shard and has none, or cannot be read.
    """
    found = []
    for folder in folders:
        shards = [path for path in (folder, *sorted(folder.glob("*/"))) if _is_shard(path)]
        if not shards:
            raise UserError(
                f"--merge {folder}: no shard of a study is there, and none in a folder below it: "
                "give the folders that --shard has left, or the one that they are in"
            )
        found += shards
    return found


def merge_shards(folders: Sequence[Path], out: Path, command: str = "") -> tuple[Study, list[Run]]:
    """Writes the runs of all shards of a study into one folder, in the study's own order.

    Nothing is written into the folders of the shards.

    Args:
        folders: of the shards; copies of a shard do no harm.
        out: the workdir of the whole study; it may hold a part of it.
        command: to be kept beside the runs.

    Returns:
        The study and its runs.

    Raises:
        UserError: the shards are not those of one study, one is missing or has not finished, two
            folders disagree about a run, or `out` holds another study or is in use.
        WriteError: it cannot be written.
    """
    parts = [_read(folder) for folder in folders]
    first = parts[0]
    for part in parts:
        expected = first.specification | {"shard": part.shard.number}
        _check_same(expected, part.specification, first.folder, part.folder)
    _check_all_there(parts)
    whole = load_study(first.folder)
    for part in parts:
        own = whole.part(part.shard.optimizers(whole.learning_rates))
        check_runs(own, part.runs, part.folder / RUNS)
        _check_finished(part, own)
    specifications = [part.specification for part in parts]
    sources = [(part.folder, part.runs) for part in parts]
    joined = first.specification | {"command": command}
    del joined["shard"], joined["shards"]
    with atomic.locked(out):
        if there := load_runs(out / RUNS):
            specifications.append(load_specification(out))
            check_runs(whole, there, out / RUNS)
            sources.append((out, there))
            _check_same(joined, specifications[-1], first.folder, out)
        machines = [name for one in specifications for name in one.get("machines", [])]
        joined["machines"] = list(dict.fromkeys(machines))
        runs = _unite(whole, sources)
        # First of the two: runs without it are those of an unknown study.
        write_specification(out, joined)
        atomic.write(out / RUNS, run_lines(runs))
    return whole, runs


def _is_shard(folder: Path) -> bool:
    there = (folder / SPECIFICATION).exists()
    return there and "shard" in load_specification(folder)


def _read(folder: Path) -> _Part:
    specification = load_specification(folder)
    try:
        shard = Shard.parse(f"{specification['shard']}/{specification['shards']}")
    except (KeyError, UserError):
        raise unknown(folder) from None
    return _Part(folder, shard, specification, load_runs(folder / RUNS, repair=False))


def _check_same(expected: dict[str, Any], found: dict[str, Any], first: Path, folder: Path) -> None:
    if names := differing(expected, found):
        raise UserError(
            f"{folder} is of another study than {first} (its {', '.join(names)} differs): merge "
            "the shards of one study, into a folder of its own"
        )


def _check_all_there(parts: list[_Part]) -> None:
    count = parts[0].shard.count
    numbers = {part.shard.number for part in parts}
    missing = [str(Shard(k, count)) for k in range(1, count + 1) if k not in numbers]
    if missing:
        raise UserError(
            f"--merge lacks {len(missing)} of the study's {count} shards ({', '.join(missing)}): "
            "give their folders too"
        )


def _check_finished(part: _Part, own: Study) -> None:
    """Refuses a shard that lacks runs; `own` is the study of its optimizers."""
    missing = []
    for name in own.learning_rates:
        tune = missing_runs(own, part.runs, "tune", name)
        missing += [f"tune {name} at {rate:g} with seed {seed}" for rate, seed in tune]
        if tune:  # its best rate is not known
            missing += [f"final {name} with seed {seed}" for seed in range(own.seeds)]
        else:
            final = missing_runs(own, part.runs, "final", name)
            missing += [f"final {name} at {rate:g} with seed {seed}" for rate, seed in final]
    if missing:
        named = ", ".join(missing[:_NAMED])
        if (rest := len(missing) - _NAMED) > 0:
            named += f" and {rest} more"
        raise UserError(
            f"shard {part.shard} in {part.folder} lacks {len(missing)} runs ({named}): wait for "
            f"it, or go on with it by: {part.specification.get('command')}"
        )


def _unite(whole: Study, sources: list[tuple[Path, list[Run]]]) -> list[Run]:
    """Returns every run once, in the order in which the study does them."""
    found: dict[Any, tuple[Path, Run]] = {}
    for folder, runs in sources:
        for run in runs:
            key = (run.phase, run.optimizer, run.learning_rate, run.seed)
            other, known = found.setdefault(key, (folder, run))
            if known != run:
                raise UserError(
                    f"{other} and {folder} disagree about the run {run.phase} {run.optimizer} at "
                    f"{run.learning_rate:g} with seed {run.seed}: leave one of them away"
                )
    tuning = [run for _, run in found.values() if run.phase == "tune"]
    return [
        found[phase, name, rate, seed][1]
        for phase in PHASES
        for name in whole.learning_rates
        for rate, seed in missing_runs(whole, tuning if phase == "final" else [], phase, name)
    ]
