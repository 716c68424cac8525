"""Workdirs of untrained runs: checkpoints with known weights and a history."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.data.dataset import Dataset
from jaxcnn.networks import pytorch
from jaxcnn.optim.factory import make_optimizer
from jaxcnn.recipes import named
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.storage import checkpoint
from jaxcnn.storage.store import open_store
from jaxcnn.train import steps
from jaxcnn.train.identity import identity
from jaxcnn.train.result import EpochRecord, versions
from jaxcnn.train.run_monitor import checkpoint_tree
from jaxcnn.train.setup import make_model
from jaxcnn.train.state import TrainState, init_state
from tests import original
from tests.stripes import striped_split

EPOCHS = (7, 14, 21)  # the last step of each
STEPS, LAST = EPOCHS[0], EPOCHS[-1]
ACCURACIES = (0.5, 0.7, 0.6)  # after each epoch; the second is the best


def recipe(network: Any, **changes: Any) -> Recipe:
    """The network's recipe with an optimizer whose state is small."""
    changes = {"epochs": 3, "batch_size": 50, "optimizer": "sgd"} | changes
    return named.recipe(network, "fast").replace(**changes)


def save(
    folder: Path,
    dataset: Dataset,
    *,
    saves: Sequence[int] = (LAST,),
    run: Mapping[str, Any] = {},
    **changes: Any,
) -> Path:
    """Saves a run.

    Args:
        folder: its workdir.
        dataset: the data set that it appears to have been trained on.
        saves: the steps of the checkpoints.
        run: changes of the run's identity.
        **changes: of the recipe's fields.

    Returns:
        The workdir.
    """
    used = recipe(dataset.name.removeprefix("synthetic-"), **changes)
    requested = identity(used, dataset, model=make_model(used))
    policy = checkpoint.Policy(folder / "checkpoints", keep=len(saves))
    blank = _blank(used)
    with open_store(policy, {**requested, **run}) as store:
        for step in saves:
            variables = pytorch.load_state_dict(weights(used.network, step))
            train_state = blank.replace(**variables, step=np.int32(step))
            score = ACCURACIES[step // STEPS - 1] if step % STEPS == 0 else None
            tree = checkpoint_tree(train_state, steps.zero_train_metrics())
            store.save(step, tree, _progress(step, len(dataset.test)), score)
    return folder


def weights(network: str, step: int = LAST) -> dict[str, np.ndarray]:
    """The state dict of a checkpoint, which differs from step to step."""
    made = original.weights(network)
    return {**made, "fc2.weight": made["fc2.weight"] * np.float32(step / LAST)}


def images(network: Any, count: int) -> np.ndarray:
    """Images of the network's shape."""
    return striped_split(named.recipe(network, "fast").image_shape, count, seed=2).images


def exact_logits(recipe: Recipe, variables: Any, images: np.ndarray) -> np.ndarray:
    """The logits in float64, whose rounding errors are a billion times smaller than in float32."""
    with jax.enable_x64(True):
        model = make_model(recipe).clone(dtype=jnp.float64)
        exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        normalized = (images / 255.0 - recipe.mean) / recipe.std
        return np.asarray(jax.jit(model.apply)(exact, normalized), np.float64)


def _blank(recipe: Recipe) -> TrainState:
    """A state without weights, ones in the optimizer's; compiling a real one takes seconds."""
    key = jax.random.key(0, impl="threefry2x32")
    init = functools.partial(
        init_state,
        model=make_model(recipe),
        tx=make_optimizer(recipe, LAST, key=key),
        input_shape=recipe.image_shape,
    )
    shapes = jax.eval_shape(init, key).replace(key=None)
    ones = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    return ones.replace(key=key)


def _progress(step: int, total: int) -> dict[str, Any]:
    history = [
        EpochRecord(
            epoch=epoch,
            step=EPOCHS[epoch - 1],
            learning_rate=0.1 / epoch,
            train_loss=2.5 / epoch,
            train_accuracy=ACCURACIES[epoch - 1] - 0.1,
            test_loss=2.0 / epoch,
            test_accuracy=ACCURACIES[epoch - 1],
            seconds=11.5,
            images_per_second=1234.5,
        ).asdict()
        for epoch in range(1, step // STEPS + 1)
    ]
    return {
        "history": history,
        "test_correct": round(history[-1]["test_accuracy"] * total) if history else 0,
        "test_total": total,
        "train_seconds": 34.5,
        "eval_seconds": 120.0,
        "compile_seconds": 2.0,
        "epoch_seconds": 0.0,
        "ended": False,
        "versions": versions(),
        "device": "cpu (of a test)",
    }
