"""The compiled computations of a single run: chunks of training steps, and the evaluation."""

import time
from collections.abc import Callable, Container, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.data.augment import Augment, make_normalize
from jaxcnn.data.dataset import Dataset
from jaxcnn.devices.mesh import Placement
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.train import steps
from jaxcnn.train.evaluate import EVAL_BATCH_SIZE, eval_batches
from jaxcnn.train.feed import Feed
from jaxcnn.train.loop import HostMetrics, Piece
from jaxcnn.train.losses import Loss
from jaxcnn.train.setup import make_recipe_step
from jaxcnn.train.state import TrainState
from jaxcnn.train.step_log import NO_LOG, StepLog


class RunProgram:
    """What one run computes, see `jaxcnn.train.loop.Program`."""

    def __init__(
        self,
        recipe: Recipe,
        dataset: Dataset,
        model: nn.Module,
        tx: optax.GradientTransformation,
        feed: Feed,
        placement: Placement,
        *,
        augment: Augment | None = None,
        loss: Loss | None = None,
        log: StepLog = NO_LOG,
        single: bool = False,
    ) -> None:
        """Defines the computations; `compile` compiles them.

        Args:
            recipe: the hyperparameters.
            dataset: whose test split is evaluated.
            model: the network, as it is placed on the devices.
            tx: the optimizer.
            feed: of the training split.
            placement: of all arrays on the devices.
            augment: another augmentation than the recipe's.
            loss: a user-defined one, of training and evaluation.
            log: what else is measured in a step.
            single: compile a program of one step, rather than of a chunk of steps.
        """
        self._feed = feed
        self._log = log
        self._single = single
        self._placement = placement
        self._image_shape = dataset.image_shape
        self._train_step = make_recipe_step(recipe, model, tx, augment=augment, loss=loss, log=log)
        normalize = make_normalize(recipe.mean, recipe.std)
        self._eval_step = steps.make_eval_step(model, normalize=normalize, loss=loss)
        self._test = dataset.test
        self._train_chunks: dict[tuple[int, ...], Any] = {}
        self._eval_chunk: Any = None
        self._test_batches: Any = None

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimizer steps in an epoch."""
        return self._feed.plan.steps

    def compile(self, state: TrainState) -> float:
        """Compiles everything ahead of the first step.

        Args:
            state: of the form that is trained, on the devices.

        Returns:
            The time that it has taken, in seconds.
        """
        began = time.perf_counter()
        self._train_chunks = compile_train_chunks(
            self._train_step,
            state,
            self._feed.plan.shapes,
            self._image_shape,
            self._placement,
            steps.make_train_single if self._single else steps.make_train_chunk,
            self._log,
        )
        self._test_batches = eval_batches(self._test, EVAL_BATCH_SIZE, self._placement)
        eval_chunk = steps.make_eval_chunk(self._eval_step, self._placement.replicated)
        self._eval_chunk = eval_chunk.lower(state.eval_variables, self._test_batches).compile()
        return time.perf_counter() - began

    def zero_sums(self) -> steps.Metrics:
        """Returns the training metrics of zero steps, on the devices."""
        return self._placement.replicate(steps.zero_train_metrics(self._log.metrics))

    def place(self, tree: Any) -> Any:
        """Returns a pytree with its arrays on every device."""
        return self._placement.replicate(tree)

    def fetch(self, tree: Any) -> Any:
        """Returns a pytree with the arrays of one device."""
        return self._placement.fetch(tree)

    def to_host(self, sums: steps.Metrics) -> HostMetrics:
        """Waits for metrics and returns them as NumPy arrays."""
        return jax.device_get(sums)

    def epoch(
        self, state: TrainState, sums: steps.Metrics, epoch: int, first: int, cuts: Container[int]
    ) -> Iterator[Piece]:
        """Trains an epoch chunk by chunk, see `jaxcnn.train.loop.Program.epoch`."""
        before = (epoch - 1) * self.steps_per_epoch + first
        for chunk in self._feed.epoch(epoch, first, cuts):
            program = self._train_chunks[chunk.batches["label"].shape]
            empty = self._log.empty(len(chunk.batches["label"]))
            rows = [self._placement.replicate(one) for one in empty]
            # Either the number of each step, or once the number of steps.
            for number in range(chunk.count) if self._single else (chunk.count,):
                state, sums, *rows = program(state, chunk.batches, np.int32(number), sums, *rows)
            after = before + chunk.count
            logged = self._log.rows(rows[0], before, after) if rows else None
            yield Piece(state, sums, chunk.count, chunk.count * chunk.batch_size, logged)
            before = after

    def evaluate(self, state: TrainState) -> HostMetrics:
        """Returns the metrics of the whole test split."""
        return jax.device_get(self._eval_chunk(state.eval_variables, self._test_batches))


def compile_train_chunks(
    train_step: steps.TrainStep,
    state: TrainState,
    shapes: list[tuple[int, int]],
    image_shape: tuple[int, ...],
    placement: Placement,
    make: Callable[..., jax.stages.Wrapped] = steps.make_train_chunk,
    log: StepLog = NO_LOG,
) -> dict[tuple[int, ...], Any]:
    """Compiles a program of training steps for every shape of chunk.

    Args:
        train_step: what the programs repeat.
        state: of the form that is trained, on the devices.
        shapes: (K, B) of the chunks, K batches of B images.
        image_shape: (H, W, C).
        placement: of the arrays on the devices.
        make: `jaxcnn.train.steps.make_train_chunk`, or `make_train_single` for one step.
        log: that the step was made with.

    Returns:
        For each shape the compiled program of `make`.
    """
    train = make(train_step, placement.replicated, log)
    programs: dict[tuple[int, ...], Any] = {}
    for shape in shapes:
        sharding = placement.batches(shape[1])
        batches = {
            "image": jax.ShapeDtypeStruct((*shape, *image_shape), jnp.uint8, sharding=sharding),
            "label": jax.ShapeDtypeStruct(shape, jnp.int32, sharding=sharding),
        }
        sums = placement.replicate(steps.zero_train_metrics(log.metrics))
        rows = map(placement.replicate, log.empty(shape[0]))
        programs[shape] = train.lower(state, batches, np.int32(0), sums, *rows).compile()
    return programs
