"""Checkpoints of a run in several processes: process 0 reads and writes them for all."""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxcnn.devices import processes
from jaxcnn.errors import UserError
from jaxcnn.storage.checkpoint import Every, Policy
from jaxcnn.storage.store import CheckpointStore, open_store


class SharedStore:
    """A `CheckpointStore` that process 0 handles for all processes.

    All processes have to call the same methods.

    Attributes:
        every: the interval between two saves.
    """

    def __init__(self, own: list[CheckpointStore], every: Every) -> None:
        """Takes the store of process 0, or an empty list in the others, and how often to save."""
        self._own = own
        self.every = every

    def resume(self, like: Any) -> tuple[Any, dict[str, Any], Path] | None:
        """Restores the newest undamaged checkpoint in all processes.

        Args:
            like: see `CheckpointStore.resume`; its shardings do not matter.

        Returns:
            What `CheckpointStore.resume` returns.
        """
        # Without shardings: process 0 alone cannot put arrays on devices of other processes.
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), like)
        tree = shapes

        @processes.on_main
        def restore() -> tuple[dict[str, Any], str] | None:
            nonlocal tree
            found = self._own[0].resume(shapes)
            if found is None:
                return None
            tree, progress, path = found
            return progress, str(path)

        if (found := restore()) is None:
            return None
        progress, path = found
        return processes.broadcast(tree), progress, Path(path)

    def save(
        self, step: int, tree: Any, progress: Mapping[str, Any], score: float | None = None
    ) -> Path:
        """Saves a checkpoint by process 0 alone.

        Args:
            step: number of optimizer steps taken.
            tree: a pytree of arrays that this process has.
            progress: what else is needed to resume, as JSON values.
            score: higher is better; the best checkpoint is kept.

        Returns:
            The folder of the checkpoint.
        """
        save = processes.on_main(lambda: str(self._own[0].save(step, tree, progress, score)))
        return Path(save())


@contextlib.contextmanager
def open_shared(
    policy: Policy | None, run: Callable[[], Mapping[str, Any]], growing: Collection[str] = ()
) -> Iterator[SharedStore | None]:
    """Opens a run's checkpoints for process 0 alone, see `jaxcnn.storage.store.open_store`.

    Args:
        policy: where they are; None for a run without checkpoints.
        run: returns what identifies the run; only process 0 calls it.
        growing: names of values that may be larger than those of the run to resume.
    """
    if policy is None:
        yield None
        return
    if not isinstance(policy, Policy):
        raise UserError(
            f"checkpoints takes a policy, got {type(policy).__name__}: give "
            "jaxcnn.storage.Policy(folder)"
        )
    with contextlib.ExitStack() as stack:
        own: list[CheckpointStore] = []

        @processes.on_main
        def claim() -> None:
            own.append(stack.enter_context(open_store(policy, run(), growing)))

        claim()
        yield SharedStore(own, policy.every)
