import errno
import gc
import logging
import os
import re
import sys
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.errors import ReadError, UserError, WriteError
from jaxcnn.storage import arrays
from jaxcnn.storage.arrays import read_arrays, write_arrays
from jaxcnn.storage.manifest import DamagedError


class Pair(NamedTuple):
    first: Any
    second: Any


TREE = {
    "float": jnp.array([1.5, -0.0, jnp.inf, jnp.nan]),
    "half": jnp.ones((2, 3), jnp.bfloat16),
    "whole": jnp.int32(7),
    "truth": jnp.array([True, False]),
    "empty": jnp.zeros((0, 4)),
    "key": jax.random.key(3, impl="threefry2x32"),
    "keys": jax.random.split(jax.random.key(4, impl="rbg"), 2),
    "odd/name .": Pair(jnp.arange(3), (jnp.zeros(()), None, ())),
    "host": np.arange(4, dtype=np.uint32),
}


def assert_equal(tree: Any, other: Any) -> None:
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for one, two in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert (one.shape, one.dtype) == (two.shape, two.dtype)
        if jnp.issubdtype(one.dtype, jax.dtypes.prng_key):
            one, two = jax.random.key_data(one), jax.random.key_data(two)
        assert np.asarray(one).tobytes() == np.asarray(two).tobytes()


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    leaves = write_arrays(tmp_path / "arrays", TREE)
    assert_equal(read_arrays(tmp_path / "arrays", TREE, leaves), TREE)
    shapes = jax.eval_shape(lambda tree: tree, TREE)
    assert_equal(read_arrays(tmp_path / "arrays", shapes, leaves), TREE)


def test_what_is_read_runs_the_same_programs(tmp_path: Path) -> None:
    tree = {"a": jnp.zeros(3)}
    add = jax.jit(lambda tree: {"a": tree["a"] + 1})
    add(tree)
    leaves = write_arrays(tmp_path / "arrays", tree)
    add(read_arrays(tmp_path / "arrays", tree, leaves))
    assert add._cache_size() == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"whole": jnp.float32(7)}, r"holds int32\[\] as whole, .* needs float32\[\]"),
        ({"half": jnp.ones((2, 3))}, r"holds bfloat16\[2, 3\] as half, .* needs float32\[2, 3\]"),
        ({"truth": jnp.array([True])}, r"holds bool\[2\] as truth, .* needs bool\[1\]"),
        ({"more": jnp.zeros(2)}, r"holds nothing as more"),
        ({"key": jax.random.key(3, impl="rbg")}, r"key<fry>\[\] as key, .* needs key<rbg>\[\]"),
    ],
)
def test_another_form_is_refused(tmp_path: Path, change: dict, said: str) -> None:
    leaves = write_arrays(tmp_path / "arrays", TREE)
    with pytest.raises(UserError, match=said):
        read_arrays(tmp_path / "arrays", TREE | change, leaves)
    less = {name: leaf for name, leaf in TREE.items() if name != "whole"}
    with pytest.raises(UserError, match=r"as whole, .* needs nothing"):
        read_arrays(tmp_path / "arrays", less, leaves)


def test_a_part_can_be_read(tmp_path: Path) -> None:
    leaves = write_arrays(tmp_path / "arrays", TREE)
    part = {name: TREE[name] for name in ("half", "key")}
    read = read_arrays(tmp_path / "arrays", jax.eval_shape(lambda: part), leaves, partial=True)
    assert_equal(read, part)
    with pytest.raises(UserError, match="holds nothing as more"):
        read_arrays(tmp_path / "arrays", {"more": jnp.zeros(2)}, leaves, partial=True)


def test_other_numbers_are_noticed(tmp_path: Path) -> None:
    write_arrays(tmp_path / "arrays", {"a": jnp.zeros(3)})
    leaves = write_arrays(tmp_path / "others", {"a": jnp.ones(3)})
    with pytest.raises(DamagedError, match="other numbers for a"):
        read_arrays(tmp_path / "arrays", {"a": jnp.zeros(3)}, leaves)


def test_what_cannot_be_read_or_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"a": jnp.zeros(3)}
    leaves = write_arrays(tmp_path / "arrays", tree)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with pytest.raises(ReadError, match=r"cannot read .*nowhere .*; nothing was changed"):
        read_arrays(tmp_path / "nowhere", tree, leaves)
    (tmp_path / "file").touch()
    with pytest.raises((OSError, WriteError), match="file"):
        write_arrays(tmp_path / "file" / "arrays", tree)


def test_what_cannot_be_read_for_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"a": jnp.arange(3.0)}
    leaves = write_arrays(tmp_path / "arrays", tree)
    quietly, pauses = arrays._quietly, []

    def failing(call: Any) -> Any:
        return quietly(call) if len(pauses) == 2 else (None, "Too many open files")

    monkeypatch.setattr("jaxcnn.storage.arrays._quietly", failing)
    monkeypatch.setattr(time, "sleep", pauses.append)
    np.testing.assert_array_equal(read_arrays(tmp_path / "arrays", tree, leaves)["a"], tree["a"])
    assert len(pauses) == 2


@pytest.mark.parametrize("given", [None, jax.ShapeDtypeStruct((3,), "float32"), np.zeros(2)])
def test_what_orbax_gives_back_is_an_array_of_the_wanted_form(
    given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = {"a": jnp.zeros(3)}
    leaves = write_arrays(tmp_path / "arrays", tree)
    monkeypatch.setattr("jaxcnn.storage.arrays._quietly", lambda call: ({"00000": given}, ""))
    with pytest.raises(DamagedError, match="arrays has another array as a"):
        read_arrays(tmp_path / "arrays", tree, leaves)


class Left:
    """What Python can only print an error of: it is raised when nobody refers to it any more."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.itself = self  # so that it is there until the garbage collector comes

    def __del__(self) -> None:
        raise self.error


def test_what_a_failure_leaves_is_not_heard_of_and_anything_else_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[str] = []

    def hook(raised: Any) -> None:
        heard.append(str(raised.exc_value))

    monkeypatch.setattr(sys, "unraisablehook", hook)
    loggers = [logging.getLogger(name) for name in ("asyncio", "absl")]
    disabled = [logger.disabled for logger in loggers]

    def call() -> None:
        assert all(logger.disabled for logger in loggers)
        for text in ("Event loop is closed", "another error"):
            Left(RuntimeError(text))
        raise ValueError("first line\n  second line " + "x" * 300 + " last words")

    result, failure = arrays._quietly(call)
    assert result is None
    assert failure.startswith("first line second line xx")
    assert failure.endswith("x last words")
    assert len(failure) < 300
    assert heard == ["another error"]
    # Of a thread that has written on; as errors and as the warnings that they are elsewhere.
    late = ("Event loop is closed", "coroutine 'async_serialize_x.<locals>.y' was never awaited")
    for text in late:
        Left(RuntimeError(text))
        warnings.warn(text, RuntimeWarning, stacklevel=1)
    gc.collect()
    assert heard == ["another error"]
    once = sys.unraisablehook
    arrays._ignore_leftovers()
    assert sys.unraisablehook is once
    assert [logger.disabled for logger in loggers] == disabled
    assert arrays._quietly(lambda: 5) == (5, "")
    monkeypatch.setattr(gc, "collect", lambda: 0)  # takes long
    for error, said in (
        (OSError(errno.ENOSPC, "said otherwise"), os.strerror(errno.ENOSPC)),
        (ValueError("short"), "short"),
        (KeyError(), "KeyError"),
    ):
        assert arrays._quietly(lambda error=error: raises(error)) == (None, said)


def raises(error: Exception) -> None:
    raise error


def test_why_orbax_could_not_write_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = {"a": jnp.zeros(3)}
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
        failure = f"INTERNAL: Error writing: {os.strerror(number)} [type.googleapis.com]"
        monkeypatch.setattr(
            "jaxcnn.storage.arrays._quietly", lambda call, failure=failure: (None, failure)
        )
        with pytest.raises(OSError, match=re.escape(os.strerror(number))) as caught:
            write_arrays(tmp_path / "arrays", tree)
        assert caught.value.errno == number
        assert caught.value.filename == str(tmp_path / "arrays")
    monkeypatch.setattr("jaxcnn.storage.arrays._quietly", lambda call: (None, "something else"))
    with pytest.raises(WriteError, match="arrays: something else; give --workdir"):
        write_arrays(tmp_path / "arrays", tree)


@pytest.mark.parametrize(
    "name",
    [
        *("run[1]", "[!a]", "a*b", "a?b", "a{b,c}", "back\\slash", "gs:", "file:", "c:d", "%41x"),
        *(
            "#x",
            "?query=1",
            "~x",
            "..x",
            "-x",
            " s p ",
            "new\nline",
            "q'u\"ote",
            "$HOME",
            "a|b;c&d",
        ),
        *("\x01", "\u00fc\u4e2d", "\udce9"),
    ],
    ids=ascii,
)
def test_any_name_that_the_file_system_allows(tmp_path: Path, name: str) -> None:
    """No library reads a pattern or an address into it."""
    folder = tmp_path / name / "arrays"
    folder.parent.mkdir()
    tree = {"a": jnp.arange(4.0)}
    leaves = write_arrays(folder, tree)
    np.testing.assert_array_equal(read_arrays(folder, tree, leaves)["a"], tree["a"])
    assert list(tmp_path.iterdir()) == [folder.parent]


def test_what_one_name_matches_as_a_pattern_stays_apart(tmp_path: Path) -> None:
    written = {}
    for number, name in enumerate(("run[1]", "run1", "a*b", "aab")):
        tree = {"a": jnp.full(4, number)}
        (tmp_path / name).mkdir()
        written[name] = tree, write_arrays(tmp_path / name / "arrays", tree)
    for name, (tree, leaves) in written.items():
        found = read_arrays(tmp_path / name / "arrays", tree, leaves)
        np.testing.assert_array_equal(found["a"], tree["a"])


def test_what_cannot_be_read_back_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jaxcnn.storage.arrays._restore", lambda *_: {"a": jnp.ones(4)})
    with pytest.raises(WriteError, match=r"arrays cannot be read back .*of another name"):
        write_arrays(tmp_path / "arrays", {"a": jnp.zeros(4)})
