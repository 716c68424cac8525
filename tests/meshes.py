"""Runs on eight simulated devices and on one, for `tests/test_parallel.py`.

XLA_FLAGS=--xla_force_host_platform_device_count=8 python -m tests.meshes FOLDER
"""

import collections
import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcnn import checkpoint, ensemble, optimizers, parallel, recipes, state, training
from jaxcnn.data import Dataset
from jaxcnn.errors import StoppedError
from tests import conformance
from tests.stripes import striped_split

MNIST = recipes.get("mnist", "fast").replace(epochs=2, batch_size=32)
# At its learning rate rounding errors grow slowly.
CIFAR10 = recipes.get("cifar10", "reference").replace(epochs=2, batch_size=16)


def dataset(recipe: recipes.Recipe) -> Dataset:
    """The last batch of an epoch has 12 pictures, which do not divide over 8 devices."""
    shape = recipe.image_shape
    train, test = striped_split(shape, 4 * recipe.batch_size + 12, 0), striped_split(shape, 70, 1)
    return Dataset(recipe.network, "tiny", train, test, tuple("0123456789"))


def distance(tree: Any, other: Any) -> float:
    """The largest difference of two numbers of trees."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def collectives(recipe: recipes.Recipe, mesh: jax.sharding.Mesh) -> dict[str, int]:
    """Counts what moves between devices in the program of an epoch's steps."""
    placement = parallel.Placement(mesh)
    model = placement.model(training.make_model(recipe))
    tx = optimizers.make_optimizer(recipe, 10)
    start = state.init(jax.random.key(0), model, tx, recipe.image_shape)
    programs = training._compile_train_steps(
        training.make_train_step(recipe, model, tx),
        placement.replicate(start),
        [(4, recipe.batch_size)],
        recipe.image_shape,
        placement,
    )
    (text,) = (program.as_text() for program in programs.values())
    names = "all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
    return dict(collections.Counter(re.findall(rf" ({names})(?:-start)?\(", text)))


def one_run(recipe: recipes.Recipe, folder: Path) -> dict[str, Any]:
    """A run on one device, on eight, and one that goes from eight to one."""
    data, mesh = dataset(recipe), parallel.make_mesh({"data": 8})
    policy = checkpoint.Policy(folder / recipe.network, checkpoint.Every(0))
    asked = iter([False, False, True])
    try:
        training.fit(
            recipe, data, mesh=mesh, checkpoints=policy, interrupted=lambda: next(asked, True)
        )
        stopped = False
    except StoppedError:
        stopped = True
    runs = {
        "one": training.fit(recipe, data),
        "eight": training.fit(recipe, data, mesh=mesh),
        "streamed": training.fit(recipe, data, mesh=mesh, feed="stream"),
        "resumed": training.fit(recipe, data, checkpoints=policy),
    }
    one, eight = runs["one"], runs["eight"]
    return {
        "stopped": stopped,
        **{
            f"{name} {part}": distance(getattr(run.state, part), getattr(one.state, part))
            for name, run in runs.items()
            for part in ("params", "batch_stats")
            if getattr(one.state, part)
        },
        "feeds": distance(eight.state.params, runs["streamed"].state.params),
        "losses": {name: run.history[-1].train_loss for name, run in runs.items()},
        "totals": [run.test_total for run in runs.values()],
    }


def ensembles() -> dict[str, Any]:
    """An ensemble on one device and on meshes; its six members do not divide over four devices."""
    recipe = conformance.RECIPE.replace(optimizer="sgd", epochs=1)
    members = ensemble.grid([0, 1, 2], learning_rate=[0.02, 0.05])
    options = {"model": conformance.SmallCNN(), "keep_states": True}
    one = ensemble.fit(recipe, conformance.dataset(), members, **options)
    distances = {}
    for axes in ({"ensemble": 2}, {"ensemble": 4, "data": 2}):
        mesh = parallel.make_mesh(axes)
        other = ensemble.fit(recipe, conformance.dataset(), members, mesh=mesh, **options)
        assert (other.total, other.diverged_at.tolist()) == (64, [0] * 6)
        distances[parallel.describe(mesh)] = distance(one.states.params, other.states.params)
    return distances


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_compilation_cache_dir", f"{sys.argv[1]}/programs")
    warnings.filterwarnings("ignore", message=".*is deprecated")
    mesh = parallel.make_mesh({"data": 8})
    outcome = {
        "ensembles": ensembles(),
        "collectives": [collectives(recipe, mesh) for recipe in (MNIST, CIFAR10)],
        "cifar10": one_run(CIFAR10, Path(sys.argv[1])),
    }
    sys.stdout.write(json.dumps(outcome))
