"""Evaluation of a network on a whole split."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxcnn.data.augment import make_normalize
from jaxcnn.data.dataset import MAX_CLASSES, Split, validate_split
from jaxcnn.data.views import make_views
from jaxcnn.devices.mesh import ONE_DEVICE, Placement
from jaxcnn.networks.cpu.substitution import fastest
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.train import setup, steps

# Evaluation is fastest on CPU while a batch fits the caches; its result does not depend on this.
EVAL_BATCH_SIZE = 100


def evaluate(
    recipe: Recipe,
    variables: Any,
    split: Split,
    *,
    model: nn.Module | None = None,
    tta: bool = False,
) -> tuple[int, int, float]:
    """Evaluates a network on a whole split.

    Args:
        recipe: that it was trained with.
        variables: its `params`, and `batch_stats` where it has them.
        split: N images with their labels.
        model: the network, if it is not the recipe's or for another data set than that's own.
        tta: test-time augmentation: predictions are averaged over several views of each image, see
            `jaxcnn.data.views`.

    Returns:
        Number of correct predictions, number of images, and the mean cross entropy in nats.

    Raises:
        DataError: the arrays are not those of a split.
    """
    return make_evaluation(recipe, split, model=model, tta=tta)(variables)


def make_evaluation(
    recipe: Recipe, split: Split, *, model: nn.Module | None = None, tta: bool = False
) -> Callable[[Any], tuple[int, int, float]]:
    """Returns `evaluate` as a function of the variables, which compiles once for many networks.

    Args:
        recipe: as for `evaluate`.
        split: as for `evaluate`.
        model: as for `evaluate`.
        tta: as for `evaluate`.

    Raises:
        DataError: the arrays are not those of a split.
    """
    model = model or setup.make_model(recipe)
    split = validate_split(split, "the split", getattr(model, "classes", MAX_CLASSES))
    normalize = make_normalize(recipe.mean, recipe.std)
    views = make_views(recipe.network) if tta else None
    eval_step = steps.make_eval_step(fastest(model), normalize=normalize, views=views)
    eval_steps = steps.make_eval_chunk(eval_step)
    batches = eval_batches(split, EVAL_BATCH_SIZE)

    def evaluation(variables: Any) -> tuple[int, int, float]:
        sums = jax.device_get(eval_steps(variables, batches))
        return int(sums["correct"]), int(sums["count"]), float(sums["loss_sum"] / sums["count"])

    return evaluation


def eval_batches(
    split: Split, batch_size: int, placement: Placement = ONE_DEVICE
) -> dict[str, jax.Array]:
    """Returns a whole split as batches on the devices, the last one padded and masked.

    Args:
        split: N images.
        batch_size: B / D, any number from 1, on each of D devices along "data".
        placement: where the batches go; a process reads what its own devices need.

    Returns:
        `{"image": uint8[K, B, H, W, C], "label": int32[K, B], "mask": bool[K, B]}`, K = N / B
        rounded up.
    """
    batch_size *= placement.size("data")
    positions = np.arange(-(-len(split) // batch_size) * batch_size).reshape(-1, batch_size)
    own = positions[:, placement.rows(batch_size)]
    indices = np.minimum(own, len(split) - 1)
    arrays = {
        "image": split.images[indices],
        "label": split.labels[indices],
        "mask": own < len(split),
    }
    return placement.send(arrays, batch_size)
