import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxcnn.errors import ReadError
from jaxcnn.storage import document

FORM = {
    "name": str,
    "count": int,
    "share": float,
    "rate": (float, None),
    "rows": [{"step": int}],
    "versions": {str: str},
}
SOUND: dict[str, Any] = {
    "name": "mnist",
    "count": 3,
    "share": 1,
    "rate": None,
    "rows": [{"step": 1}, {"step": 2, "more": []}],
    "versions": {"jax": "1"},
    "more": {},
}


def test_what_has_the_form() -> None:
    for change in ({}, {"rate": 0.5}, {"rows": []}, {"versions": {}}):
        document.check(SOUND | change, FORM, "it")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 3}, "name is no line of text"),
        ({"name": None}, "name is no line of text"),
        ({"name": "two\nlines"}, "name is no line of text"),
        ({"name": "\x1b[31m"}, "name is no line of text"),
        ({"name": 501 * "x"}, "name is no line of text"),
        ({"count": 3.0}, "count is no whole number"),
        ({"count": True}, "count is no whole number"),
        ({"count": "3"}, "count is no whole number"),
        ({"share": "1"}, "share is no number"),
        ({"share": None}, "share is no number"),
        ({"share": json.loads("NaN")}, "share is no number"),
        ({"share": json.loads("-Infinity")}, "share is no number"),
        ({"count": 10**400}, "count is no whole number"),
        ({"rate": []}, "rate is no number"),
        ({"rows": {}}, "rows is no list"),
        ({"rows": [{"step": 1}, 2]}, r"rows\[1\] has no named values"),
        ({"rows": [{}]}, r"rows\[0\] has no step"),
        ({"versions": {"jax": 1}}, "jax is no line of text"),
        ({"versions": {"j\nax": "1"}}, r"versions\[0\] is no line of text"),
    ],
)
def test_what_has_not(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        document.check(SOUND | change, FORM, "it")


def test_a_missing_value_is_named() -> None:
    for name in FORM:
        with pytest.raises(ValueError, match=f"it has no {name}"):
            document.check({key: SOUND[key] for key in SOUND if key != name}, FORM, "it")


def test_what_a_file_holds(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(SOUND))
    assert document.read(path) == SOUND
    (tmp_path / "link").symlink_to(path)
    assert document.read(tmp_path / "link") == SOUND


@pytest.mark.parametrize(
    ("lay", "said"),
    [
        (Path.mkdir, "no regular file"),
        (os.mkfifo, "no regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "no regular file"),
        (lambda path: path.write_text("[" * 100_000), "nested too deeply"),
        (lambda path: path.write_text('{"a":' * 100_000), "nested too deeply"),
        (lambda path: path.write_text("[NaN]"), "NaN as a number"),
        (lambda path: path.write_text("[-Infinity]"), "-Infinity as a number"),
        (lambda path: path.write_bytes(b'"\xff"'), "utf-8"),
        (lambda path: path.write_text(""), "Expecting value"),
        (lambda path: path.write_text("1" * 5000), "digits"),
    ],
)
def test_what_is_no_document(tmp_path: Path, lay: Callable[[Path], object], said: str) -> None:
    lay(tmp_path / "x")
    with pytest.raises(ValueError, match=said):
        document.read(tmp_path / "x")


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxcnn.storage.document._MOST_BYTES", 10)
    (tmp_path / "x").write_text("[1,  2]")
    assert document.read(tmp_path / "x") == [1, 2]
    (tmp_path / "x").write_text("[1,      2]")
    with pytest.raises(ValueError, match="too large"):
        document.read(tmp_path / "x")


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for name in ("x", "x/y", "file/y", "broken"):
        with pytest.raises(FileNotFoundError):
            document.read(tmp_path / name)


def test_what_passes_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(document.time, "sleep", waited.append)

    def fail(number: int, times: int) -> Callable[[], int]:
        left = iter(range(times))

        def call() -> int:
            if next(left, None) is not None:
                raise OSError(number, os.strerror(number))
            return 7

        return call

    assert document.patiently(tmp_path, fail(errno.EIO, 3)) == 7
    assert waited == sorted(waited)
    assert len(waited) == 3
    with pytest.raises(ReadError, match=f"cannot read {tmp_path}: Input/output error; nothing was"):
        document.patiently(tmp_path, fail(errno.EIO, 4))
    waited.clear()
    with pytest.raises(ReadError, match="permission is denied; nothing was changed"):
        document.patiently(tmp_path, fail(errno.EACCES, 1))
    assert waited == []
