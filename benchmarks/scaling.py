"""Data parallelism: operations, communication and time of a training step on several devices.

    python benchmarks/scaling.py --out FILE.json                       # all devices of the machine
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python benchmarks/scaling.py --out FILE.json

For every network, batch size and number of devices: the operations and bytes of one device as
counted by XLA, the bytes that a step's all-reduces sum (parsed from the compiled program), and the
seconds per step on a mesh of `data`; then images per second of an ensemble on a mesh of
`ensemble`. Times are medians over rounds in which all numbers of devices take turns. Simulated
devices share the cores, so that their times show the cost of a mesh, and its gain only up to the
number of cores. Needs jax, flax, optax and numpy.
"""

import argparse
import math
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from output import write_json

from jaxcnn.data.dataset import Dataset, Split
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
Task = tuple[dict[str, Any], Callable[[], float]]
"""The known part of a row, and a function that measures a round."""


def recipe_of(network: Any, batch_size: int) -> Recipe:
    """Returns a recipe whose fields are fixed, so that the counts do not follow the named ones."""
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
    """Parses a program in HLO and returns the bytes of the result of each all-reduce."""
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
    """Makes the task of a step on a mesh of `data`, measured in seconds."""
    recipe = recipe_of(network, batch_size)
    placement = Placement(make_mesh({"data": devices}) if devices > 1 else None)
    # Layer by layer on a single device too, so that the work is the same.
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
    """Makes the task of an ensemble on a mesh of `ensemble`, in images per second of all."""
    recipe = recipe_of(network, batch_size)
    rng = np.random.default_rng(0)

    def split(size: int) -> Split:
        images = rng.integers(0, 256, (size, *recipe.image_shape), np.uint8)
        return Split(images, rng.integers(0, 10, size, np.int32))

    # Long epochs, so that the time between two of them is negligible.
    dataset = Dataset(network, "random", split(16 * batch_size), split(10), recipe.class_names)
    runs = Members(np.arange(count))
    mesh = make_mesh({"ensemble": devices}) if devices > 1 else None

    def measure() -> float:
        return images_per_second(recipe, dataset, runs, mesh=mesh)

    known = {"network": network, "batch_size": batch_size, "devices": devices, "members": count}
    return known, measure


def in_turns(tasks: list[Task], repeats: int, name: str) -> list[dict[str, Any]]:
    """Measures tasks in turn.

    Args:
        tasks: the tasks.
        repeats: number of timed rounds.
        name: the key of the median in the rows.

    Returns:
        A row for each task, with the median and all measurements.
    """
    measured: list[list[float]] = [[] for _ in tasks]
    for _ in range(repeats + 1):  # the first round warms up
        for values, (_, measure) in zip(measured, tasks, strict=True):
            values.append(measure())
    rows = []
    for values, (known, _) in zip(measured, tasks, strict=True):
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
    parser.add_argument("--members", type=int, default=8, help="of the ensemble; 0 for no ensemble")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    arguments = parser.parse_args()
    compilation.enable_cache()
    numbers = arguments.devices or [2**n for n in range(jax.device_count().bit_length())]
    content: dict[str, Any] = {
        "rows": [],
        "ensembles": [],
        "simulated": jax.default_backend() == "cpu",
    }
    for network in arguments.networks:
        for batch_size in arguments.batch_sizes:
            tasks = [step(network, batch_size, devices) for devices in numbers]
            content["rows"] += in_turns(tasks, arguments.repeats, "seconds_a_step")
            # One batch size is enough: members do not communicate.
            if arguments.members and batch_size == arguments.batch_sizes[0]:
                tasks = [members(network, batch_size, n, arguments.members) for n in numbers]
                content["ensembles"] += in_turns(tasks, arguments.repeats, "images_per_second")
            write_json(arguments.out, content)


if __name__ == "__main__":
    main()
