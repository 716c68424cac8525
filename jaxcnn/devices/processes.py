"""Several processes of one run: how they find each other, agree, and end.

All of them run the same program on the same flags. Process 0 speaks, reads checkpoints and writes
files; the others wait for it. Without `join` there is one process, and all of this does nothing.
"""

import contextlib
import ctypes
import os
import pickle
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn.errors import UserError

T = TypeVar("T")

LOST = (
    "another process of this run is gone or out of reach: start all of them again with the same "
    "flags, and they go on from what was saved last"
)
# Seconds without a sign of life after which a process is taken for dead.
_HEARTBEAT = 30
# Seconds that a process waits for the others to be started.
_START = 300
# Of errors that have nothing to do with other processes.
_OWN_FAULT = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")
# A wait for another process ends with that process; this only has to be longer than any download.
_FOREVER_MS = 7 * 24 * 3600 * 1000

_told = 0
# What C code holds on to and Python must not throw away.
_kept: list[Any] = []


def join(processes: str, coordinator: str, process_id: int) -> None:
    """Makes this process one of several; to be called before jax computes anything.

    Args:
        processes: how many, "1" for this one alone; "auto" takes all that follows from the cluster
            that jax recognises: SLURM, Open MPI, Kubernetes, TPU pods.
        coordinator: address of process 0, "host:port".
        process_id: which one this is, counted from 0; -1 if not given.

    Raises:
        UserError: the values do not go together, or the others are not there in time.
    """
    options: dict[str, Any] = {}
    if processes != "auto":
        if not re.fullmatch(r"[1-9][0-9]{0,5}", processes):
            raise UserError(f"--processes takes a number from 1, or auto, got {processes!r}")
        count, explicit = int(processes), bool(coordinator) or process_id != -1
        if count == 1 and not explicit:
            return
        address = re.fullmatch(r".+:([0-9]{1,5})", coordinator)
        # A port that cannot be would be waited for until the start is given up.
        good = address is not None and 0 < int(address[1]) < 2**16
        if not (good and 0 <= process_id < count):
            raise UserError(
                f"--processes {count} takes --coordinator HOST:PORT, where process 0 listens, and "
                f"--process-id from 0 to {count - 1}, got {coordinator!r} and {process_id}; or "
                "give --processes auto where jax recognises the cluster"
            )
        options = {
            "coordinator_address": coordinator,
            "num_processes": count,
            "process_id": process_id,
            "cluster_detection_method": "deactivate",
        }
    elif coordinator or process_id != -1:
        raise UserError("--processes auto finds --coordinator and --process-id: leave them out")
    _say_so_when_aborted()
    # jax's own default, said here since all depends on it; other devices have collectives anyway.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            **options,
            initialization_timeout=_START,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_HEARTBEAT,
        )
    except ValueError as error:
        raise UserError(
            f"--processes auto: jax recognises no cluster here ({error}): give --coordinator "
            "HOST:PORT --processes N --process-id K"
        ) from None
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"the processes of this run do not find each other ({reason}): look whether all were "
            "started and whether --coordinator is an address of process 0 that all reach"
        ) from None


def count() -> int:
    """Returns how many processes the run has."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def is_main() -> bool:
    """Returns whether this process is the one that speaks and writes."""
    return count() == 1 or jax.process_index() == 0


def from_main(call: Callable[[], T]) -> T:
    """Lets process 0 do something, the others wait, and gives all of them what came of it.

    Raises:
        Exception: what `call` raised in process 0, in all of them.
    """
    if count() == 1:
        return call()
    if is_main():
        outcome = _tried(call)
        _tell("0", outcome)
    else:
        outcome = _hear("0")
    _next()
    return _given(outcome)


def main_first(call: Callable[[], T]) -> T:
    """Lets process 0 do something and then the others, which may find what it has prepared.

    Returns:
        What `call` returned in this process.

    Raises:
        Exception: what `call` raised in one of them, in all of them.
    """
    if count() == 1:
        return call()
    own: list[tuple[bool, Any]] = []

    def first() -> None:
        own.append(_tried(call))
        _given(own[0])

    from_main(first)
    if not own:
        own.append(_tried(call))
    failed, result = own[0]
    for outcome in exchange((failed, result if failed else None)):
        _given(outcome)
    return result


def exchange(value: T) -> list[T]:
    """Lets every process tell something and waits until all have, however far apart they are.

    Returns:
        What each told, by number, in all of them.
    """
    if count() == 1:
        return [value]
    _tell(str(jax.process_index()), value)
    told = [_hear(str(process)) for process in range(count())]
    _next()
    return told


def check_same(flags: Mapping[str, Any]) -> None:
    """Finds out whether all processes were given the same.

    Raises:
        UserError: they were not.
    """
    main = from_main(lambda: dict(flags))

    def compare() -> None:
        different = [name for name in flags if flags[name] != main.get(name)]
        if different:
            raise UserError(
                f"process {jax.process_index()} has another {different[0]} than process 0: start "
                "all processes with the same flags"
            )

    main_first(compare)


class Agreed:
    """Whether one of the processes was asked to stop; all get the same answer at the same step.

    The answer is that to the question before, which is there without waiting.
    """

    def __init__(self, asked: Callable[[], bool]) -> None:
        self._asked = asked
        self._pending: jax.Array | None = None
        self._yes = False
        devices = np.array(jax.devices())
        self._one_each = NamedSharding(Mesh(devices, ("all",)), PartitionSpec("all"))
        everywhere = NamedSharding(self._one_each.mesh, PartitionSpec())
        self._any = jax.jit(jnp.any, out_shardings=everywhere)

    def __call__(self) -> bool:
        """Answers."""
        if count() == 1:
            return self._asked()
        if not self._yes:
            before, own = self._pending, np.array([self._asked()])
            flags = jax.make_array_from_callback(
                (jax.device_count(),), self._one_each, lambda _: own
            )
            self._pending = self._any(flags)
            self._yes = before is not None and bool(before)
        return self._yes


@contextlib.contextmanager
def noticing_losses() -> Iterator[None]:
    """Notices that a computation failed since another process is gone.

    Raises:
        UserError: `LOST`.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if count() == 1 or any(code in str(error) for code in _OWN_FAULT):
            raise
        raise UserError(LOST) from error


def leave(status: int) -> None:
    """Ends one of several processes without waiting for the others; otherwise does nothing."""
    if count() == 1:
        return
    sys.stdout.flush()
    sys.stderr.flush()
    if is_main():
        time.sleep(1)  # the others, which have to do with it, shall say themselves why they end
    os._exit(status)


def _tried(call: Callable[[], Any]) -> tuple[bool, Any]:
    """Returns (False, result) or (True, error)."""
    try:
        return False, call()
    except Exception as error:
        return True, error


def _given(outcome: tuple[bool, Any]) -> Any:
    failed, value = outcome
    if failed:
        raise value
    return value


def _client() -> Any:
    # Not public, and the only way to wait for long: a collective gives up after half a minute.
    from jax._src import distributed

    return distributed.global_state.client


def _tell(who: str, value: Any) -> None:
    try:
        content = pickle.dumps(value)
    except Exception:  # an error of another library's
        content = pickle.dumps((True, UserError(f"process {who} failed: {value[1]}")))
    _client().key_value_set_bytes(f"jaxcnn/{_told}/{who}", content)


def _hear(who: str) -> Any:
    return pickle.loads(
        _client().blocking_key_value_get_bytes(f"jaxcnn/{_told}/{who}", _FOREVER_MS)
    )


def _next() -> None:
    global _told
    _told += 1


def _say_so_when_aborted() -> None:
    """Lets a process that jax aborts end with `LOST` as its last words, and status 1.

    jax does so in a thread of its own once process 0, which watches over all, is gone or has found
    that another one is. Python's own handlers come too late for that.
    """

    def end(_: int) -> None:
        os.write(2, f"{Path(sys.argv[0]).name}: error: {LOST}\n".encode())
        os._exit(1)

    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(end)
    _kept.append(handler)
    ctypes.CDLL(None).signal(int(signal.SIGABRT), handler)
