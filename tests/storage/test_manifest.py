import errno
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxcnn.errors import ReadError
from jaxcnn.storage import document, manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    (tmp_path / "one").write_bytes(b"12345")
    (tmp_path / "deep" / "two").write_bytes(b"")
    manifest.seal(tmp_path, {"step": 3})
    return tmp_path


def test_a_sound_folder(folder: Path) -> None:
    content = manifest.verify(folder)
    assert content["step"] == 3
    assert sorted(content["files"]) == ["deep/two", "one"]
    assert manifest.read(folder) == content


def forge(change: Callable[[dict], object]) -> Callable[[Path], object]:
    """Changes a manifest and gives it the right digest."""

    def damage(folder: Path) -> None:
        content = json.loads((folder / manifest.NAME).read_text())["content"]
        change(content)
        whole = {"sha256": manifest._digest(content), "content": content}
        (folder / manifest.NAME).write_text(json.dumps(whole))

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "one").write_bytes(b"12346"), "one was altered"),
        (lambda f: (f / "one").write_bytes(b"1234"), "one has 4 bytes instead of 5"),
        (lambda f: (f / "deep" / "two").unlink(), "deep/two is missing"),
        (lambda f: (f / manifest.NAME).unlink(), "manifest.json is missing"),
        (lambda f: (f / manifest.NAME).write_text("{"), "manifest.json is not a manifest"),
        (lambda f: (f / manifest.NAME).write_bytes(b"\xff"), "manifest.json is not a manifest"),
        (lambda f: (f / manifest.NAME).write_text("[" * 10**5), "manifest.json is not a manifest"),
        (
            forge(lambda content: content["files"].update({"../x": [0, ""]})),
            "manifest.json is not a manifest",
        ),
        (
            forge(lambda content: content["files"].update({"/etc/passwd": [0, ""]})),
            "is not a manifest",
        ),
        (forge(lambda content: content["files"].update({"one": 5})), "is not a manifest"),
        (forge(lambda content: content.update(files=[])), "is not a manifest"),
    ],
)
def test_damage_is_named(folder: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(folder)
    with pytest.raises(manifest.DamagedError, match=said):
        manifest.verify(folder)


@given(st.data())
def test_any_other_byte_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("sealed")
    (folder / "file").write_bytes(b"content")
    manifest.seal(folder, {"progress": {"history": [1.5]}})
    path = folder / data.draw(st.sampled_from(["file", manifest.NAME]))
    before = path.read_bytes()
    position = data.draw(st.integers(0, len(before) - 1))
    after = bytearray(before)
    after[position] ^= data.draw(st.integers(1, 255))
    path.write_bytes(after)
    sound = None
    try:
        sound = manifest.verify(folder)
    except manifest.DamagedError:
        return
    # White space is no content.
    assert path.name == manifest.NAME
    assert sound["progress"] == {"history": [1.5]}


@pytest.mark.parametrize("name", ["one", manifest.NAME])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOMEM, errno.EMFILE])
def test_a_file_that_cannot_be_read_is_not_damaged(
    name: str, number: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is read again, and only if that fails too is it an error of its own."""
    monkeypatch.setattr(document.time, "sleep", lambda seconds: None)
    opened, failures = Path.open, iter([True])

    def fail(path: Path, *how: Any, **options: Any) -> Any:
        if path.name == name and next(failures, False):
            raise OSError(number, os.strerror(number), str(path))
        return opened(path, *how, **options)

    monkeypatch.setattr(Path, "open", fail)
    manifest.verify(folder)
    failures = itertools.repeat(True)
    with pytest.raises(ReadError, match=f"cannot read .*{name}: {os.strerror(number)}"):
        manifest.verify(folder)


def test_a_short_digest_distinguishes_texts() -> None:
    assert manifest.short_digest("") == "e3b0c44298fc"  # of SHA-256's e3b0c44298fc1c14...
    assert manifest.short_digest("a") != manifest.short_digest("b")
