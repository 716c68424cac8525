"""One member of an ensemble: its computations, as functions of arrays."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import optax

from jaxcnn.data.augment import make_normalize
from jaxcnn.devices.mesh import Placement
from jaxcnn.errors import UserError
from jaxcnn.optim.factory import make_optimizer
from jaxcnn.optim.schedules import make_schedule
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.train import steps
from jaxcnn.train.feed import permutation
from jaxcnn.train.losses import Loss
from jaxcnn.train.setup import check_optimizer, make_recipe_step, optimizer_key, split_key
from jaxcnn.train.state import TrainState, init_state
from jaxcnn.train.step_log import NO_LOG, StepLog


@dataclass(frozen=True)
class Member:
    """The computations of one member, as functions of arrays that can be mapped over members.

    Attributes:
        recipe: that all members share.
        image_shape: (H, W, C).
        size: number of training images.
        model: the network, as it is placed on the devices.
        tx: the optimizer, what makes it from hyperparameters, or None for the recipe's.
        placement: of the arrays on the devices.
        loss: a user-defined one, of training and evaluation, or None for cross entropy.
        log: what else is measured in a step, without the learning rate.
    """

    recipe: Recipe
    image_shape: tuple[int, ...]
    size: int
    model: nn.Module
    tx: Any
    placement: Placement
    loss: Loss | None = None
    log: StepLog = NO_LOG

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch."""
        return -(-self.size // self.recipe.batch_size)

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps of the whole run."""
        return self.recipe.epochs * self.steps_per_epoch

    def make_tx(self, init_key: jax.Array, values: Any) -> optax.GradientTransformation:
        """Returns the optimizer.

        Args:
            init_key: PRNG key[], the run's first one.
            values: float32[] by name, the member's hyperparameters.
        """
        if self.tx is None:
            return make_optimizer(
                self.recipe,
                self.total_steps,
                key=optimizer_key(init_key),
                hyperparameters=values,
            )
        return self.tx if hasattr(self.tx, "update") else self.tx(values)

    def init(self, seed: jax.Array, values: Any) -> TrainState:
        """Returns the initial state.

        Args:
            seed: uint32[].
            values: float32[] by name, the member's hyperparameters.

        Raises:
            UserError: the optimizer cannot be used, or does not take a hyperparameter.
        """
        init_key, _ = split_key(seed)
        tx = self.make_tx(init_key, values)
        check_optimizer(tx, self.model, self.image_shape)
        start = init_state(init_key, self.model, tx, self.image_shape)
        if self.tx is None or not hasattr(self.tx, "update") or not values:
            return start
        lacking = [n for n in values if not optax.tree.get_all_with_path(start.opt_state, n)]
        if lacking:
            raise UserError(
                f"the optimizer does not keep {', '.join(lacking)} in its state: make it with "
                "optax.inject_hyperparams"
            )
        return start.replace(opt_state=optax.tree.set(start.opt_state, **values))

    def train_full(
        self, state: Any, records: Any, seed: Any, values: Any, epoch: Any, bounds: Any, data: Any
    ) -> tuple[TrainState, list[Any]]:
        """Takes the steps [first, last) of an epoch, whose batches are full.

        Args:
            state: `TrainState`.
            records: [metrics of the epoch until then, *rows of the piece], see `StepLog.empty`.
            seed: uint32[].
            values: float32[] by name, the member's hyperparameters.
            epoch: int32[], counted from 1.
            bounds: (first, last), int32[] each.
            data: (uint8[N, H, W, C], int32[N]), all training images and labels.

        Returns:
            State and records after the steps.
        """
        step = self._step(seed, values, epoch, bounds, data, self.recipe.batch_size)
        first, last = bounds
        state, *records = jax.lax.fori_loop(first, last, step, (state, *records))
        return state, records

    def train_rest(
        self, state: Any, records: Any, seed: Any, values: Any, epoch: Any, bounds: Any, data: Any
    ) -> tuple[TrainState, list[Any]]:
        """Takes the last step of an epoch, whose batch is smaller; see `train_full`."""
        full, left = divmod(self.size, self.recipe.batch_size)
        step = self._step(seed, values, epoch, bounds, data, left)
        state, *records = step(full, (state, *records))
        return state, records

    def evaluate(self, state: TrainState, batches: Any) -> steps.Metrics:
        """Returns the metrics of a split.

        Args:
            state: of the member.
            batches: see `jaxcnn.train.evaluate.eval_batches`.
        """
        normalize = make_normalize(self.recipe.mean, self.recipe.std)
        eval_step = steps.make_eval_step(self.model, normalize=normalize, loss=self.loss)
        metrics: steps.Metrics = steps.make_eval_chunk(eval_step)(state.eval_variables, batches)
        return metrics

    def _step(
        self, seed: Any, values: Any, epoch: Any, bounds: Any, data: Any, count: int
    ) -> Callable[[Any, Any], Any]:
        """Returns the step at a position of an epoch, (position, carry) -> carry.

        Args:
            seed: uint32[].
            values: float32[] by name, the member's hyperparameters.
            epoch: int32[], counted from 1.
            bounds: of the piece of the epoch, see `train_full`.
            data: (uint8[N, H, W, C], int32[N]), all training images and labels.
            count: number of images of the batch.
        """
        images, labels = data
        init_key, order_key = split_key(seed)
        tx = self.make_tx(init_key, values)
        log = self._with_rates(values)
        train_step = make_recipe_step(self.recipe, self.model, tx, loss=self.loss, log=log)
        order = permutation(order_key, epoch, self.size)
        begun = (epoch - 1) * self.steps_per_epoch

        def step(position: Any, carry: Any) -> Any:
            state, *records = carry
            if log.every:
                # The same number, which no longer differs by member: else `vmap` makes a select of
                # the log's branch, and every step has its norms computed.
                state = state.replace(step=begun + position)
            start = position * self.recipe.batch_size
            indices = jax.lax.dynamic_slice_in_dim(order, start, count)
            indices = self.placement.shard_batch(indices)
            batch = {"image": images[indices], "label": labels[indices]}
            return steps.take_step(train_step, log, batch, begun + bounds[0], state, *records)

        return step

    def _with_rates(self, values: Any) -> StepLog:
        """Returns the log with the member's learning rate by step, where it is known."""
        if not self.log.every or self.tx is not None:
            return self.log
        rate = values.get("learning_rate")
        schedule = make_schedule(self.recipe, self.total_steps, learning_rate=rate)
        return dataclasses.replace(self.log, schedule=schedule)
