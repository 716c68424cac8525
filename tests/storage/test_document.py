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
        ({"name": 3}, "name is not a line of text"),
        ({"name": None}, "name is not a line of text"),
        ({"name": "two\nlines"}, "name is not a line of text"),
        ({"name": "\x1b[31m"}, "name is not a line of text"),
        ({"name": 501 * "x"}, "name is not a line of text"),
        ({"count": 3.0}, "count is not a whole number"),
        ({"count": True}, "count is not a whole number"),
        ({"count": "3"}, "count is not a whole number"),
        ({"share": "1"}, "share is not a number"),
        ({"share": None}, "share is not a number"),
        ({"share": json.loads("NaN")}, "share is not a number"),
        ({"share": json.loads("-Infinity")}, "share is not a number"),
        ({"count": 10**400}, "count is not a whole number"),
        ({"rate": []}, "rate is not a number"),
        ({"rows": {}}, "rows is not a list"),
        ({"rows": [{"step": 1}, 2]}, r"rows\[1\] has no named values"),
        ({"rows": [{}]}, r"rows\[0\] has no step"),
        ({"versions": {"jax": 1}}, "jax is not a line of text"),
        ({"versions": {"j\nax": "1"}}, r"versions\[0\] is not a line of text"),
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
    assert document.read_json(path) == SOUND
    (tmp_path / "link").symlink_to(path)
    assert document.read_json(tmp_path / "link") == SOUND


@pytest.mark.parametrize(
    ("lay", "said"),
    [
        (Path.mkdir, "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a regular file"),
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
        document.read_json(tmp_path / "x")


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxcnn.storage.document._MAX_BYTES", 10)
    (tmp_path / "x").write_text("[1,  2]")
    assert document.read_json(tmp_path / "x") == [1, 2]
    (tmp_path / "x").write_text("[1,      2]")
    with pytest.raises(ValueError, match="too large"):
        document.read_json(tmp_path / "x")


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    for name in ("x", "x/y", "file/y", "broken"):
        with pytest.raises(FileNotFoundError):
            document.read_json(tmp_path / name)


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

    assert document.with_retries(tmp_path, fail(errno.EIO, 3)) == 7
    assert waited == sorted(waited)
    assert len(waited) == 3
    with pytest.raises(ReadError, match=f"cannot read {tmp_path}: Input/output error; nothing was"):
        document.with_retries(tmp_path, fail(errno.EIO, 4))
    waited.clear()
    with pytest.raises(ReadError, match="permission is denied; nothing was changed"):
        document.with_retries(tmp_path, fail(errno.EACCES, 1))
    assert waited == []


def test_true_and_false() -> None:
    document.check({"ended": True}, {"ended": bool}, "progress")
    for value in (1, 0.0, None, "true"):
        with pytest.raises(ValueError, match="ended is neither true nor false"):
            document.check({"ended": value}, {"ended": bool}, "progress")
