import errno
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pytest

from jaxcnn.data import cache
from jaxcnn.data.cache import Arrays
from jaxcnn.errors import DataError, WriteError
from jaxcnn.storage import manifest
from tests.storage.test_manifest import forge

FINGERPRINT = {"version": "1", "files": [["a", 1, 2]]}


def arrays() -> Arrays:
    images = np.arange(3 * 4 * 4, dtype=np.uint8).reshape(3, 4, 4, 1)
    return Arrays(
        {"train_images": images, "train_labels": np.arange(3, dtype=np.int32)}, ("a", "b")
    )


def load(folder: Path, fingerprint: object = FINGERPRINT) -> tuple[Arrays, int, list[str]]:
    builds: list[int] = []
    lines: list[str] = []

    def build() -> Arrays:
        builds.append(1)
        return arrays()

    loaded = cache.load_or_build(folder, fingerprint=fingerprint, build=build, report=lines.append)  # type: ignore[arg-type]
    return loaded, len(builds), lines


def assert_sound(loaded: Arrays) -> None:
    assert loaded.class_names == arrays().class_names
    for name, array in arrays().arrays.items():
        np.testing.assert_array_equal(loaded.arrays[name], array)
        assert loaded.arrays[name].dtype == array.dtype


def test_a_cache_is_built_once_then_memory_mapped(tmp_path: Path) -> None:
    loaded, builds, _ = load(tmp_path / "c")
    assert_sound(loaded)
    assert builds == 1
    loaded, builds, lines = load(tmp_path / "c")
    assert_sound(loaded)
    assert (builds, lines) == (0, [])
    assert all(isinstance(array, np.memmap) for array in loaded.arrays.values())
    with pytest.raises(ValueError, match="read-only"):
        loaded.arrays["train_images"][0] = 1


def flip_bit(folder: Path) -> None:
    path = folder / "train_images.npy"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def cut(folder: Path) -> None:
    path = folder / "train_images.npy"
    path.write_bytes(path.read_bytes()[:-1])


def edit_manifest(change: Callable[[dict], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "manifest.json"
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))

    return edit


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (flip_bit, "train_images.npy was altered"),
        (cut, "train_images.npy has 175 bytes instead of 176"),
        (lambda folder: (folder / "train_labels.npy").unlink(), "train_labels.npy is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
        (
            lambda folder: (folder / "manifest.json").write_text("{"),
            "manifest.json is not a manifest",
        ),
        (
            lambda folder: (folder / "manifest.json").write_text("[]"),
            "manifest.json is not a manifest",
        ),
        (edit_manifest(lambda m: m["content"].update(class_names=["x"])), "altered"),
        (edit_manifest(lambda m: m["content"].update(format=0)), "altered"),
    ],
    ids=["bit", "cut", "no-labels", "no-manifest", "half-json", "list", "names", "format"],
)
def test_damage_is_detected_and_repaired(
    tmp_path: Path, damage: Callable[[Path], None], said: str
) -> None:
    load(tmp_path / "c")
    damage(tmp_path / "c")
    loaded, builds, lines = load(tmp_path / "c")
    assert_sound(loaded)
    assert builds == 1
    assert len(lines) == 1
    assert said in lines[0]
    assert load(tmp_path / "c")[1] == 0


def test_a_cache_of_another_form_is_rebuilt(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    manifest.seal(tmp_path / "c", {"format": cache._FORMAT, "fingerprint": FINGERPRINT})
    loaded, builds, lines = load(tmp_path / "c")
    assert_sound(loaded)
    assert builds == 1
    assert lines == [f"the cache {tmp_path / 'c'} is rebuilt: it cannot be read (KeyError)"]


@pytest.mark.parametrize("names", [5, ["a", 1], ["a\x1b"]])
def test_invalid_class_names_are_rebuilt(names: Any, tmp_path: Path) -> None:
    """Although the manifest has the correct digest."""
    load(tmp_path / "c")
    forge(lambda content: content.update(class_names=names))(tmp_path / "c")
    loaded, builds, _ = load(tmp_path / "c")
    assert builds == 1
    assert_sound(loaded)


def test_a_cache_that_does_not_read_back_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = manifest.seal

    def seal_and_damage(folder: Path, content: dict[str, object]) -> None:
        seal(folder, content)
        flip_bit(folder)

    monkeypatch.setattr("jaxcnn.storage.manifest.seal", seal_and_damage)
    with pytest.raises(DataError, match=r"does not read back .*train_images.npy was altered"):
        load(tmp_path / "c")


def test_another_version_is_rebuilt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(tmp_path / "c")
    _, builds, lines = load(tmp_path / "c", {"version": "2"})
    assert builds == 1
    assert "another version" in lines[0]
    monkeypatch.setattr("jaxcnn.data.cache._FORMAT", cache._FORMAT + 1)
    assert load(tmp_path / "c", {"version": "2"})[1] == 1


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def build() -> Arrays:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.load_or_build(tmp_path / "new" / "c", fingerprint=FINGERPRINT, build=build)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_failed_write_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(np.lib.format, "write_array_header_1_0", fail)
    with pytest.raises(WriteError, match=r"cannot write .*; set JAXCNN_CACHE_DIR"):
        load(tmp_path / "new" / "c")
    assert list(tmp_path.iterdir()) == []


def test_a_removed_folder_is_created_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a process that held the lock before and failed."""
    folder = tmp_path / "new" / "folder"

    class Lock(filelock.FileLock):
        def acquire(self, *args: Any, **options: Any) -> Any:
            held = super().acquire(*args, **options)
            shutil.rmtree(tmp_path / "new")
            return held

    monkeypatch.setattr(filelock, "FileLock", Lock)
    load(folder / "c")
    assert (folder / "c").is_dir()


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match="file"):
        load(tmp_path / "file" / "c")


def test_the_remains_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".c-killed.staging").mkdir()
    (tmp_path / ".c-killed.staging" / "half.npy").touch()
    load(tmp_path / "c")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".c.lock", "c"]


def test_a_second_process_waits_while_the_cache_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = threading.Semaphore(0)
    open_cache = cache._open

    def counted(*args: object) -> object:
        found = open_cache(*args)  # type: ignore[arg-type]
        opened.release()
        return found

    monkeypatch.setattr("jaxcnn.data.cache._open", counted)
    builds: list[int] = []

    def build() -> Arrays:
        builds.append(1)
        if len(builds) == 1:
            late.start()
            for _ in range(3):  # twice by this thread, and once by the other one, before it waits
                assert opened.acquire(timeout=300)
        return arrays()

    def load_here() -> None:
        loaded.append(cache.load_or_build(tmp_path / "c", fingerprint=FINGERPRINT, build=build))

    loaded: list[Arrays] = []
    late = threading.Thread(target=load_here, daemon=True)
    load_here()
    late.join()
    for each in loaded:
        assert_sound(each)
    assert (len(loaded), len(builds)) == (2, 1)


def _load_and_log(together: Barrier, folder: str, log: str) -> None:
    def build() -> Arrays:
        with Path(log).open("a") as file:
            file.write("built\n")
        return arrays()

    together.wait(timeout=300)
    assert_sound(cache.load_or_build(Path(folder), fingerprint=FINGERPRINT, build=build))


@pytest.mark.slow
def test_processes_that_start_together_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    arguments = (context.Barrier(3), str(tmp_path / "c"), str(tmp_path / "log"))
    processes = [context.Process(target=_load_and_log, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "built\n"
