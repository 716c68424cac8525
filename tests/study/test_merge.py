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
from jaxcnn.study import merge
from jaxcnn.study.runs import RUNS, SPECIFICATION, load_runs, load_specification, run_lines
from jaxcnn.study.shards import Shard
from jaxcnn.study.study import run_study
from tests import scores
from tests.study.test_study import STUDY

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion


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
    """A study from beginning to end, and the same one in two shards."""
    workdir = tmp_path_factory.mktemp("whole")
    run_study(STUDY, tiny_mnist, workdir)
    shards = [Shard(2, 2), Shard(1, 2)]
    folders = [shard.folder(tmp_path_factory.mktemp("shards")) for shard in shards]
    for shard, folder in zip(shards, folders, strict=True):
        run_study(STUDY, tiny_mnist, folder, shard=shard, command=f"do {shard}")
    return workdir, folders


@pytest.fixture
def shards(both: tuple[Path, list[Path]], tmp_path: Path) -> list[Path]:
    """Copies of the shards' folders."""
    copies = [tmp_path / "shards" / folder.name for folder in both[1]]
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
    """Leaves the first runs, and a line that was cut short."""
    lines = (folder / RUNS).read_bytes().splitlines(keepends=True)
    (folder / RUNS).write_bytes(b"".join(lines[:count]) + lines[count][:20])


def test_shards_are_the_whole(
    both: tuple[Path, list[Path]], tiny_mnist: Dataset, tmp_path: Path
) -> None:
    workdir, folders = both
    merged, runs = merge.merge_shards(folders, tmp_path)
    assert merged == STUDY
    assert (tmp_path / RUNS).read_bytes() == (workdir / RUNS).read_bytes()
    assert load_specification(tmp_path) == load_specification(workdir)
    assert runs == run_study(STUDY, tiny_mnist, tmp_path)  # nothing is missing
    again, _ = merge.merge_shards([*folders, folders[0]], tmp_path)
    assert again == STUDY
    assert (tmp_path / RUNS).read_bytes() == (workdir / RUNS).read_bytes()


def test_a_shard_records_the_whole_study(both: tuple[Path, list[Path]]) -> None:
    whole = load_specification(both[0])
    for number, folder in zip((2, 1), both[1], strict=True):
        specification = load_specification(folder)
        assert specification.pop("command") == f"do {number}/2"
        assert (specification.pop("shard"), specification.pop("shards")) == (number, 2)
        assert specification == {k: v for k, v in whole.items() if k != "command"}
        names = {run.optimizer for run in load_runs(folder / RUNS)}
        assert names == {"sgd" if number == 2 else "adamw"}


def test_a_stopped_shard_goes_on(
    both: tuple[Path, list[Path]], shards: list[Path], tiny_mnist: Dataset, tmp_path: Path
) -> None:
    keep(shards[1], 3)
    runs = (shards[1] / RUNS).read_bytes()
    with pytest.raises(UserError) as caught:
        merge.merge_shards(shards, tmp_path / "out")
    assert str(caught.value) == (
        f"shard 1/2 in {shards[1]} lacks 2 runs (final adamw at 0.004 with seed 1, final adamw at "
        "0.004 with seed 2): wait for it, or go on with it by: do 1/2"
    )
    assert (shards[1] / RUNS).read_bytes() == runs  # it may just be writing there
    assert not (tmp_path / "out").exists()
    run_study(STUDY, tiny_mnist, shards[1], shard=Shard(1, 2))
    merge.merge_shards(shards, tmp_path / "out")
    expected = (both[0] / RUNS).read_bytes()
    assert (tmp_path / "out" / RUNS).read_bytes() == expected


def test_a_shard_that_has_not_come_to_its_best_rate(shards: list[Path], tmp_path: Path) -> None:
    keep(shards[0], 3)
    with pytest.raises(UserError, match=r"lacks 4 runs \(tune sgd at 1e\+30 with seed 1, final"):
        merge.merge_shards(shards, tmp_path)
    (shards[0] / RUNS).unlink()
    with pytest.raises(UserError, match=r"lacks 7 runs \(.* and 3 more\)"):
        merge.merge_shards(shards, tmp_path)


def test_a_missing_shard_is_named(shards: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks 1 of the study's 2 shards \(2/2\)"):
        merge.merge_shards(shards[1:], tmp_path)


@pytest.mark.parametrize("field", ["seeds", "dataset", "shards", "learning_rates"])
def test_another_study_is_named(field: str, shards: list[Path], tmp_path: Path) -> None:
    change(shards[1], lambda content: content.update({field: 7}))
    with pytest.raises(UserError, match=rf"of another study than .* \(its {field} differs\)"):
        merge.merge_shards(shards, tmp_path)


def test_folders_that_disagree(shards: list[Path], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards[0], copy)
    first, *rest = load_runs(copy / RUNS)
    changed = dataclasses.replace(first, correct=first.correct - 1)
    (copy / RUNS).write_bytes(run_lines([changed, *rest]))
    with pytest.raises(UserError, match=r"disagree about the run tune sgd at 0.02 with seed 0"):
        merge.merge_shards([*shards, copy], tmp_path / "out")
    assert not (tmp_path / "out" / RUNS).exists()


def test_a_workdir_with_runs(
    both: tuple[Path, list[Path]], shards: list[Path], tiny_mnist: Dataset, tmp_path: Path
) -> None:
    part = tmp_path / "part"
    shutil.copytree(both[0], part)
    keep(part, 5)
    merge.merge_shards(shards, part)
    assert (part / RUNS).read_bytes() == (both[0] / RUNS).read_bytes()
    change(part, lambda content: content.update(target=0.9))
    for folder, named in ((part, "target"), (shards[0], "shard, shards")):
        before = (folder / RUNS).read_bytes()
        with pytest.raises(UserError, match=rf"of another study than .* \(its {named} differs\)"):
            merge.merge_shards(shards, folder)
        assert (folder / RUNS).read_bytes() == before
    with filelock.FileLock(part / ".lock"), pytest.raises(UserError, match="in use"):
        merge.merge_shards(shards, part)


def test_a_shard_is_no_whole_study(shards: list[Path], tiny_mnist: Dataset) -> None:
    for shard in (None, Shard(1, 2)):
        with pytest.raises(UserError, match=r"holds another study \(its shard"):
            run_study(STUDY, tiny_mnist, shards[0], shard=shard)


def test_machines_are_all_named(shards: list[Path], tmp_path: Path) -> None:
    for name, folder in zip("ab", shards, strict=True):
        change(folder, lambda content, name=name: content.update(machines=[name]))
    merge.merge_shards([*shards, shards[0]], tmp_path)
    assert load_specification(tmp_path)["machines"] == ["a", "b"]


def test_another_machine_is_kept(
    both: tuple[Path, list[Path]], tiny_mnist: Dataset, tmp_path: Path
) -> None:
    shutil.copytree(both[0], tmp_path / "run")
    change(tmp_path / "run", lambda content: content.update(machines=["another"]))
    run_study(STUDY, tiny_mnist, tmp_path / "run")
    assert load_specification(tmp_path / "run")["machines"] == ["another"]
    keep(tmp_path / "run", 11)
    run_study(STUDY, tiny_mnist, tmp_path / "run")
    machines = load_specification(tmp_path / "run")["machines"]
    assert (machines[0], len(machines)) == ("another", 2)


def test_find(both: tuple[Path, list[Path]], shards: list[Path], tmp_path: Path) -> None:
    ordered = sorted(shards)
    assert merge.find([tmp_path / "shards"]) == ordered
    assert merge.find(shards) == shards
    for folder in (both[0], tmp_path / "none"):
        with pytest.raises(UserError, match="no shard of a study is there"):
            merge.find([folder])


@pytest.mark.parametrize("name", ["shard", "shards", "base_recipe"])
def test_damage_is_named(name: str, shards: list[Path], tmp_path: Path) -> None:
    for folder in shards:
        change(folder, lambda content: content.update({name: {"no": "such"}}))
    with pytest.raises(UserError, match=r"study.json cannot be read"):
        merge.merge_shards(shards, tmp_path)
