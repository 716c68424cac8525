"""What a step on several devices computes and sends, from the compiled program, and its time.

    python benchmarks/scaling.py --out FILE.json                       # all devices of the machine
    XLA_FLAGS=--xla_force_host_platform_device_count=8 python benchmarks/scaling.py --out FILE.json

For every network, batch size and number of devices: operations and bytes of one device as XLA
counts them, and the bytes of a step's all-reduces, read off the program. Seconds a step are medians
of rounds in turns. On simulated devices, which share the cores, they say what a mesh costs, not
what it gains. Needs jax, flax, optax and numpy.
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

from jaxcnn import environment, optimizers, parallel, recipes, state, steps, training

_BYTES = {"f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "f64": 8, "s8": 1, "u8": 1, "pred": 1}
STEPS = 4


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


def task(network: Any, batch_size: int, devices: int) -> tuple[dict[str, Any], Callable[[], float]]:
    """Returns what is known of a step, and what times a round."""
    augment = {"mnist": "shift", "cifar10": "flip-shift"}[network]
    recipe = recipes.get(network, "fast").replace(
        batch_size=batch_size, optimizer="sgd", dropout=0.2, label_smoothing=0.0, augment=augment
    )
    placement = parallel.Placement(parallel.make_mesh({"data": devices}) if devices > 1 else None)
    # Layer by layer on one device too: the same work.
    model = training.make_model(recipe).clone(staged=False)
    tx = optimizers.make_optimizer(recipe, 100)
    step = training.make_train_step(recipe, model, tx)
    start = placement.replicate(state.init(jax.random.key(0), model, tx, recipe.image_shape))
    rng = np.random.default_rng(0)
    batches = placement.send(
        {
            "image": rng.integers(0, 256, (STEPS, batch_size, *recipe.image_shape), np.uint8),
            "label": rng.integers(0, 10, (STEPS, batch_size), np.int32),
        },
        batch_size,
    )
    sums = placement.replicate(steps.zero_train_metrics())
    many = steps.make_train_steps(step, placement.everywhere)
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


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", default=["mnist", "cifar10"])
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[64, 512])
    parser.add_argument("--devices", nargs="+", type=int, default=None)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    asked = parser.parse_args()
    numbers = asked.devices or [2**n for n in range(jax.device_count().bit_length())]
    rows = []
    for network in asked.networks:
        for batch_size in asked.batch_sizes:
            tasks = [task(network, batch_size, devices) for devices in numbers]
            seen: list[list[float]] = [[] for _ in tasks]
            for _ in range(asked.repeats + 1):  # the first one warms up
                for times, (_, measure) in zip(seen, tasks, strict=True):
                    times.append(measure())
            for times, (row, _) in zip(seen, tasks, strict=True):
                rows.append(
                    {**row, "seconds_a_step": statistics.median(times[1:]), "all": times[1:]}
                )
                print(
                    {name: value for name, value in rows[-1].items() if name != "all"}, flush=True
                )
            content = {
                "rows": rows,
                "simulated": jax.default_backend() == "cpu",
                "device": environment.device(),
                "versions": environment.versions(),
            }
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            asked.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
