"""Seconds to save a checkpoint and to restore it.

    python benchmarks/checkpoints.py --out FILE.json

The state is that of each network's recipe "fast", filled with noise. A save includes the SHA-256 of
the files, the wait until they are on the disk, and reading them back; a restore verifies them. The
median excludes the first round, in which libraries are imported. Takes ten seconds.
"""

import json
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from output import write_json

from jaxcnn.optim.factory import make_optimizer
from jaxcnn.recipes import named
from jaxcnn.storage.checkpoint import Policy
from jaxcnn.storage.store import open_store
from jaxcnn.train import steps
from jaxcnn.train.setup import make_model
from jaxcnn.train.state import init_state


@dataclass(frozen=True)
class Flags:
    """Times checkpoints of both networks."""

    out: Path
    """The JSON file to write."""
    rounds: int = 20
    """Number of checkpoints that are saved and restored."""


def measure(network: str, rounds: int) -> dict[str, float]:
    """Returns seconds to save and to restore, and the size of a checkpoint in bytes.

    Args:
        network: "mnist" or "cifar10".
        rounds: number of checkpoints, at least two.
    """
    recipe = named.recipe(network, "fast")
    tx = make_optimizer(recipe, 100)
    model = make_model(recipe)
    tree = {
        "state": init_state(jax.random.key(0), model, tx, recipe.image_shape),
        "sums": steps.zero_train_metrics(),
    }
    generator = np.random.default_rng(0)

    def fill(leaf: jax.Array) -> jax.Array:
        """Returns noise in place of the zeros of a new optimizer."""
        noise = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size > 1
        return jnp.asarray(generator.random(leaf.shape), leaf.dtype) if noise else leaf

    tree = jax.tree.map(fill, tree)
    saves, restores = [], []
    with tempfile.TemporaryDirectory() as name:
        with open_store(Policy(Path(name)), {}) as store:
            for step in range(rounds):
                began = time.perf_counter()
                folder = store.save(step, tree, {})
                saves.append(time.perf_counter() - began)
                began = time.perf_counter()
                jax.block_until_ready(store.resume(tree))
                restores.append(time.perf_counter() - began)
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return {
        "first_save_seconds": saves[0],
        "save_seconds": statistics.median(saves[1:]),
        "restore_seconds": statistics.median(restores[1:]),
        "bytes": size,
    }


def main(flags: Flags) -> None:
    """Runs the benchmark."""
    networks = {name: measure(name, flags.rounds) for name in ("mnist", "cifar10")}
    write_json(flags.out, {"networks": networks, "rounds": flags.rounds})
    print(json.dumps(networks, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Flags))
