import shutil
from pathlib import Path

import pytest

from jaxcnn.arena.files import load_entries, load_entry
from jaxcnn.arena.merge import merge
from jaxcnn.arena.speed import load_speeds
from jaxcnn.errors import UserError
from tests.arena.test_files import SGD, forge

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion


@pytest.fixture
def parts(computed: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Two workdirs with an entry each, of sgd and of adamw."""
    folders = tmp_path / "a", tmp_path / "b"
    for folder, other in zip(folders, ("adamw", "sgd"), strict=True):
        shutil.copytree(computed, folder)
        (folder / f"mnist-sprint/{other}.json").unlink()
    return folders


def test_entries_are_joined(computed: Path, parts: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = merge(parts, out)
    assert found == load_entries(computed) == load_entries(out)
    for path in found:
        assert (out / path).read_bytes() == (computed / path).read_bytes()
    speeds = load_speeds(out / "mnist-sprint")
    assert list(speeds["optimizers"]) == ["adamw", "sgd"]
    assert merge([parts[0]], out) == found  # those that it holds stay


def test_different_results_of_an_entry_are_refused(parts: tuple[Path, Path]) -> None:
    first, second = parts
    shutil.copy(first / SGD, second / SGD)
    final = load_entry(second / SGD)["final"]
    forge(second / SGD, final=[{**final[0], "correct": 1}, *final[1:]])
    before = load_entries(second)
    with pytest.raises(UserError, match="different results of the same entry: leave one"):
        merge([first], second)
    assert load_entries(second) == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"protocol": 2}, "is of protocol 2, this is protocol 1"),
        ({"code": "0123"}, "differ in code: join entries of the same protocol"),
        ({"epochs": 2}, "differ in epochs: join entries"),
        ({"track": "mnist"}, r"is the entry mnist/sgd.json: move it there"),
        ({"optimizer": "../../x"}, r"is the entry mnist-sprint/../../x.json: move it there"),
    ],
)
def test_other_entries_are_refused(
    changes: dict[str, object], said: str, parts: tuple[Path, Path], tmp_path: Path
) -> None:
    path = parts[0] / SGD
    if "epochs" in changes:
        changes = {"settings": load_entry(path)["settings"] | changes}
    forge(path, **changes)
    with pytest.raises(UserError, match=said):
        merge(parts, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_entries_is_named(parts: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty holds no entries of the arena"):
        merge([parts[0], tmp_path / "empty"], tmp_path / "out")
