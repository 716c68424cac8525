import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.errors import UserError
from jaxcnn.storage import checkpoint, manifest
from jaxcnn.storage.checkpoint import Checkpoint, Every, Policy
from jaxcnn.storage.manifest import DamagedError
from jaxcnn.storage.store import open_store
from tests.storage.conftest import RUN, tree
from tests.storage.test_manifest import forge


def steps(folder: Path) -> list[int]:
    return [found.step for found in checkpoint.list_checkpoints(folder)]


def test_every() -> None:
    assert Every.parse("2") == Every.parse("2epochs") == Every.parse("2 epoch") == Every(2)
    assert Every.parse("500steps") == Every(500, "steps")
    assert (Every(2).steps(7), Every(5, "steps").steps(7), Every(0).steps(7)) == (14, 5, 0)
    for text in ("", "x", "-1", "1.5", "2 hours", "steps", "9" * 10, "\u0663"):
        with pytest.raises(UserError, match="--checkpoint-every takes"):
            Every.parse(text)


def test_policies_are_values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dataclasses.replace(Policy(Path("a")), keep=5).keep == 5
    with pytest.raises(UserError, match="--keep takes"):
        Policy(tmp_path, keep=0)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Policy("~/x").folder == tmp_path / "x"  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is an address"):
        Policy("gs://bucket/x")  # type: ignore[arg-type]


def test_a_folder_without_checkpoints(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        assert checkpoint.list_checkpoints(folder) == []
        assert checkpoint.best_checkpoint(folder) is None
        assert checkpoint.newest_undamaged(folder, Checkpoint.verify, pytest.fail) is None


def test_what_a_checkpoint_holds(sound: Path) -> None:
    last = checkpoint.list_checkpoints(sound)[-1]
    assert sorted(path.name for path in last.folder.iterdir()) == [
        "arrays.safetensors",
        "manifest.json",
    ]
    content = last.verify()
    assert content == last.read()
    assert (content["step"], content["progress"], content["score"]) == (3, {"step": 3}, 0.1)
    assert content["leaves"] == {"a": "float32[3, 2]", "b": "int32[4]"}
    assert content["files"].keys() == {"arrays.safetensors"}
    found = last.restore(tree())
    for name, array in tree(3).items():
        np.testing.assert_array_equal(found[name], array)
    part = last.restore({"b": jnp.zeros(4, jnp.int32)}, partial=True)
    np.testing.assert_array_equal(part["b"], tree()["b"])
    with pytest.raises(UserError, match=f"{last.folder} holds int32.* as b, .* needs nothing"):
        last.restore({"a": tree()["a"]})


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink], ids=["flipped", "cut", "deleted"])
@pytest.mark.parametrize("name", ["arrays.safetensors", "manifest.json"])
def test_damage_to_any_file_is_named_and_the_one_before_is_used(
    name: str, damage: Any, sound: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "run"))
    newest = folder / "step-0000000003"
    damage(newest / name)
    for use in (Checkpoint.verify, lambda found: found.restore(tree())):
        with pytest.raises(DamagedError, match=name):
            use(checkpoint.list_checkpoints(folder)[-1])
        said: list[str] = []
        found, _ = checkpoint.newest_undamaged(folder, use, said.append)
        assert found.step == 2
        (line,) = said
        assert line.startswith(f"the checkpoint {newest} is damaged and not used: {name} ")
    said.clear()
    with open_store(Policy(folder, report=said.append), RUN) as store:
        restored, progress, _ = store.resume(tree())
    np.testing.assert_array_equal(restored["a"], tree(2)["a"])
    assert progress == {"step": 2}
    (line,) = said
    assert f"{name} " in line
    assert steps(folder) == [1, 2]
    assert (folder / "step-0000000003.damaged").is_dir()


@pytest.mark.parametrize(
    "change",
    [
        {"score": "high"},
        {"step": None},
        {"leaves": 5},
        {"leaves": [["a", [3, 2], "float32"]]},
        {"leaves": {"a": 5}},
        {"progress": []},
    ],
)
def test_a_manifest_that_is_not_a_checkpoint_s(sound: Path, tmp_path: Path, change: dict) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "run"))
    forge(lambda content: content.update(change))(folder / "step-0000000003")
    with pytest.raises(DamagedError, match=r"manifest.json is not a checkpoint's"):
        checkpoint.list_checkpoints(folder)[-1].verify()
    assert checkpoint.best_checkpoint(folder).step == 2


def test_a_manifest_without_the_arrays(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "run"))
    forge(lambda content: content.update(files={}))(folder / "step-0000000003")
    with pytest.raises(DamagedError, match=r"manifest.json does not list arrays.safetensors"):
        checkpoint.list_checkpoints(folder)[-1].restore(tree())


def test_a_checkpoint_under_another_s_name_is_not_used(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "run"))
    (folder / "step-0000000003").rename(folder / "aside")
    (folder / "step-0000000002").rename(folder / "step-0000000003")
    (folder / "aside").rename(folder / "step-0000000002")
    for found, other in zip(checkpoint.list_checkpoints(folder)[1:], (3, 2), strict=True):
        with pytest.raises(DamagedError, match=f"is of step {other}, and the folder's name is not"):
            found.verify()
    said: list[str] = []
    found, _ = checkpoint.newest_undamaged(folder, Checkpoint.verify, said.append)
    assert (found.step, len(said)) == (1, 2)


def test_a_checkpoint_of_another_version_is_refused_and_is_no_damage(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.storage.checkpoint.FORMAT", checkpoint.FORMAT + 1)
    there = steps(sound)
    first = checkpoint.list_checkpoints(sound)[0]
    with pytest.raises(UserError, match=f"{first.folder} was saved by another version of jaxcnn"):
        first.verify()
    with (
        pytest.raises(UserError, match=r"another version .* use that version, or give another"),
        open_store(Policy(sound), RUN),
    ):
        pass
    assert steps(sound) == there


def test_a_checkpoint_of_the_former_format_is_refused(tmp_path: Path) -> None:
    """It had a folder of arrays, and a list of their digests in the manifest."""
    folder = tmp_path / "step-0000000001"
    (folder / "arrays").mkdir(parents=True)
    (folder / "arrays" / "manifest.ocdbt").write_bytes(b"arrays")
    content = {"format": 2, "step": 1, "run": RUN, "progress": {}, "score": None}
    manifest.seal(folder, {**content, "leaves": [["a", [3, 2], "float32", "0" * 64]]})
    (found,) = checkpoint.list_checkpoints(tmp_path)
    said = rf"{folder} was saved by another version of jaxcnn \(its format is 2, and this"
    for call in (found.read, found.verify, lambda: found.restore(tree())):
        with pytest.raises(UserError, match=said):
            call()
    with pytest.raises(UserError, match=said), open_store(Policy(tmp_path), RUN):
        pass
    assert steps(tmp_path) == [1]
