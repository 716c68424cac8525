"""The loss of a trained network as a function of its parameters, over many images.

The functions of `jaxcnn.landscape` take any hashable `loss(params, batch) -> float32[]`, and
`batches`: a pytree like `batch` whose leaves have an axis in front, one entry per batch. What they
compute is the mean over these batches, which all have the same number of examples.
"""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.data.augment import make_normalize
from jaxcnn.data.dataset import Split
from jaxcnn.errors import UserError
from jaxcnn.networks.cnn import CNN
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.train import setup

# (params, batch) -> float32[].
Loss: TypeAlias = Callable[[Any, Any], jax.Array]

# Images in one batch: their intermediate values fit the caches of a processor.
BATCH_SIZE = 100


def make_loss(recipe: Recipe, *, model: CNN | None = None, staged: bool = True) -> Loss:
    """Makes the mean cross entropy of a batch, in evaluation mode.

    There is no dropout, no augmentation and no label smoothing, and BatchNorm normalises with the
    running statistics of the batch's entry `batch_stats`, which are constants.

    Args:
        recipe: its network and normalization.
        model: the network, if it is for another data set than the recipe's own.
        staged: on CPU, compute the convolutions in stages, which are several times as fast and can
            be differentiated once only; see `jaxcnn.networks.cnn.CNN`.

    Returns:
        `loss(params, batch) -> float32[]`, in nats. The batch is `{"image": uint8[B, H, W, C],
        "label": int32[B], "batch_stats": pytree}`.
    """
    used = (model or setup.make_model(recipe)).clone(staged=staged)
    normalize = make_normalize(recipe.mean, recipe.std)

    def loss(params: Any, batch: Any) -> jax.Array:
        variables = {"params": params, "batch_stats": batch["batch_stats"]}
        logits: Any = used.apply(variables, normalize(batch["image"]), train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean()

    return loss


def make_batches(split: Split, count: int, batch_stats: Any, *, seed: int = 0) -> Any:
    """Takes random images of a split, without replacement, as batches of `BATCH_SIZE`.

    Args:
        split: to take them from.
        count: number of images, a multiple of `BATCH_SIZE`, at least two batches.
        batch_stats: the network's running statistics, the same for every batch.
        seed: of the choice.

    Returns:
        K batches as `make_loss` takes them, with an axis of K entries in front of every leaf.

    Raises:
        UserError: `count` is no such number, or the split has fewer images.
    """
    size = len(split)
    if size < 2 * BATCH_SIZE:
        raise UserError(
            f"the data set has {size} training images, and the loss around a network is taken over "
            f"{2 * BATCH_SIZE} at least: give --data a larger one"
        )
    if count < 2 * BATCH_SIZE or count % BATCH_SIZE or count > size:
        raise UserError(
            f"the loss cannot be taken over {count} of {size} images: give --images a multiple of "
            f"{BATCH_SIZE}, from {2 * BATCH_SIZE} to {size // BATCH_SIZE * BATCH_SIZE}"
        )
    chosen = np.random.default_rng(seed).permutation(size)[:count].reshape(-1, BATCH_SIZE)
    repeated = jax.tree.map(lambda leaf: np.stack([leaf] * len(chosen)), dict(batch_stats))
    arrays = {
        "image": split.images[chosen],
        "label": split.labels[chosen],
        "batch_stats": repeated,
    }
    return jax.tree.map(jnp.asarray, arrays)


def mean_over(function: Callable[[Any, Any], Any], params: Any, batches: Any) -> Any:
    """Returns the mean of `function(params, batch)` over batches, one after the other.

    Args:
        function: returns a pytree of arrays of floating-point numbers.
        params: its first argument.
        batches: K batches, in front of every leaf.
    """
    count = jax.tree.leaves(batches)[0].shape[0]
    like = jax.eval_shape(function, params, jax.tree.map(lambda leaf: leaf[0], batches))
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)

    def add(sums: Any, batch: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, function(params, batch)), None

    sums, _ = jax.lax.scan(add, zeros, batches)
    return jax.tree.map(lambda leaf: leaf / count, sums)
