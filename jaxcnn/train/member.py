"""One member of an ensemble: its computations, as functions of arrays."""

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
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.train import steps
from jaxcnn.train.feed import permutation
from jaxcnn.train.losses import Loss
from jaxcnn.train.setup import check_optimizer, make_recipe_step, optimizer_key, split_key
from jaxcnn.train.state import TrainState, init_state


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
    """

    recipe: Recipe
    image_shape: tuple[int, ...]
    size: int
    model: nn.Module
    tx: Any
    placement: Placement
    loss: Loss | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch."""
        return -(-self.size // self.recipe.batch_size)

    def make_tx(self, init_key: jax.Array, values: Any) -> optax.GradientTransformation:
        """Returns the optimizer.

        Args:
            init_key: PRNG key[], the run's first one.
            values: float32[] by name, the member's hyperparameters.
        """
        if self.tx is None:
            return make_optimizer(
                self.recipe,
                self.recipe.epochs * self.steps_per_epoch,
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
        self, state: Any, sums: Any, seed: Any, values: Any, epoch: Any, bounds: Any, data: Any
    ) -> tuple[TrainState, steps.Metrics]:
        """Takes the steps [first, last) of an epoch, whose batches are full.

        Args:
            state: `TrainState`.
            sums: metrics of the epoch until then.
            seed: uint32[].
            values: float32[] by name, the member's hyperparameters.
            epoch: int32[], counted from 1.
            bounds: (first, last), int32[] each.
            data: (uint8[N, H, W, C], int32[N]), all training images and labels.
        """
        step = self._step(seed, values, epoch, data, self.recipe.batch_size)
        first, last = bounds
        return jax.lax.fori_loop(first, last, step, (state, sums))

    def train_rest(
        self, state: Any, sums: Any, seed: Any, values: Any, epoch: Any, bounds: Any, data: Any
    ) -> tuple[TrainState, steps.Metrics]:
        """Takes the last step of an epoch, whose batch is smaller; see `train_full`."""
        full, left = divmod(self.size, self.recipe.batch_size)
        return self._step(seed, values, epoch, data, left)(full, (state, sums))

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
        self, seed: Any, values: Any, epoch: Any, data: Any, count: int
    ) -> Callable[[Any, Any], Any]:
        """Returns the step at a position of an epoch, (position, carry) -> carry.

        Args:
            seed: uint32[].
            values: float32[] by name, the member's hyperparameters.
            epoch: int32[], counted from 1.
            data: (uint8[N, H, W, C], int32[N]), all training images and labels.
            count: number of images of the batch.
        """
        images, labels = data
        init_key, order_key = split_key(seed)
        tx = self.make_tx(init_key, values)
        train_step = make_recipe_step(self.recipe, self.model, tx, loss=self.loss)
        order = permutation(order_key, epoch, self.size)

        def step(position: Any, carry: Any) -> Any:
            state, sums = carry
            start = position * self.recipe.batch_size
            indices = jax.lax.dynamic_slice_in_dim(order, start, count)
            indices = self.placement.shard_batch(indices)
            batch = {"image": images[indices], "label": labels[indices]}
            state, metrics = train_step(state, batch)
            metrics = steps.with_nonfinite_step(metrics, state.step)
            return state, steps.add_metrics(sums, metrics)

        return step
