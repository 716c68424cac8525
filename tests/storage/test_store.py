import errno
import itertools
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.errors import UserError, WriteError
from jaxcnn.storage import checkpoint, document, manifest
from jaxcnn.storage.arrays import leaf_types, serialize_pytree
from jaxcnn.storage.checkpoint import Policy
from jaxcnn.storage.store import open_store
from tests.storage.conftest import RUN, tree
from tests.storage.test_checkpoint import flip, steps


def test_saved_and_resumed(tmp_path: Path) -> None:
    policy = Policy(tmp_path / "run")
    with open_store(policy, RUN) as store:
        assert store.resume(tree()) is None
        saved = store.save(7, tree(1.5), {"seconds": 0.1}, 0.5)
    with open_store(policy, RUN) as store:
        found, progress, folder = store.resume(tree())
    np.testing.assert_array_equal(found["a"], tree(1.5)["a"])
    assert (progress, folder) == ({"seconds": 0.1}, saved)


def test_the_same_step_is_saved_once_more(tmp_path: Path) -> None:
    with open_store(Policy(tmp_path), RUN) as store:
        for value in (1, 2):
            store.save(7, tree(value), {})
        found, _, _ = store.resume(tree())
    np.testing.assert_array_equal(found["a"], tree(2)["a"])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "run.json",
        "step-0000000007",
    ]


def test_the_latest_and_the_best_are_kept(tmp_path: Path) -> None:
    with open_store(Policy(tmp_path), RUN) as store:
        for step, score in enumerate([0.1, 0.9, 0.3, None, 0.2, 0.4], start=1):
            store.save(step, tree(step), {}, score)
    assert steps(tmp_path) == [2, 5, 6]
    assert checkpoint.best_checkpoint(tmp_path).step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "run.json",
        "step-0000000002",
        "step-0000000005",
        "step-0000000006",
    ]


def test_another_run_is_refused_by_name(tmp_path: Path) -> None:
    for save in (False, True):  # before and after the first checkpoint
        with open_store(Policy(tmp_path), RUN) as store:
            if save:
                store.save(1, tree(), {})
        other = {**RUN, "epochs": 5}
        with (
            pytest.raises(UserError, match=r"another run \(epochs 3 there and 5 here\)"),
            open_store(Policy(tmp_path), other),
        ):
            pass
        with (
            pytest.raises(UserError, match="seed None there and 0 here"),
            open_store(Policy(tmp_path), {**RUN, "seed": 0}),
        ):
            pass


def test_a_number_that_may_grow(tmp_path: Path) -> None:
    def resumed(**change: Any) -> None:
        with open_store(Policy(tmp_path), {**RUN, **change}, growing=["epochs"]) as store:
            store.save(change["epochs"], tree(), {})

    resumed(epochs=3)
    resumed(epochs=5)
    for change, said in (
        ({"epochs": 4}, r"\(epochs 5 there and 4 here\)"),
        ({"epochs": 6, "mean": (0.1,)}, r"\(mean .* there and \[0.1\] here\)"),
        ({"epochs": 6.0}, "epochs 5 there and 6.0 here"),
        ({"epochs": True}, "epochs 5 there and True here"),
    ):
        with pytest.raises(UserError, match=said):
            resumed(**change)


def test_resume_never_and_must(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with (
        pytest.raises(UserError, match="holds no run to resume"),
        open_store(Policy(folder, resume="must"), RUN),
    ):
        pass
    assert list(tmp_path.iterdir()) == []
    with open_store(Policy(folder, resume="never"), RUN) as store:
        store.save(1, tree(), {})
    with (
        pytest.raises(UserError, match="holds a run already"),
        open_store(Policy(folder, resume="never"), RUN),
    ):
        pass
    with open_store(Policy(folder, resume="must"), RUN) as store:
        assert store.resume(tree())


def test_two_at_once(tmp_path: Path) -> None:
    with (
        open_store(Policy(tmp_path), RUN),
        pytest.raises(UserError, match="in use by another process"),
        open_store(Policy(tmp_path), RUN),
    ):
        pass


def test_what_is_set_aside_stays(sound: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for name in ("damaged", "damaged-2", "damaged-3"):
        shutil.copytree(sound, folder, dirs_exist_ok=True)
        flip(folder / "step-0000000003" / "manifest.json")
        with open_store(Policy(folder), RUN) as store:
            store.resume(tree())
        assert (folder / f"step-0000000003.{name}").is_dir()
    assert len(list(folder.glob("*.damaged*"))) == 3


@pytest.mark.parametrize("name", ["manifest.json", "arrays.safetensors"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE])
def test_a_checkpoint_that_cannot_be_read_is_left_where_it_is(
    number: int, name: str, sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "run"))
    monkeypatch.setattr(document.time, "sleep", lambda seconds: None)
    opened = Path.open

    def fail(path: Path, *how: Any, **options: Any) -> Any:
        if path.parent.name == "step-0000000003" and path.name == name:
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *how, **options)

    monkeypatch.setattr(Path, "open", fail)
    said: list[str] = []
    with (
        pytest.raises(UserError, match=f"cannot read .*{name}: {os.strerror(number)}"),
        open_store(Policy(folder, report=said.append), RUN) as store,
    ):
        store.resume(tree())
    assert said == []
    assert steps(folder) == [1, 2, 3]


def test_a_folder_of_damaged_checkpoints_is_no_new_run(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "run"))
    for found in checkpoint.list_checkpoints(folder):
        flip(found.folder / checkpoint.ARRAYS)
    with (
        open_store(Policy(folder), RUN) as store,
        pytest.raises(UserError, match=r"every checkpoint in .* is damaged"),
    ):
        store.resume(tree())
    assert steps(folder) == [1, 2, 3]


def test_what_a_killed_process_left_is_removed(sound: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(sound, tmp_path / "run"))
    (folder / ".step-removed.staging").mkdir()
    (folder / "step-0000000003").rename(folder / ".step-removed.staging" / "step-0000000003")
    (folder / ".step-half.staging" / "new").mkdir(parents=True)
    with open_store(Policy(folder), RUN) as store:
        names = {".lock", "run.json", "step-0000000001", "step-0000000002"}
        assert {path.name for path in folder.iterdir()} == names
        (folder / ".step-half.staging" / "new").mkdir(parents=True)
        store.save(2, tree(2), {})
        assert {path.name for path in folder.iterdir()} == names


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

    with open_store(Policy(tmp_path, keep=1), RUN) as store:
        monkeypatch.setattr(os, "fsync", fail)
        saved = store.save(1, tree(1), {})
        # All is on the disk, in the end the checkpoint's name.
        assert {path.stat().st_ino for path in (saved, *saved.rglob("*"))} == set(waits[:-1])
        assert waits[-1] == tmp_path.stat().st_ino
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
            for found in checkpoint.list_checkpoints(tmp_path):
                found.verify()
            assert not list(tmp_path.glob("*.staging"))
        assert number == 5  # two files, their folder and its name
    assert steps(tmp_path) == [2]


def test_a_file_size_limit_is_an_error_at_once(tmp_path: Path) -> None:
    large = {"a": jnp.asarray(np.random.default_rng(0).random(500_000), jnp.float32)}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_store(Policy(tmp_path), RUN) as store:
        store.save(1, large, {})
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
        try:
            with pytest.raises(WriteError, match="would exceed the size limit; give --workdir"):
                store.save(2, large, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert steps(tmp_path) == [1]
    checkpoint.list_checkpoints(tmp_path)[0].restore(large)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES])
def test_a_write_that_fails_is_one_sentence(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, content: bytes) -> None:
        raise OSError(number, os.strerror(number), str(path))

    with open_store(Policy(tmp_path), RUN) as store:
        store.save(1, tree(1), {})
        monkeypatch.setattr(Path, "write_bytes", fail)
        with pytest.raises(WriteError, match=r"cannot write .*arrays.safetensors: .*; give --work"):
            store.save(2, tree(2), {})
    assert steps(tmp_path) == [1]
    assert not list(tmp_path.glob("*.staging"))


def other_bytes(folder: Path, content: dict[str, Any]) -> None:
    """Seals a checkpoint of other arrays: all digests are right."""
    (folder / checkpoint.ARRAYS).write_bytes(serialize_pytree(tree(9)))
    seal(folder, content)


def flipped(folder: Path, content: dict[str, Any]) -> None:
    seal(folder, content)
    flip(folder / checkpoint.ARRAYS)


seal = manifest.seal


@pytest.mark.parametrize("damage", [flipped, other_bytes])
def test_what_cannot_be_read_back_is_not_saved(
    damage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(Policy(tmp_path), RUN) as store:
        store.save(1, tree(1), {})
        monkeypatch.setattr(manifest, "seal", damage)
        with pytest.raises(WriteError, match=r"cannot be read back \(arrays.safetensors .*; give"):
            store.save(2, tree(2), {})
    assert steps(tmp_path) == [1]


@pytest.mark.parametrize(
    "name",
    [
        *("run[1]", "[!a]", "a*b", "a?b", "a{b,c}", "back\\slash", "gs:", "file:", "c:d", "%41x"),
        *("#x", "?query=1", "~x", "..x", "-x", " s p ", "new\nline", "q'u\"ote", "$HOME"),
        *("a|b;c&d", "\x01", "\u00fc\u4e2d", "\udce9"),
    ],
    ids=ascii,
)
def test_any_name_that_the_file_system_allows(tmp_path: Path, name: str) -> None:
    """Nothing reads a pattern or an address into it."""
    with open_store(Policy(tmp_path / name), RUN) as store:
        store.save(1, tree(1), {})
        found, _, folder = store.resume(tree())
    np.testing.assert_array_equal(found["a"], tree(1)["a"])
    assert folder.parent == tmp_path / name
    assert list(tmp_path.iterdir()) == [tmp_path / name]


def test_folders_whose_names_match_as_patterns_stay_apart(tmp_path: Path) -> None:
    names = ("run[1]", "run1", "a*b", "aab")
    for number, name in enumerate(names):
        with open_store(Policy(tmp_path / name), RUN) as store:
            store.save(1, tree(number), {})
    for number, name in enumerate(names):
        (found,) = checkpoint.list_checkpoints(tmp_path / name)
        np.testing.assert_array_equal(found.restore(tree())["a"], tree(number)["a"])


def test_values_that_are_no_json_are_compared(tmp_path: Path) -> None:
    policy = Policy(tmp_path)
    for _ in range(2):
        with open_store(policy, {"mask": leaf_types, "pair": (1, 2)}):
            pass
    with (
        pytest.raises(UserError, match=r"mask .*leaf_types.* there and .*serialize_py.* here"),
        open_store(policy, {"mask": serialize_pytree, "pair": (1, 2)}),
    ):
        pass


def test_keys_and_low_precision_are_saved(tmp_path: Path) -> None:
    key = jax.random.key(3, impl="rbg")
    saved = {"key": key, "half": jnp.arange(3, dtype=jnp.bfloat16), "empty": jnp.zeros((0, 2))}
    with open_store(Policy(tmp_path), RUN) as store:
        store.save(1, saved, {})
        found, _, _ = store.resume(jax.eval_shape(lambda: saved))
    assert jax.random.key_impl(found["key"]) == "rbg"
    np.testing.assert_array_equal(jax.random.key_data(found["key"]), jax.random.key_data(key))
    assert (found["half"].dtype, found["empty"].shape) == (jnp.bfloat16, (0, 2))
    np.testing.assert_array_equal(found["half"], saved["half"])
