"""Checkpoints of a run of several processes: process 0 reads and writes, all share the result."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.devices.keys import as_numbers, as_written
from jaxcnn.devices.processes import from_main
from jaxcnn.storage import checkpoint


class SharedStore:
    """The checkpoints of a run, see `jaxcnn.storage.checkpoint.Store`, handled by process 0.

    Attributes:
        every: how often to save.
    """

    def __init__(self, store: checkpoint.Store | None, every: checkpoint.Every) -> None:
        self._store = store
        self.every = every

    def resume(self, like: Any) -> tuple[Any, dict[str, Any], Path] | None:
        """Restores the newest sound checkpoint, in all processes."""

        def restore() -> tuple[list[np.ndarray], dict[str, Any], Path] | None:
            assert self._store is not None
            found = self._store.resume(like)
            if found is None:
                return None
            leaves = [np.asarray(as_numbers(leaf)) for leaf in jax.tree.leaves(found[0])]
            return leaves, *found[1:]

        found = from_main(restore)
        if found is None:
            return None
        arrays = [
            as_written(jnp.asarray(array), leaf)
            for array, leaf in zip(found[0], jax.tree.leaves(like), strict=True)
        ]
        return jax.tree.unflatten(jax.tree.structure(like), arrays), *found[1:]

    def save(
        self, step: int, tree: Any, progress: Mapping[str, Any], score: float | None = None
    ) -> Path:
        """Saves a checkpoint, once."""

        def save() -> Path:
            assert self._store is not None
            return self._store.save(step, tree, progress, score)

        return from_main(save)


@contextlib.contextmanager
def open_shared(
    policy: checkpoint.Policy | None, run: Callable[[], Mapping[str, Any]]
) -> Iterator[SharedStore | None]:
    """Opens a run's checkpoints for process 0 alone, see `jaxcnn.storage.checkpoint.open_store`.

    Args:
        policy: where they are; None for a run without checkpoints.
        run: returns what the run is; called by process 0 only.
    """
    if policy is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        own: list[checkpoint.Store] = []
        from_main(lambda: own.append(stack.enter_context(checkpoint.open_store(policy, run()))))
        yield SharedStore(own[0] if own else None, policy.every)
