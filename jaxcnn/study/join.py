"""Studies of different optimizers with otherwise the same settings, joined into one."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from jaxcnn.errors import UserError
from jaxcnn.storage import atomic
from jaxcnn.study.runs import (
    PHASES,
    RUNS,
    Run,
    check_runs,
    count_missing,
    load_runs,
    run_lines,
)
from jaxcnn.study.specification import (
    SPECIFICATION,
    Study,
    differing_settings,
    load_specification,
    load_study,
    write_specification,
)

# Fields of a specification that have an entry for every optimizer.
_PER_OPTIMIZER = ("learning_rates", "recipe")


def join_studies(folders: Sequence[Path], out: Path, command: str = "") -> tuple[Study, list[Run]]:
    """Writes the runs of several finished studies into one workdir, as if they were one study.

    The learning rates, seeds and results of an optimizer do not depend on the other optimizers of
    its study, so the runs are those that a study of all the optimizers would have. Nothing is
    written into the folders of the studies.

    Args:
        folders: the workdirs of the studies, at least one. Their order decides that of the runs.
            An optimizer may be in several of them, if its runs agree.
        out: the workdir of the joined study. If it holds a study, that one is joined too.
        command: that joins them, to be kept beside the runs.

    Returns:
        The joined study and its runs.

    Raises:
        UserError: a folder holds no study, the studies differ in more than their optimizers, one
            has not finished, two have different results of the same run, or `out` is in use.
        WriteError: `out` cannot be written.
    """
    if (out / RUNS).exists():
        folders = [*folders, out]
    specification = _join_specifications(folders)
    runs = _join_runs(folders)
    with atomic.locked(out):
        # Written before the runs, since runs without a specification are refused.
        write_specification(out, specification | {"command": command})
        atomic.write(out / RUNS, run_lines(runs))
    return load_study(out), runs


def _join_specifications(folders: Sequence[Path]) -> dict[str, Any]:
    """Returns the specification of the joined study."""
    found = [_load_complete(folder) for folder in folders]
    joined = found[0]
    for folder, specification in zip(folders, found, strict=True):
        common = joined["learning_rates"].keys() & specification["learning_rates"].keys()
        before, own = (_for_optimizers(one, common) for one in (joined, specification))
        if names := differing_settings(before, own):
            raise UserError(
                f"{folder} and the studies before it differ in {', '.join(names)}: join studies "
                "that differ in --optimizers alone, into a --workdir of their own"
            )
        united = {field: joined[field] | specification[field] for field in _PER_OPTIMIZER}
        joined = joined | specification | united
    machines = [name for specification in found for name in specification.get("machines", [])]
    return joined | {"machines": list(dict.fromkeys(machines))}


def _load_complete(folder: Path) -> dict[str, Any]:
    """Returns the specification in a folder, of which `load_study` has checked all fields."""
    if not (folder / SPECIFICATION).exists():
        raise UserError(
            f"{folder} holds no study ({SPECIFICATION} is missing): join the workdirs of studies"
        )
    load_study(folder)
    return load_specification(folder)


def _for_optimizers(specification: dict[str, Any], names: Collection[str]) -> dict[str, Any]:
    """Returns a specification without what belongs to other optimizers than these."""
    kept = {
        field: value
        for field, value in specification.items()
        if not field.startswith("code of ") or field.removeprefix("code of ") in names
    }
    for field in _PER_OPTIMIZER:
        kept[field] = {name: value for name, value in kept[field].items() if name in names}
    return kept


def _join_runs(folders: Sequence[Path]) -> list[Run]:
    """Returns every run once, in the order of a single study."""
    origins: dict[Any, tuple[Path, Run]] = {}
    unfinished = []
    for folder in folders:
        study, runs = load_study(folder), load_runs(folder / RUNS, repair=False)
        check_runs(study, runs, folder / RUNS)
        if missing := count_missing(study, runs):
            command = load_specification(folder).get("command")
            total = count_missing(study, [])
            unfinished.append(f"{folder} lacks {missing} of {total} runs (resume it by: {command})")
        for run in runs:
            other, known = origins.setdefault(run.key, (folder, run))
            if known != run:
                raise UserError(
                    f"{other} and {folder} have different results of the run {run}: leave one of "
                    "them out"
                )
    if unfinished:
        raise UserError(f"only finished studies can be joined: {'; '.join(unfinished)}")
    # Each study has its runs in this order already, optimizer by optimizer.
    return sorted((run for _, run in origins.values()), key=lambda run: PHASES.index(run.phase))
