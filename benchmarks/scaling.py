"""What a step on several devices computes and sends, from the compiled program, and its time.

    python benchmarks/scaling.py --out FILE.json                       # all devices of the machine
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python benchmarks/scaling.py --out FILE.json

For every network, batch size and number of devices: operations and bytes of one device as XLA
counts them, the bytes of a step's all-reduces, read off the program, and seconds a step of a mesh
of `data`; and images a second of an ensemble on a mesh of `ensemble`. All times are medians of
rounds in turns. Simulated devices share the cores: with them, times say what a mesh costs, and
what it gains only up to as many devices as there are cores. Needs jax, flax, optax and numpy.
"""

import argparse
import json
import math
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.devices import environment
from jaxcnn.devices.mesh import Placement, make_mesh
from jaxcnn.optim.factory import make_optimizer
from jaxcnn.recipes import named
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.storage import compilation
from jaxcnn.train import ensemble, steps
from jaxcnn.train.members import Members
from jaxcnn.train.setup import make_model, make_recipe_step
from jaxcnn.train.state import init_state

_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "f64": 8, "s8": 1, "u8": 1, "pred": 1}
STEPS = 4
# What is known before it runs, and what times a round.
Task = tuple[dict[str, Any], Callable[[], float]]


def recipe_of(network: Any, batch_size: int) -> Recipe:
    """Returns what is trained; pinned, so that the counts do not change with the recipes."""
    augment = {"mnist": "shift", "cifar10": "flip-shift"}[network]
    return named.recipe(network, "fast").replace(
        epochs=3,
        batch_size=batch_size,
        optimizer="sgd",
        dropout=0.2,
        label_smoothing=0.0,
        augment=augment,
    )


def all_reduced(text: str) -> list[int]:
    """Returns the bytes that each all-reduce of a program sums, as its result states them."""
    found = []
    for results in re.findall(r"= (.*?) all-reduce(?:-start)?\(", text):
        shapes = re.findall(r"([a-z]+[0-9]*)\[([0-9,]*)\]", results)
        found.append(
            sum(
                _BYTES[kind] * math.prod(map(int, filter(None, dims.split(","))))
                for kind, dims in shapes
            )
        )
    return found


def step(network: Any, batch_size: int, devices: int) -> Task:
    """A step on a mesh of `data`, in seconds."""
    recipe = recipe_of(network, batch_size)
    placement = Placement(make_mesh({"data": devices}) if devices > 1 else None)
    # Layer by layer on one device too: the same work.
    model = make_model(recipe).clone(staged=False)
    tx = make_optimizer(recipe, 100)
    train_step = make_recipe_step(recipe, model, tx)
    start = placement.replicate(init_state(jax.random.key(0), model, tx, recipe.image_shape))
    rng = np.random.default_rng(0)
    batches = placement.send(
        {
            "image": rng.integers(0, 256, (STEPS, batch_size, *recipe.image_shape), np.uint8),
            "label": rng.integers(0, 10, (STEPS, batch_size), np.int32),
        },
        batch_size,
    )
    sums = placement.replicate(steps.zero_train_metrics())
    many = steps.make_train_chunk(train_step, placement.replicated)
    program = many.lower(start, batches, np.int32(STEPS), sums).compile()
    cost: Any = program.cost_analysis()
    sent = all_reduced(program.as_text())
    row = {
        "network": network,
        "batch_size": batch_size,
        "devices": devices,
        # XLA counts the body of a loop once: one step.
        "operations_a_device": cost["flops"],
        "bytes_a_device": cost["bytes accessed"],
        "all_reduces": len(sent),
        "all_reduced_bytes": sum(sent),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(start.params)),
    }
    held = [start]

    def measure() -> float:
        began = time.perf_counter()
        held[0], _ = jax.block_until_ready(program(held[0], batches, np.int32(STEPS), sums))
        return (time.perf_counter() - began) / STEPS

    return row, measure


def images_per_second(recipe: Recipe, dataset: Dataset, members: Members, **options: Any) -> float:
    """Trains an ensemble for three epochs and times the second and third of every chunk."""
    ends: list[float] = []
    ensemble.fit_many(
        recipe,
        dataset,
        members,
        evaluate_once=True,
        report=lambda images: ends.append(time.perf_counter()),
        **options,
    )
    chunks = np.array(ends).reshape(-1, 3)
    seconds = float(np.sum(chunks[:, 2] - chunks[:, 0]))
    return 2 * len(members) * len(dataset.train) / seconds


def members(network: Any, batch_size: int, devices: int, count: int) -> Task:
    """An ensemble on a mesh of `ensemble`, in images a second of all members."""
    recipe = recipe_of(network, batch_size)
    rng = np.random.default_rng(0)

    def split(size: int) -> Split:
        images = rng.integers(0, 256, (size, *recipe.image_shape), np.uint8)
        return Split(images, rng.integers(0, 10, size, np.int32))

    # Long epochs, so that what stands between two of them counts for little.
    dataset = Dataset(network, "random", split(16 * batch_size), split(10), recipe.class_names)
    runs = Members(np.arange(count))
    mesh = make_mesh({"ensemble": devices}) if devices > 1 else None

    def measure() -> float:
        return images_per_second(recipe, dataset, runs, mesh=mesh)

    known = {"network": network, "batch_size": batch_size, "devices": devices, "members": count}
    return known, measure


def in_turns(tasks: list[Task], repeats: int, name: str) -> list[dict[str, Any]]:
    """Runs tasks in turns and returns what is known of each with the median round, and all."""
    seen: list[list[float]] = [[] for _ in tasks]
    for _ in range(repeats + 1):  # the first one warms up
        for values, (_, measure) in zip(seen, tasks, strict=True):
            values.append(measure())
    rows = []
    for values, (known, _) in zip(seen, tasks, strict=True):
        row = {**known, name: statistics.median(values[1:])}
        print(row, flush=True)
        rows.append({**row, "all": values[1:]})
    return rows


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", default=["mnist", "cifar10"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 512])
    parser.add_argument("--devices", nargs="+", type=int, default=None)
    parser.add_argument("--members", type=int, default=8, help="of an ensemble; 0 for none")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    asked = parser.parse_args()
    compilation.enable_cache()
    numbers = asked.devices or [2**n for n in range(jax.device_count().bit_length())]
    content: dict[str, Any] = {
        "rows": [],
        "ensembles": [],
        "simulated": jax.default_backend() == "cpu",
        "device": environment.device(),
        "versions": environment.versions(),
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    for network in asked.networks:
        for batch_size in asked.batch_sizes:
            tasks = [step(network, batch_size, devices) for devices in numbers]
            content["rows"] += in_turns(tasks, asked.repeats, "seconds_a_step")
            # Enough at one size: nothing is sent, whatever the batch.
            if asked.members and batch_size == asked.batch_sizes[0]:
                tasks = [members(network, batch_size, n, asked.members) for n in numbers]
                content["ensembles"] += in_turns(tasks, asked.repeats, "images_per_second")
            asked.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
