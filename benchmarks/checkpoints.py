"""What checkpoints cost: seconds to save and to restore one, files synced and digests included.

    python benchmarks/checkpoints.py --out benchmarks/results/checkpoints-cpu.json

Ten seconds.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxcnn.devices import environment
from jaxcnn.optim.factory import make_optimizer
from jaxcnn.recipes import named
from jaxcnn.storage import checkpoint
from jaxcnn.storage.store import open_store
from jaxcnn.train import steps
from jaxcnn.train.setup import make_model
from jaxcnn.train.state import init_state


def measure(network: str, rounds: int) -> dict[str, float]:
    """Returns medians in seconds, and the size of a checkpoint in bytes."""
    recipe = named.recipe(network, "fast")
    tx = make_optimizer(recipe, 100)
    model = make_model(recipe)
    tree = {
        "state": init_state(jax.random.key(0), model, tx, recipe.image_shape),
        "sums": steps.zero_train_metrics(),
    }
    generator = np.random.default_rng(0)

    def fill(leaf: jax.Array) -> jax.Array:
        """Noise, which cannot be compressed as the zeros of a fresh optimizer can."""
        noise = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size > 1
        return jnp.asarray(generator.random(leaf.shape), leaf.dtype) if noise else leaf

    tree = jax.tree.map(fill, tree)
    saves, restores = [], []
    with tempfile.TemporaryDirectory() as name:
        policy = checkpoint.Policy(Path(name))
        with open_store(policy, {}) as store:
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


def main() -> None:
    """Measures both networks and writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    content = {
        "networks": {name: measure(name, asked.rounds) for name in ("mnist", "cifar10")},
        "rounds": asked.rounds,
        "versions": environment.versions(),
        "device": environment.device(),
    }
    text = json.dumps(content, indent=2)
    print(text)
    if asked.out:
        asked.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
