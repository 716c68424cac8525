"""Several processes of one run: how they find each other, share values, and stop together.

All of them run the same program with the same flags. Process 0 prints, reads checkpoints and writes
files. Without `join` there is one process, and each function here is a plain call or does nothing.

Values are shared by collectives. On CPU these wait for a process that is late for half an hour,
which XLA_FLAGS=--xla_cpu_collective_timeout_seconds=N changes; on GPU as long as it is alive.
"""

import contextlib
import functools
import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn.devices.keys import unwrap_key, wrap_key
from jaxcnn.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")

LOST = (
    "another process of this run is gone or out of reach: start all of them again with the same "
    "flags, and they resume from what was saved last"
)
_HELP = (
    "check that all were started with the same flags and that --coordinator is an address of "
    "process 0 that all can reach"
)
# Seconds of waiting for the others to start before a notice is printed; jax aborts much later.
_PATIENCE = 10
# Seconds without a sign of life after which a process counts as dead.
_HEARTBEAT = 30
# How jax's errors begin that have nothing to do with other processes.
_OWN_FAULT = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")


def join(processes: str, coordinator: str, process_id: int) -> None:
    """Makes this process one of several; to be called before jax computes anything.

    Args:
        processes: their number, "1" for this one alone; "auto" takes all arguments from the cluster
            that jax recognizes: SLURM, Open MPI, Kubernetes, TPU pods.
        coordinator: address of process 0, "host:port".
        process_id: the number of this process, counted from 0; -1 if not given.

    Raises:
        UserError: the values contradict each other, or jax cannot connect the processes.
    """
    options: dict[str, Any] = {}
    if processes != "auto":
        if not re.fullmatch(r"[1-9][0-9]{0,5}", processes):
            raise UserError(f"--processes takes a number from 1, or auto, got {processes!r}")
        if (number := int(processes)) == 1 and not coordinator and process_id == -1:
            return
        address = re.fullmatch(r".+:([0-9]{1,5})", coordinator)
        # jax would wait for an impossible port until the time to start is over.
        possible = address is not None and 0 < int(address[1]) < 2**16
        if not (possible and 0 <= process_id < number):
            raise UserError(
                f"--processes {number} takes --coordinator HOST:PORT, where process 0 listens, and "
                f"--process-id from 0 to {number - 1}, got {coordinator!r} and {process_id}; or "
                "give --processes auto where jax recognizes the cluster"
            )
        options = {
            "coordinator_address": coordinator,
            "num_processes": number,
            "process_id": process_id,
            "cluster_detection_method": "deactivate",
        }
    elif coordinator or process_id != -1:
        raise UserError("--processes auto finds --coordinator and --process-id: leave them out")
    # Its handler would replace Python's of SIGTERM; `any_process` does its work.
    jax.config.update("jax_enable_preemption_service", False)
    line = f"waiting up to five minutes for the other processes of this run: {_HELP}\n"
    notice = threading.Timer(_PATIENCE, lambda: sys.stderr.write(line))
    notice.daemon = True
    notice.start()
    try:
        jax.distributed.initialize(
            **options, heartbeat_timeout_seconds=_HEARTBEAT, shutdown_timeout_seconds=_HEARTBEAT
        )
        jax.devices()  # now that all are here: this waits for a late process two minutes at most
    except ValueError as error:
        raise UserError(
            f"--processes auto: jax recognizes no cluster here ({error}): give --coordinator "
            "HOST:PORT --processes N --process-id K"
        ) from None
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the processes of this run do not find each other ({reason}): {_HELP}"
        ) from None
    finally:
        notice.cancel()


def count() -> int:
    """Returns the number of processes of the run."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_main() -> bool:
    """Returns whether this is process 0, which prints and writes."""
    return count() == 1 or jax.process_index() == 0


def main_only(value: T, otherwise: T) -> T:
    """Returns what this process is to have, without asking the others.

    Args:
        value: in process 0.
        otherwise: in the others.
    """
    return value if is_main() else otherwise


def require_one(reason: str) -> None:
    """Checks that this process is the only one of the run.

    Args:
        reason: why it has to be, and what to do instead.

    Raises:
        UserError: `reason`, where there are several processes.
    """
    if count() > 1:
        raise UserError(reason)


def default_axes(axis: str) -> dict[str, int]:
    """Returns the sizes of a mesh that none was asked for, by axis.

    Several processes share all of their devices along `axis`; one process needs no mesh.
    """
    return {axis: jax.device_count()} if count() > 1 else {}


def gather(value: Any) -> list[Any]:
    """Shares a value of each process with all of them.

    Args:
        value: of types that JSON has.

    Returns:
        The values of all processes, by their numbers.

    Raises:
        UserError: another process is gone.
    """
    if count() == 1:
        return [value]
    content = np.frombuffer(json.dumps(value, default=str).encode(), np.uint8)
    with noticing_losses():
        sizes = multihost_utils.process_allgather(np.int32(content.size))
        rows = multihost_utils.process_allgather(np.pad(content, (0, max(sizes) - content.size)))
    return [json.loads(row[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def broadcast(tree: Any) -> Any:
    """Shares the arrays of process 0 with all processes, bit-identical.

    Args:
        tree: a pytree of arrays and PRNG keys; in the other processes of their shapes and dtypes.

    Raises:
        UserError: another process is gone.
    """
    if count() == 1:
        return tree

    def bits(leaf: Any) -> np.ndarray:
        # Of unsigned integers: the broadcast is a sum, inexact for -0.0, NaN and subnormals.
        plain = unwrap_key(leaf)
        unsigned = f"uint{8 * plain.dtype.itemsize}"
        return np.asarray(plain).view(unsigned) if is_main() else np.zeros(plain.shape, unsigned)

    with noticing_losses():
        received = multihost_utils.broadcast_one_to_all(jax.tree.map(bits, tree))
    return jax.tree.map(
        lambda leaf, array: wrap_key(jnp.asarray(array.view(unwrap_key(leaf).dtype)), leaf),
        tree,
        received,
    )


def on_main(function: Callable[P, Any]) -> Callable[P, Any]:
    """Makes a function run in process 0 alone.

    Args:
        function: returns a value of types that JSON has.

    Returns:
        A function that all processes have to call. It returns the value to all of them, and raises
        what the function raises: the error itself in process 0, a `UserError` in the others.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Any:
        value = _together(lambda: function(*args, **kwargs) if is_main() else None)
        return gather(value)[0]

    return call


def main_first(function: Callable[P, T]) -> Callable[P, T]:
    """Makes a function run in process 0 and then in the others, which find what it has prepared.

    Args:
        function: returns any value.

    Returns:
        A function that all processes have to call. It returns the value that this process computed,
        and raises in all processes what it raises in one, see `on_main`.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if count() == 1:
            return function(*args, **kwargs)
        first = _together(lambda: function(*args, **kwargs) if is_main() else None)
        rest = _together(lambda: None if is_main() else function(*args, **kwargs))
        value: Any = first if is_main() else rest
        return value

    return call


def _together(call: Callable[[], T]) -> T:
    """Calls a function and, once all processes have, raises in all of them an error of one."""
    if count() == 1:
        return call()
    error: Exception | None = None
    text: str | None = None
    try:
        value = call()
    except Exception as raised:
        error, text = raised, str(raised)
        if not isinstance(error, UserError):
            text = f"process {jax.process_index()} failed: {text}"
    texts = gather(text)
    if error is not None:
        raise error
    for failure in filter(None, texts):
        raise UserError(failure)
    return value


def check_same(flags: Mapping[str, Any]) -> None:
    """Checks that all processes were given the same.

    Args:
        flags: values of types that JSON has, by name.

    Raises:
        UserError: they were not.
    """
    main, *others = gather(dict(flags))
    for process, other in enumerate(others, start=1):
        if different := [name for name in main if other.get(name) != main[name]]:
            raise UserError(
                f"process {process} has another {different[0]} than process 0: start all processes "
                "with the same flags"
            )


def any_process(poll: Callable[[], bool]) -> Callable[[], bool]:
    """Makes a poll true in all processes, at the same call, once it is true in one.

    The result lags one call behind, so that no process waits for the reduction.

    Args:
        poll: not called any more once the result is true.
    """
    if count() == 1:
        return poll
    devices = Mesh(np.array(jax.devices()), ("all",))
    one_each = NamedSharding(devices, PartitionSpec("all"))
    reduce = jax.jit(jnp.any, out_shardings=NamedSharding(devices, PartitionSpec()))
    pending: jax.Array | None = None
    result = False

    def any_polled() -> bool:
        nonlocal pending, result
        if not result:
            own = np.full(jax.local_device_count(), poll())
            before = pending
            pending = reduce(jax.make_array_from_process_local_data(one_each, own))
            result = before is not None and bool(before)
        return result

    return any_polled


@contextlib.contextmanager
def noticing_losses() -> Iterator[None]:
    """Reports in one sentence that a computation failed because another process is gone.

    Raises:
        UserError: `LOST`.
    """
    try:
        yield
    # The latter where a failed array is copied to the host.
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        code = re.match(r"[A-Z_]+(?=: )", str(error))
        if count() == 1 or code is None or code[0] in _OWN_FAULT:
            raise
        raise UserError(LOST) from error


def leave(status: int) -> None:
    """Ends one of several processes without waiting for the others; otherwise does nothing."""
    if count() == 1:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if is_main():
        # jax aborts the others when process 0 ends: they have this long to print their own error.
        time.sleep(1)
    os._exit(status)
