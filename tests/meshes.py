"""Runs on eight simulated devices and on one, for `tests/devices/test_mesh.py`.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.meshes FOLDER small|networks
"""

import collections
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from jaxcnn.data.dataset import Dataset
from jaxcnn.devices.mesh import AxisName, Placement, describe_mesh, make_mesh
from jaxcnn.errors import StoppedError
from jaxcnn.networks.cpu import pooling
from jaxcnn.optim.factory import make_optimizer
from jaxcnn.recipes import named
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.storage import checkpoint
from jaxcnn.train import ensemble
from jaxcnn.train.fit import fit
from jaxcnn.train.members import grid
from jaxcnn.train.result import Result
from jaxcnn.train.run_program import compile_train_chunks
from jaxcnn.train.setup import make_model, make_recipe_step, split_key
from jaxcnn.train.state import init_state
from tests import conformance
from tests.linear import Linear
from tests.stripes import striped_split

# By what is asked for: recipes whose collectives are counted; the last one is trained with too.
RECIPES = {
    "small": [conformance.RECIPE.replace(optimizer="sgd", epochs=2, batch_size=16)],
    "networks": [
        named.recipe("mnist", "fast").replace(epochs=2, batch_size=32),
        # At its learning rate rounding errors grow slowly.
        named.recipe("cifar10", "reference").replace(epochs=2, batch_size=16),
    ],
}


class PooledCNN(nn.Module):
    """A network with all that may depend on where a batch lies, quick to compile."""

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(4, (3, 3), strides=2)(images)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        x = pooling.max_pool(x)
        x = nn.Dropout(0.1)(x.reshape(x.shape[0], -1), deterministic=not train)
        return nn.Dense(10)(x)


def dataset(recipe: Recipe) -> Dataset:
    """The last batch of an epoch has 12 images, which do not divide over 8 devices."""
    shape = recipe.image_shape
    train, test = striped_split(shape, 4 * recipe.batch_size + 12, 0), striped_split(shape, 70, 1)
    return Dataset(recipe.network, "tiny", train, test, tuple("0123456789"))


def distance(tree: Any, other: Any) -> float:
    """The Euclidean distance of two trees."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return sum(float(((np.asarray(a) - np.asarray(b)) ** 2).sum()) for a, b in pairs) ** 0.5


def collectives(recipe: Recipe, model: nn.Module | None, mesh: jax.sharding.Mesh) -> dict[str, int]:
    """Counts what moves between devices in the program of an epoch's steps."""
    placement = Placement(mesh)
    model = placement.model(make_model(recipe) if model is None else model)
    tx = make_optimizer(recipe, 10)
    start = init_state(jax.random.key(0), model, tx, recipe.image_shape)
    programs = compile_train_chunks(
        make_recipe_step(recipe, model, tx),
        placement.replicate(start),
        [(4, recipe.batch_size)],
        recipe.image_shape,
        placement,
    )
    (text,) = (program.as_text() for program in programs.values())
    names = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    return dict(collections.Counter(re.findall(rf" ({names})(?:-start)?\(", text)))


def one_run(
    recipe: Recipe, model: nn.Module | None, mesh: jax.sharding.Mesh, folder: Path
) -> dict[str, Any]:
    """A run on one device, on eight, and one that goes from eight to one."""
    data = dataset(recipe)
    policy = checkpoint.Policy(folder / recipe.network, checkpoint.Every(0))
    asked = iter([False, False, True])
    on_eight: dict[str, Any] = {"model": model, "mesh": mesh}
    try:
        fit(recipe, data, checkpoints=policy, interrupted=lambda: next(asked, True), **on_eight)
        stopped = False
    except StoppedError:
        stopped = True
    runs = {
        "one": fit(recipe, data, model=model),
        "eight": fit(recipe, data, **on_eight),
        "streamed": fit(recipe, data, feed="stream", **on_eight),
        "resumed": fit(recipe, data, model=model, checkpoints=policy),
    }
    one, eight = runs["one"], runs["eight"]
    network = make_model(recipe) if model is None else model
    init_key, _ = split_key(0)
    tx = make_optimizer(recipe, 10)
    start = init_state(init_key, network, tx, recipe.image_shape)

    def gap(run: Result, part: str) -> float:
        """How far a run ends from that on one device, as a share of how far that has moved."""
        first, last, other = (getattr(each, part) for each in (start, one.state, run.state))
        return distance(other, last) / distance(first, last)

    return {
        "stopped": stopped,
        **{
            f"{name} {part}": gap(run, part)
            for name, run in runs.items()
            for part in ("params", "batch_stats")
        },
        "feeds": distance(eight.state.params, runs["streamed"].state.params),
        "losses": {name: run.history[-1].train_loss for name, run in runs.items()},
        "totals": [run.test_total for run in runs.values()],
        "dtypes": sorted({str(leaf.dtype) for leaf in jax.tree.leaves(one.state.params)}),
    }


def ensembles(model: nn.Module, meshes: list[dict[AxisName, int]]) -> dict[str, Any]:
    """An ensemble on one device and on meshes; its six members do not divide over four devices."""
    recipe = conformance.RECIPE.replace(optimizer="sgd", epochs=1)
    members = grid([0, 1, 2], learning_rate=[0.02, 0.05])
    options = {"model": model, "keep_states": True}
    one = ensemble.fit_many(recipe, conformance.dataset(), members, **options)
    distances = {}
    for axes in meshes:
        mesh = make_mesh(axes)
        other = ensemble.fit_many(recipe, conformance.dataset(), members, mesh=mesh, **options)
        assert (other.total, other.diverged_at.tolist()) == (64, [0] * 6)
        distances[describe_mesh(mesh)] = distance(one.states.params, other.states.params)
    return distances


def main(folder: str, which: str) -> None:
    """Writes what it has found."""
    model, alone, meshes = None, conformance.SmallCNN(), [{"ensemble": 4}]
    if which == "small":
        model, alone = PooledCNN(), Linear()
    else:
        meshes.append({"ensemble": 4, "data": 2})
    mesh = make_mesh({"data": 8})
    outcome = {
        "run": one_run(RECIPES[which][-1], model, mesh, Path(folder)),
        "ensembles": ensembles(alone, meshes),
    }
    # What moves is settled before the expensive part of compiling, which what runs above has.
    jax.config.update("jax_disable_most_optimizations", True)
    outcome["collectives"] = [collectives(recipe, model, mesh) for recipe in RECIPES[which]]
    sys.stdout.write(json.dumps(outcome))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    warnings.filterwarnings("ignore", message=".*is deprecated")
    main(*sys.argv[1:])
