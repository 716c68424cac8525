"""The log of training steps: what is measured in a step, and the rows that a chunk of them returns.

All of it is computed in the program of the steps; the host fetches the rows of a whole chunk.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.errors import UserError


@dataclass(frozen=True)
class StepValues:
    """What a metric of a training step is computed from.

    Attributes:
        loss: float32[], what the step minimizes: the mean of the batch, before the update.
        logits: float32[B, C], in training mode, before the update.
        labels: int32[B].
        grads: of the loss, as the optimizer is given them.
        updates: what the optimizer adds to the parameters.
        params: before the update.
        opt_state: of the optimizer, after the update.
    """

    loss: jax.Array
    logits: jax.Array
    labels: jax.Array
    grads: Any
    updates: Any
    params: Any
    opt_state: Any


# float32[] of each step.
Metric = Callable[[StepValues], jax.Array]

# What a row has beside the user-defined metrics, in this order.
COLUMNS = ("loss", "learning_rate", "grad_norm", "update_norm", "param_norm")
_TAKEN = {*COLUMNS, *"epoch step seconds images_per_second metrics".split()}
_TAKEN |= set("train_loss train_accuracy test_loss test_accuracy".split())


@dataclass(frozen=True)
class StepLog:
    """What is measured in the training steps of a run.

    Attributes:
        metrics: user-defined, by name; computed in every step.
        every: number of steps between two rows; 0 for no rows.
        schedule: the learning rate by step, counted from 0; None if it is not known.

    Raises:
        UserError: a name or the number of steps cannot be used.
    """

    metrics: Mapping[str, Metric] = field(default_factory=dict)
    every: int = 0
    schedule: optax.Schedule | None = None

    def __post_init__(self) -> None:
        for name in self.metrics:
            if not (isinstance(name, str) and name.isprintable() and 0 < len(name) <= 100):
                raise UserError(f"a metric is named {name!r}: give it a name of 1 to 100 letters")
            if name in _TAKEN:
                raise UserError(f"a metric is named {name}, as a record's own value: rename it")
        whole = isinstance(self.every, int) and not isinstance(self.every, bool)
        if not whole or not 0 <= self.every <= 10**9:
            raise UserError(
                f"log_every takes a whole number of steps, 0 for no log, got {self.every!r}"
            )

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the values in a row."""
        return (*COLUMNS, *self.metrics)

    def measure(self, values: StepValues, step: jax.Array) -> dict[str, Any]:
        """Returns what a step adds to its metrics: nothing where there is nothing to measure.

        Args:
            values: of the step.
            step: int32[], counted from 1.

        Returns:
            "metrics", float32[] by name, if there are user-defined ones; "row", float32[C] in the
            order of `columns`, if there are rows; its norms are zero in steps that get none.

        Raises:
            UserError: a metric is not one number.
        """
        measured: dict[str, Any] = {}
        if self.metrics:
            measured["metrics"] = {
                name: _number(name, metric(values)) for name, metric in self.metrics.items()
            }
        if self.every:
            rate = jnp.nan if self.schedule is None else self.schedule(step - 1)
            trees = values.grads, values.updates, values.params
            scalars = [values.loss, rate, *self._norms(trees, step)]
            scalars += measured.get("metrics", {}).values()
            measured["row"] = jnp.stack([jnp.asarray(one, jnp.float32) for one in scalars])
        return measured

    def _norms(self, trees: tuple[Any, ...], step: jax.Array) -> list[jax.Array]:
        """Returns the norm of each pytree, in steps that get a row."""

        def norms() -> list[jax.Array]:
            return [optax.tree.norm(tree) for tree in trees]

        if self.every == 1:
            return norms()
        # On CPU these sums take up to a tenth of the time of a step.
        zeros = [jnp.zeros((), jnp.float32)] * len(trees)
        return jax.lax.cond(step % self.every == 0, norms, lambda: zeros)

    def empty(self, size: int) -> list[jax.Array]:
        """Returns the rows of a chunk before its first step, [float32[R, C]]; [] without a log.

        Args:
            size: number of steps that the chunk has at most.
        """
        if not self.every:
            return []
        # One more than is needed: steps after the last logged one write there.
        return [jnp.zeros((size // self.every + 2, len(self.columns)), jnp.float32)]

    def write(self, rows: jax.Array, row: jax.Array, step: jax.Array, first: jax.Array) -> Any:
        """Returns the rows with that of a step.

        Every step writes into the place of the next row, where the step to be logged comes last.

        Args:
            rows: float32[R, C].
            row: float32[C].
            step: int32[], counted from 1.
            first: int32[], number of steps before the chunk.
        """
        place = (step - 1) // self.every - first // self.every
        return jax.lax.dynamic_update_index_in_dim(rows, row, place, 0)

    def rows(self, values: jax.Array, before: int, after: int) -> "Rows":
        """Returns the rows of a chunk with the numbers of their steps.

        Args:
            values: float32[R, C], as the chunk returned them, or float32[E, R, C].
            before: number of steps before the chunk.
            after: number of steps at its end.
        """
        first = before // self.every * self.every + self.every
        return Rows(range(first, after + 1, self.every), values, self.columns)


NO_LOG = StepLog()


@dataclass(frozen=True)
class Rows:
    """The logged steps of a chunk, computed or still being computed by the device.

    Attributes:
        steps: counted from 1.
        values: float32[R, C], at least as many rows as steps; of an ensemble float32[E, R, C].
        columns: the names of the C values.
    """

    steps: range
    values: jax.Array
    columns: tuple[str, ...]

    def records(self) -> list[dict[str, Any]]:
        """Waits for the device and returns a row for each step of a run: "step", and its values.

        A value that is not finite is None, as JSON has no number for it.
        """
        values = np.asarray(self.values)[: len(self.steps)].astype(float)
        finite = np.isfinite(values)
        exact = values if finite.all() else np.where(finite, values, None)  # type: ignore[call-overload]
        return [
            {"step": step, **dict(zip(self.columns, row, strict=True))}
            for step, row in zip(self.steps, exact.tolist(), strict=True)
        ]


def _number(name: str, value: Any) -> jax.Array:
    """Returns the value of a user-defined metric.

    Raises:
        UserError: it is not one number.
    """
    shape = getattr(value, "shape", None)
    if shape != () and not isinstance(value, float):
        found = type(value).__name__ if shape is None else f"an array {list(shape)}"
        raise UserError(f"the metric {name} returns {found}: let it return one number, float32[]")
    return jnp.asarray(value, jnp.float32)
