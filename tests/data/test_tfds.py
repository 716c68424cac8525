import json
import re
from pathlib import Path

import pytest

from jaxcnn.data import tfds
from jaxcnn.errors import DataError, DataUnavailableError, WriteError
from tests.official import Official


def prepare(tmp_path: Path, name: str, official: Official) -> tfds.Prepared:
    return tfds.find_or_prepare(name, tmp_path / "data", official.folder)


def test_nothing_but_the_data_set_is_left(tmp_path: Path, name: str, official: Official) -> None:
    prepare(tmp_path, name, official)
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        f".jaxcnn-{name}.lock",
        name,
    ]
    assert [path.name for path in (tmp_path / "data" / name).iterdir()] == [tfds.VERSIONS[name]]


def test_a_second_call_prepares_nothing(tmp_path: Path, name: str, official: Official) -> None:
    first = prepare(tmp_path, name, official)
    lines: list[str] = []
    second = tfds.find_or_prepare(name, tmp_path / "data", None, lines.append)
    assert second == first
    assert lines == []
    assert second.fingerprint() == first.fingerprint()


def test_environment_is_honoured(
    tmp_path: Path, name: str, official: Official, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("JAXCNN_ARCHIVE_DIR", str(official.folder))
    lines: list[str] = []
    prepared = tfds.find_or_prepare(name, report=lines.append)
    assert prepared.folder.is_relative_to(tmp_path / "elsewhere")
    assert not any("downloading" in line for line in lines)


def test_a_wrong_checksum_leaves_nothing(tmp_path: Path, name: str, official: Official) -> None:
    path = official.folder / official.archives[-1].filename
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=re.escape(f"{path} has the wrong checksum")):
        prepare(tmp_path, name, official)
    assert not (tmp_path / "data").exists()


def test_a_missing_archive_leaves_nothing(tmp_path: Path, name: str, official: Official) -> None:
    missing = official.archives[-1].filename
    (official.folder / missing).unlink()
    with pytest.raises(DataUnavailableError, match=f"{missing} is not in .*--archive-dir"):
        prepare(tmp_path, name, official)
    assert not (tmp_path / "data").exists()


def test_an_existing_data_dir_is_kept_after_a_failure(
    tmp_path: Path, name: str, official: Official
) -> None:
    (tmp_path / "data" / "other").mkdir(parents=True)
    (official.folder / official.archives[0].filename).unlink()
    with pytest.raises(DataUnavailableError):
        prepare(tmp_path, name, official)
    left = {path.name for path in (tmp_path / "data").iterdir()} - {f".jaxcnn-{name}.lock"}
    assert left == {"other"}


@pytest.mark.parametrize("formats", [("tfrecord",), (None,)])
def test_tfrecord_only_is_refused(
    tmp_path: Path, name: str, official: Official, formats: tuple[str | None]
) -> None:
    info = prepare(tmp_path, name, official).folder / "dataset_info.json"
    content = json.loads(info.read_text())
    content["fileFormat"] = formats[0]
    info.write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"prepared as tfrecord.*--data-dir") as caught:
        prepare(tmp_path, name, official)
    assert not isinstance(caught.value, DataUnavailableError)


def test_another_version_is_refused(tmp_path: Path, name: str, official: Official) -> None:
    folder = prepare(tmp_path, name, official).folder
    folder.rename(folder.with_name("1.0.0"))
    with pytest.raises(
        DataError, match=rf"holds version 1\.0\.0 instead of the required {tfds.VERSIONS[name]}"
    ):
        prepare(tmp_path, name, official)


def test_the_fingerprint_follows_the_files(tmp_path: Path, name: str, official: Official) -> None:
    prepared = prepare(tmp_path, name, official)
    before = prepared.fingerprint()
    shard = next(prepared.folder.glob("*test.array_record*"))
    copy = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(copy + b"x")
    assert prepared.fingerprint() != before


@pytest.mark.parametrize(
    ("error", "said"),
    [(RuntimeError("first\nsecond"), "first"), (RuntimeError(), "RuntimeError")],
)
def test_a_failed_preparation_is_explained(
    tmp_path: Path,
    official: Official,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    said: str,
) -> None:
    from jaxcnn.data import builders

    def fail(self: object, dl_manager: object) -> None:
        raise error

    monkeypatch.setattr(builders.BUILDERS[name], "_split_generators", fail)
    message = f"{name} cannot be prepared in {tmp_path / 'data'} ({said}): give --data-dir"
    with pytest.raises(DataError, match=re.escape(message)):
        prepare(tmp_path, name, official)


def test_a_file_in_the_way_is_named(tmp_path: Path, name: str, official: Official) -> None:
    (tmp_path / "data").touch()
    with pytest.raises(DataError, match=r"a part of the path .*data.* is a file: give --data-dir"):
        prepare(tmp_path, name, official)


def test_a_full_disk_is_named(
    tmp_path: Path, name: str, official: Official, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jaxcnn.data import builders

    def fail(self: object, dl_manager: object) -> None:
        # What the record writer raises: no OSError, the cause only in the text.
        raise RuntimeError("write() failed: No space left on device; writing x")

    monkeypatch.setattr(builders.BUILDERS[name], "_split_generators", fail)
    with pytest.raises(WriteError, match="the disk is full; give --data-dir"):
        prepare(tmp_path, name, official)
    assert not (tmp_path / "data").exists()
