"""Trees of arrays on disk, written and read by Orbax.

What Orbax does not promise is added here: what is read has the names, shapes, dtypes and bits of
what was written, or an error says that it has not.
"""

import contextlib
import errno
import gc
import logging
import math
import os
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.devices.keys import as_numbers, as_written
from jaxcnn.errors import WORKDIR_REMEDY, ReadError, UserError, WriteError
from jaxcnn.storage import fingerprint, manifest


def write_arrays(folder: Path, tree: Any) -> list[list[Any]]:
    """Writes the arrays of a tree and returns once they are written.

    Args:
        folder: that is made for them.
        tree: of arrays, PRNG keys among them.

    Returns:
        For `read`: path, shape, dtype and SHA-256 of each array, as JSON values.

    Raises:
        OSError: they cannot be written.
        WriteError: likewise, for a reason that is no `OSError`, or they cannot be read back.
    """
    # Imported here: it takes longer than the rest of this package.
    import orbax.checkpoint as ocp

    named = _named(tree)
    plain = {name: as_numbers(leaf) for name, leaf in named.items()}
    positions = _positions({name: leaf.size for name, leaf in plain.items()})
    arrays = {position: plain[name] for name, position in positions.items()}
    if jax.process_count() > 1:  # Orbax wants arrays of all processes then, or of none
        arrays = jax.tree.map(np.asarray, arrays)

    def save() -> None:
        with contextlib.closing(_checkpointer()) as checkpointer, _plain(folder) as path:
            checkpointer.save(path, args=ocp.args.PyTreeSave(arrays))

    _, failure = _quietly(save)
    if failure:
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES):
            if os.strerror(number) in failure:
                raise OSError(number, os.strerror(number), str(folder))
        raise WriteError(f"cannot write {folder}: {failure}; {WORKDIR_REMEDY}")
    leaves = [
        [name, list(leaf.shape), str(leaf.dtype), fingerprint.of_bytes(plain[name])]
        for name, leaf in named.items()
    ]
    try:
        read_arrays(folder, tree, leaves)
    except (manifest.DamagedError, ReadError) as error:
        raise WriteError(
            f"{folder} cannot be read back ({error}); {WORKDIR_REMEDY}, of another name perhaps"
        ) from error
    return leaves


def read_arrays(
    folder: Path, like: Any, leaves: Sequence[Sequence[Any]], *, partial: bool = False
) -> Any:
    """Reads the arrays of a tree.

    Args:
        folder: in which they are.
        like: a tree of arrays, or of shapes and dtypes, of the form that was written.
        leaves: what `write` returned.
        partial: whether more may have been written than `like` has.

    Returns:
        That tree with the arrays that were written, bit by bit.

    Raises:
        DamagedError: they are not those.
        ReadError: they cannot be read.
        UserError: what was written has other names, shapes or dtypes than `like`.
    """
    named = _named(like)
    there = {name: f"{dtype}{list(shape)}" for name, shape, dtype, _ in leaves}
    wanted = {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named.items()}
    for name in sorted(wanted.keys() if partial else there.keys() | wanted.keys()):
        if there.get(name) != wanted.get(name):
            raise UserError(
                f"{folder} holds {there.get(name, 'nothing')} as {name}, and what is to be "
                f"restored needs {wanted.get(name, 'nothing')}: give what it was saved with"
            )
    # Orbax's names count all arrays that were written.
    positions = _positions({name: math.prod(shape) for name, shape, _, _ in leaves})
    arrays = _restore(folder, {name: as_numbers(leaf) for name, leaf in named.items()}, positions)
    for name, _, _, digest in leaves:
        if name in arrays and fingerprint.of_bytes(arrays[name]) != digest:
            raise manifest.DamagedError(f"{folder.name} gives other numbers for {name}")
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: as_written(arrays[_name(path)], leaf), like
    )


def _restore(folder: Path, like: Mapping[str, Any], positions: Mapping[str, str]) -> dict[str, Any]:
    """Reads arrays by Orbax."""
    import orbax.checkpoint as ocp

    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    positions = {name: positions[name] for name in like if name in positions}
    wanted: dict[str, Any] = {
        position: jax.ShapeDtypeStruct(
            like[name].shape,
            like[name].dtype,
            sharding=getattr(like[name], "sharding", None) or here,
        )
        for name, position in positions.items()
    }
    if jax.process_count() > 1:  # see `write`
        wanted = {at: np.empty(leaf.shape, leaf.dtype) for at, leaf in wanted.items()}
    how = ocp.args.PyTreeRestore(
        wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
    )

    def restore() -> Any:
        with contextlib.closing(_checkpointer()) as checkpointer, _plain(folder) as path:
            return checkpointer.restore(path, args=how)

    for pause in (0.2, 1.0, 0.0):  # seconds; what keeps it from reading may pass
        arrays, failure = _quietly(restore)
        if not failure:
            break
        time.sleep(pause)
    else:  # its files have the right digests, so this is no damage
        raise ReadError(f"cannot read {folder} ({failure}); nothing was changed: try again")
    for name, at in positions.items():
        found, leaf = arrays.get(at), wanted[at]
        # Orbax returns what it was asked with where its own files know nothing of an array.
        is_array = isinstance(found, jax.Array | np.ndarray)
        if not is_array or (found.dtype, found.shape) != (leaf.dtype, leaf.shape):
            raise manifest.DamagedError(f"{folder.name} has another array as {name}")
    empty = {n: jnp.zeros(x.shape, x.dtype) for n, x in like.items() if n not in positions}
    return {name: _uncommitted(arrays[at]) for name, at in positions.items()} | empty


@contextlib.contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """Gives a folder another path if its own has what Orbax takes for a pattern or an address."""
    path = folder.absolute()
    if re.fullmatch(r"[\w./ @%+=,~-]*", str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="jaxcnn-") as temporary:
        link = Path(temporary, "folder")
        link.symlink_to(path.parent, target_is_directory=True)
        yield link / path.name


def _checkpointer() -> Any:
    """Returns one that works in this process alone, whether or not the run has others."""
    import orbax.checkpoint as ocp

    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process}, barrier_sync_key_prefix=f"{process}"
    )
    return ocp.Checkpointer(
        ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), multiprocessing_options=alone
    )


def _uncommitted(array: Any) -> jax.Array:
    """Returns an array of one device as a computation would have: not bound to that device.

    A jitted function is compiled once more for arguments that are.
    """
    many = isinstance(array, jax.Array) and len(array.sharding.device_set) > 1
    return array if many else jnp.asarray(np.asarray(array))


def _named(tree: Any) -> dict[str, Any]:
    """Returns the leaves of a tree by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {_name(path): leaf for path, leaf in leaves}
    assert len(named) == len(leaves), "two leaves of one name"
    return named


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _positions(sizes: Mapping[str, int]) -> dict[str, str]:
    """Returns the name that each array has for Orbax: not all paths are good file names.

    Arrays of no numbers, which it refuses, are left out.
    """
    return {name: f"{index:05d}" for index, name in enumerate(sorted(sizes)) if sizes[name]}


def _quietly(call: Callable[[], Any]) -> tuple[Any, str]:
    """Returns what a call of Orbax returns, and why it failed if it did.

    After a failure, tasks that were under way end in a loop that is closed, and others never begin.
    Python says so of each of them: at once, when it is thrown away, or when the last thread that
    still writes lets go of it.
    """
    loggers = [logging.getLogger(name) for name in ("asyncio", "absl")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    _ignore_leftovers()
    try:
        try:
            return call(), ""
        except Exception as error:  # whatever its C++ side says
            reason = " ".join(f"{error}".split())
            text = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else ""
            failure = text or _cut(reason) or type(error).__name__
        gc.collect()  # the error and its frames are gone by now
        time.sleep(0.1)  # most threads have ended then
        return None, failure
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


_LEFTOVERS = re.compile(r"Event loop is closed|coroutine 'async_serialize.*' was never awaited")


def _ignore_leftovers() -> None:
    """Lets no more be heard of such tasks, as long as this process lives."""
    warnings.filterwarnings("ignore", _LEFTOVERS.pattern, RuntimeWarning)
    hook = sys.unraisablehook
    if getattr(hook, "ignores_leftovers", False):
        return

    def ignore(raised: Any) -> None:
        if not _LEFTOVERS.search(str(raised.exc_value)):
            hook(raised)

    ignore.ignores_leftovers = True  # type: ignore[attr-defined]
    sys.unraisablehook = ignore


def _cut(reason: str) -> str:
    """Returns the beginning and the end of a long text: the end has the system's own words."""
    return reason if len(reason) < 300 else f"{reason[:100]} ... {reason[-150:]}"
