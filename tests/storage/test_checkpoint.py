import dataclasses
import errno
import itertools
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.errors import UserError, WriteError
from jaxcnn.storage import checkpoint, document
from jaxcnn.storage.arrays import read_arrays, write_arrays
from jaxcnn.storage.checkpoint import Every, Policy
from jaxcnn.storage.manifest import DamagedError
from tests.storage.test_manifest import forge

RUN = {"epochs": 3, "mean": (0.1, 0.2)}


def tree(value: float = 0.0) -> dict[str, Any]:
    return {"a": jnp.full((3, 2), value, jnp.float32), "b": jnp.arange(4)}


def steps(folder: Path) -> list[int]:
    return [found.step for found in checkpoint.listed(folder)]


def test_every() -> None:
    assert Every.parse("2") == Every.parse("2epochs") == Every.parse("2 epoch") == Every(2)
    assert Every.parse("500steps") == Every(500, "steps")
    assert (Every(2).steps(7), Every(5, "steps").steps(7), Every(0).steps(7)) == (14, 5, 0)
    for text in ("", "x", "-1", "1.5", "2 hours", "steps", "9" * 10, "\u0663"):
        with pytest.raises(UserError, match="--checkpoint-every takes"):
            Every.parse(text)


def test_saved_and_resumed(tmp_path: Path) -> None:
    policy = Policy(tmp_path / "run")
    assert checkpoint.listed(policy.folder) == []
    assert checkpoint.best(policy.folder) is None
    with checkpoint.open_store(policy, RUN) as store:
        assert store.resume(tree()) is None
        saved = store.save(7, tree(1.5), {"seconds": 0.1}, 0.5)
    with checkpoint.open_store(policy, RUN) as store:
        found, progress, folder = store.resume(tree())
    np.testing.assert_array_equal(found["a"], tree(1.5)["a"])
    assert (progress, folder) == ({"seconds": 0.1}, saved)


def test_the_latest_and_the_best_are_kept(tmp_path: Path) -> None:
    with checkpoint.open_store(Policy(tmp_path), RUN) as store:
        for step, score in enumerate([0.1, 0.9, 0.3, None, 0.2, 0.4], start=1):
            store.save(step, tree(step), {}, score)
    assert steps(tmp_path) == [2, 5, 6]
    assert checkpoint.best(tmp_path).step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "run.json",
        "step-0000000002",
        "step-0000000005",
        "step-0000000006",
    ]
    with pytest.raises(UserError, match="--keep takes"):
        Policy(tmp_path, keep=0)


def test_another_run_is_refused_by_name(tmp_path: Path) -> None:
    for save in (False, True):  # before and after the first checkpoint
        with checkpoint.open_store(Policy(tmp_path), RUN) as store:
            if save:
                store.save(1, tree(), {})
        other = {**RUN, "epochs": 5}
        with (
            pytest.raises(UserError, match=r"another run \(epochs 3 there and 5 here\)"),
            checkpoint.open_store(Policy(tmp_path), other),
        ):
            pass
        with (
            pytest.raises(UserError, match="seed None there and 0 here"),
            checkpoint.open_store(Policy(tmp_path), {**RUN, "seed": 0}),
        ):
            pass


def test_resume_never_and_must(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match="holds no run to go on with"),
        checkpoint.open_store(Policy(tmp_path, resume="must"), RUN),
    ):
        pass
    with checkpoint.open_store(Policy(tmp_path, resume="never"), RUN) as store:
        store.save(1, tree(), {})
    with (
        pytest.raises(UserError, match="holds a run already"),
        checkpoint.open_store(Policy(tmp_path, resume="never"), RUN),
    ):
        pass
    with checkpoint.open_store(Policy(tmp_path, resume="must"), RUN) as store:
        assert store.resume(tree())


def test_two_at_once(tmp_path: Path) -> None:
    with (
        checkpoint.open_store(Policy(tmp_path), RUN),
        pytest.raises(UserError, match="in use by another process"),
        checkpoint.open_store(Policy(tmp_path), RUN),
    ):
        pass


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the checkpoints 1, 2 and 3."""
    folder = tmp_path_factory.mktemp("sound")
    with checkpoint.open_store(Policy(folder, keep=3), RUN) as store:
        for step in (1, 2, 3):
            store.save(step, tree(step), {"step": step}, 0.1)
    return folder


def files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("damage", [flip, cut, Path.unlink], ids=["flipped", "cut", "deleted"])
def test_damage_to_any_file_is_named_and_the_one_before_is_used(
    damage: Any, sound: Path, tmp_path: Path
) -> None:
    names = [
        path.relative_to(sound / "step-0000000003") for path in files(sound / "step-0000000003")
    ]
    assert len(names) > 5
    for number, name in enumerate(names):
        folder = tmp_path / str(number)
        shutil.copytree(sound, folder)
        path = folder / "step-0000000003" / name
        if not path.stat().st_size and damage is not Path.unlink:
            continue
        damage(path)
        newest = checkpoint.listed(folder)[-1]
        with pytest.raises(DamagedError, match=name.name):
            newest.restore(tree())
        said: list[str] = []
        assert [found.step for found in checkpoint.sound(folder, said.append)] == [2, 1]
        with checkpoint.open_store(Policy(folder, report=said.append), RUN) as store:
            found, progress, _ = store.resume(tree())
        np.testing.assert_array_equal(found["a"], tree(2)["a"])
        assert progress == {"step": 2}
        assert len(said) == 2
        assert all(name.name in line and "step-0000000003 is damaged" in line for line in said)
        assert steps(folder) == [1, 2]
        assert (folder / "step-0000000003.damaged").is_dir()


@pytest.mark.parametrize(
    "change",
    [
        {"score": "high"},
        {"step": None},
        {"leaves": 5},
        {"leaves": [["a", 5, "float32", ""]]},
        {"leaves": [["a"]]},
        {"leaves": [["a", ["2"], "float32", ""]]},
        {"leaves": [["a", [-1], "float32", ""]]},
        {"progress": []},
    ],
)
def test_a_manifest_that_is_no_checkpoint_s(sound: Path, tmp_path: Path, change: dict) -> None:
    folder = tmp_path / "run"
    shutil.copytree(sound, folder)
    forge(lambda content: content.update(change))(folder / "step-0000000003")
    with pytest.raises(DamagedError, match="is no checkpoint's"):
        checkpoint.listed(folder)[-1].verify()
    assert checkpoint.best(folder).step == 2


def test_a_checkpoint_under_another_s_name_is_not_used(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "run"))
    (folder / "step-0000000003").rename(folder / "aside")
    (folder / "step-0000000002").rename(folder / "step-0000000003")
    (folder / "aside").rename(folder / "step-0000000002")
    for found, other in zip(checkpoint.listed(folder)[1:], (3, 2), strict=True):
        with pytest.raises(DamagedError, match=f"it is of step {other}, and its name is not"):
            found.verify()
    assert [found.step for found in checkpoint.sound(folder, lambda line: None)] == [1]


def test_what_is_set_aside_stays(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for name in ("damaged", "damaged-2", "damaged-3"):
        shutil.copytree(sound, folder, dirs_exist_ok=True)
        flip(folder / "step-0000000003" / "manifest.json")
        with checkpoint.open_store(Policy(folder), RUN) as store:
            store.resume(tree())
        assert (folder / f"step-0000000003.{name}").is_dir()
    assert len(list(folder.glob("*.damaged*"))) == 3


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE])
def test_a_checkpoint_that_cannot_be_read_is_left_where_it_is(
    number: int, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "run"))
    monkeypatch.setattr(document.time, "sleep", lambda seconds: None)
    opened = Path.open

    def fail(path: Path, *how: Any, **options: Any) -> Any:
        if path.parent.name == "step-0000000003":
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *how, **options)

    monkeypatch.setattr(Path, "open", fail)
    said: list[str] = []
    with (
        pytest.raises(UserError, match=f"cannot read .*manifest.json: {os.strerror(number)}"),
        checkpoint.open_store(Policy(folder, report=said.append), RUN) as store,
    ):
        store.resume(tree())
    assert said == []
    assert steps(folder) == [1, 2, 3]


def test_nothing_sound_is_no_new_beginning(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(sound, folder)
    for found in checkpoint.listed(folder):
        flip(next(path for path in files(found.folder) if path.stat().st_size))
    with (
        checkpoint.open_store(Policy(folder), RUN) as store,
        pytest.raises(UserError, match=r"no checkpoint in .* is sound"),
    ):
        store.resume(tree())
    assert steps(folder) == [1, 2, 3]


def test_what_a_killed_process_left_is_cleared_away(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(sound, folder)
    (folder / "step-0000000003").rename(folder / "step-0000000003.removed")
    (folder / "step-0000000004.partial" / "arrays").mkdir(parents=True)
    with checkpoint.open_store(Policy(folder), RUN):
        assert steps(folder) == [1, 2]
        assert not [path for path in folder.iterdir() if path.suffix in (".partial", ".removed")]


def test_a_checkpoint_of_another_version_is_not_used_and_no_damage(
    sound: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.storage.checkpoint._FORMAT", checkpoint._FORMAT + 1)
    there = steps(sound)
    first = checkpoint.listed(sound)[0]
    with pytest.raises(UserError, match=f"{first.folder} was saved by another version"):
        first.verify()
    with (
        pytest.raises(UserError, match="another version"),
        checkpoint.open_store(Policy(sound), RUN),
    ):
        pass
    assert steps(sound) == there


def test_a_save_that_fails_anywhere_keeps_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync
    waits: list[int] = []  # for which file
    failing = 0

    def fail(descriptor: int) -> None:
        waits.append(os.fstat(descriptor).st_ino)
        if len(waits) == failing:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with checkpoint.open_store(Policy(tmp_path, keep=1), RUN) as store:
        monkeypatch.setattr(os, "fsync", fail)
        saved = store.save(1, tree(1), {})
        # All is on the disk, in the end the checkpoint's name.
        assert {path.stat().st_ino for path in (saved, *saved.rglob("*"))} <= set(waits[:-1])
        assert waits[-1] == tmp_path.stat().st_ino
        # As many files as Orbax happens to write: on a busy machine one more or less.
        for number in itertools.count(1):
            failing = number
            waits.clear()
            try:
                store.save(2, tree(2), {})
            except WriteError as error:
                assert "the disk is full" in str(error)
            else:
                break  # there was no wait that could fail
            named = waits[-1] == tmp_path.stat().st_ino
            assert steps(tmp_path) == ([1, 2] if named else [1])
            for found in checkpoint.listed(tmp_path):
                found.verify()
            assert not list(tmp_path.glob("*.partial"))
        assert number > 5
        failing = 0
        # What writes on after its failure may leave something behind.
        (tmp_path / "step-0000000002.partial" / "arrays").mkdir(parents=True)
        store.save(2, tree(2), {})
    assert steps(tmp_path) == [2]


def test_a_file_size_limit_is_an_error_at_once(tmp_path: Path) -> None:
    large = {"a": jnp.asarray(np.random.default_rng(0).random(500_000), jnp.float32)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with checkpoint.open_store(Policy(tmp_path), RUN) as store:
        store.save(1, large, {})
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        try:
            with pytest.raises(WriteError, match="would exceed the size limit; give --workdir"):
                store.save(2, large, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps(tmp_path) == [1]
    checkpoint.listed(tmp_path)[0].restore(large)


def test_values_that_are_no_json_are_compared(tmp_path: Path) -> None:
    policy = Policy(tmp_path)
    for _ in range(2):
        with checkpoint.open_store(policy, {"mask": write_arrays, "pair": (1, 2)}):
            pass
    with (
        pytest.raises(UserError, match=r"mask .*write_arrays.* there and .*read_arrays.* here"),
        checkpoint.open_store(policy, {"mask": read_arrays, "pair": (1, 2)}),
    ):
        pass


def test_a_folder_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Policy("~/x").folder == tmp_path / "x"  # type: ignore[arg-type]
    with pytest.raises(UserError, match="is an address"):
        Policy("gs://bucket/x")  # type: ignore[arg-type]


def test_policies_are_values() -> None:
    assert dataclasses.replace(Policy(Path("a")), keep=5).keep == 5
