import dataclasses
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import filelock
import pytest

from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import UserError
from jaxcnn.study.join import join_studies
from jaxcnn.study.runs import RUNS, load_runs, run_lines
from jaxcnn.study.specification import SPECIFICATION, Study, load_specification
from jaxcnn.study.study import run_study
from tests import scores
from tests.study.conftest import STUDY

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion


def of(*names: str) -> Study:
    """The study of some of the optimizers."""
    rates = {name: STUDY.learning_rates[name] for name in names}
    return dataclasses.replace(STUDY, learning_rates=rates)


@pytest.fixture(scope="module", params=["scores", pytest.param("network", marks=pytest.mark.slow)])
def _chunks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lets studies make their scores up, or train."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "scores":
            patch.setattr("jaxcnn.train.ensemble.fit_chunks", scores.chunks)
        yield


@pytest.fixture(scope="module")
def both(
    _chunks: None, tmp_path_factory: pytest.TempPathFactory, tiny_mnist: Dataset
) -> tuple[Path, list[Path]]:
    """A study of two optimizers, and a study of each of them."""
    workdir = tmp_path_factory.mktemp("whole")
    run_study(STUDY, tiny_mnist, workdir, command="join them")
    folders = []
    for name in STUDY.learning_rates:
        folders.append(tmp_path_factory.mktemp(name))
        run_study(of(name), tiny_mnist, folders[-1], command=f"do {name}")
    return workdir, folders


@pytest.fixture
def parts(both: tuple[Path, list[Path]], tmp_path: Path) -> list[Path]:
    """Copies of the studies of one optimizer."""
    copies = [tmp_path / "parts" / name for name in STUDY.learning_rates]
    for folder, copy in zip(both[1], copies, strict=True):
        shutil.copytree(folder, copy)
    return copies


def change(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Edits a specification, as a study would have written it."""
    content = json.loads((folder / SPECIFICATION).read_text())
    del content["digest"]
    edit(content)
    (folder / SPECIFICATION).write_text(json.dumps(content))


def keep(folder: Path, count: int) -> None:
    """Leaves the first runs and a part of the next line."""
    lines = (folder / RUNS).read_bytes().splitlines(keepends=True)
    (folder / RUNS).write_bytes(b"".join(lines[:count]) + lines[count][:20])


def test_the_parts_are_the_whole(
    both: tuple[Path, list[Path]], tiny_mnist: Dataset, tmp_path: Path
) -> None:
    workdir, folders = both
    before = [(folder / name).read_bytes() for folder in folders for name in (RUNS, SPECIFICATION)]
    study, runs = join_studies(folders, tmp_path, "join them")
    assert study == STUDY
    assert list(study.learning_rates) == list(STUDY.learning_rates)
    assert (tmp_path / RUNS).read_bytes() == (workdir / RUNS).read_bytes()
    assert load_specification(tmp_path) == load_specification(workdir)
    assert runs == run_study(STUDY, tiny_mnist, tmp_path)  # nothing is missing
    after = [(folder / name).read_bytes() for folder in folders for name in (RUNS, SPECIFICATION)]
    assert after == before


def test_the_order_of_the_folders_is_that_of_the_runs(
    both: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    study, runs = join_studies(both[1][::-1], tmp_path)
    assert (study, list(study.learning_rates)) == (STUDY, ["adamw", "sgd"])
    assert [(run.phase, run.optimizer) for run in runs] == (
        [("tune", "adamw")] * 2 + [("tune", "sgd")] * 4
    ) + [("final", "adamw")] * 3 + [("final", "sgd")] * 3


def test_optimizers_may_be_in_several_studies(
    both: tuple[Path, list[Path]], tmp_path: Path
) -> None:
    """If their runs agree, they count once."""
    workdir, folders = both
    study, _ = join_studies([*folders, folders[0], workdir], tmp_path)
    assert study == STUDY
    assert (tmp_path / RUNS).read_bytes() == (workdir / RUNS).read_bytes()


def test_joining_step_by_step(both: tuple[Path, list[Path]], tmp_path: Path) -> None:
    """What the workdir holds is joined too, so the same command can be repeated."""
    workdir, folders = both
    join_studies(folders[:1], tmp_path)
    for _ in range(2):
        study, _ = join_studies(folders[1:], tmp_path)
        assert study == STUDY
        names = {run.optimizer for run in load_runs(tmp_path / RUNS)}
        assert names == {"sgd", "adamw"}
    join_studies(folders, tmp_path / "again")
    assert (tmp_path / "again" / RUNS).read_bytes() == (workdir / RUNS).read_bytes()


def test_unfinished_studies_are_named_with_their_commands(
    both: tuple[Path, list[Path]], parts: list[Path], tiny_mnist: Dataset, tmp_path: Path
) -> None:
    keep(parts[0], 3)
    keep(parts[1], 3)
    runs = (parts[1] / RUNS).read_bytes()
    with pytest.raises(UserError) as caught:
        join_studies(parts, tmp_path / "out")
    # The fourth tuning run of sgd is missing, so all of its final runs are.
    assert str(caught.value) == (
        f"only finished studies can be joined: {parts[0]} lacks 4 of 7 runs (resume it by: do "
        f"sgd); {parts[1]} lacks 2 of 5 runs (resume it by: do adamw)"
    )
    assert (parts[1] / RUNS).read_bytes() == runs  # a process may be writing there
    assert not (tmp_path / "out").exists()
    for name, folder in zip(STUDY.learning_rates, parts, strict=True):
        run_study(of(name), tiny_mnist, folder)
    join_studies(parts, tmp_path / "out")
    assert (tmp_path / "out" / RUNS).read_bytes() == (both[0] / RUNS).read_bytes()


def test_a_study_without_runs_is_unfinished(parts: list[Path], tmp_path: Path) -> None:
    (parts[0] / RUNS).unlink()
    with pytest.raises(UserError, match=r"sgd lacks 7 of 7 runs \(resume it by: do sgd\)$"):
        join_studies(parts, tmp_path / "out")


@pytest.mark.parametrize("field", ["seeds", "tune_seeds", "validation", "batch_size", "shard"])
def test_different_settings_are_named(field: str, parts: list[Path], tmp_path: Path) -> None:
    """Those of a study that an earlier version has split in shards are among them."""
    change(parts[1], lambda content: content.update({field: 7}))
    with pytest.raises(UserError, match=rf"adamw and the studies before it differ in {field}: jo"):
        join_studies(parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_settings_of_an_optimizer_are_compared(
    both: tuple[Path, list[Path]], parts: list[Path], tmp_path: Path
) -> None:
    """Where two studies have it; those of another optimizer are none of theirs."""
    for field, value in (("learning_rates", [0.02]), ("recipe", {}), ("code of sgd", "changed")):
        copy = Path(shutil.copytree(parts[0], tmp_path / "copy"))

        def edit(content: dict[str, Any], field: str = field, value: Any = value) -> None:
            (content if field.startswith("code") else content[field]).update(
                {field if field.startswith("code") else "sgd": value}
            )

        change(copy, edit)
        with pytest.raises(UserError, match=rf"copy and the .* differ in {field}: join studies"):
            join_studies([*parts, copy], tmp_path / "out")
        shutil.rmtree(copy)
    change(parts[0], lambda content: content.update({"code of sgd": "one"}))
    change(parts[1], lambda content: content.update({"code of adamw": "two"}))
    join_studies(parts, tmp_path / "out")
    joined = load_specification(tmp_path / "out")
    assert (joined["code of sgd"], joined["code of adamw"]) == ("one", "two")


def test_different_results_of_a_run(parts: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(parts[0], copy)
    first, *rest = load_runs(copy / RUNS)
    changed = dataclasses.replace(first, correct=first.correct - 1)
    (copy / RUNS).write_bytes(run_lines([changed, *rest]))
    with pytest.raises(UserError) as caught:
        join_studies([*parts, copy], tmp_path / "out")
    assert str(caught.value) == (
        f"{parts[0]} and {copy} have different results of the run tune sgd at 0.02 with seed 0: "
        "leave one of them out"
    )
    assert not (tmp_path / "out").exists()


def test_a_run_that_is_not_the_study_s(parts: list[Path], tmp_path: Path) -> None:
    runs = load_runs(parts[0] / RUNS)
    more = dataclasses.replace(runs[0], seed=2)
    (parts[0] / RUNS).write_bytes(run_lines([*runs, more]))
    with pytest.raises(UserError, match=r"runs.jsonl has a run that does not belong to this study"):
        join_studies(parts, tmp_path / "out")


def test_a_workdir_with_another_study(
    both: tuple[Path, list[Path]], parts: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(both[0], out)
    keep(out, 5)
    before = (out / RUNS).read_bytes()
    with pytest.raises(UserError, match=r"out lacks \d+ of 12 runs \(resume it by: join them\)"):
        join_studies(parts, out)
    change(out, lambda content: content.update(target=0.9))
    with pytest.raises(UserError, match=r"out and the studies before it differ in target: .* own"):
        join_studies(parts, out)
    assert (out / RUNS).read_bytes() == before
    with filelock.FileLock(tmp_path / ".lock"), pytest.raises(UserError, match="in use"):
        join_studies(parts, tmp_path)


def test_machines_are_all_named(parts: list[Path], tmp_path: Path) -> None:
    for name, folder in zip("ab", parts, strict=True):
        change(folder, lambda content, name=name: content.update(machines=[name]))
    join_studies([*parts, parts[0]], tmp_path)
    assert load_specification(tmp_path)["machines"] == ["a", "b"]


def test_a_folder_without_a_study(both: tuple[Path, list[Path]], tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none", both[0] / RUNS):
        with pytest.raises(
            UserError, match=r"holds no study \(study.json is missing\): join the w"
        ):
            join_studies([*both[1], folder], tmp_path / "out")


@pytest.mark.parametrize("name", ["recipe", "base_recipe", "learning_rates", "machines"])
def test_damage_is_named(name: str, parts: list[Path], tmp_path: Path) -> None:
    for folder in parts:
        change(folder, lambda content: content.update({name: {"no": "such"}}))
    with pytest.raises(UserError, match=r"study.json cannot be read"):
        join_studies(parts, tmp_path / "out")
