"""Images per second of an ensemble, against single runs and against PyTorch's `torch.func`.

    python benchmarks/ensemble.py --out FILE.json
    python benchmarks/ensemble.py --networks mnist --members 1 16 256 --chunks 0 16 --out FILE.json

Every member trains at batch size 64 with SGD and momentum, with its own seed, order of the images
and learning rate. Compilation and the first epoch are not timed; contenders are measured in turn,
round after round. A chunk of 0 is jaxcnn's own choice. Needs jax, flax, optax, numpy and torch.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import LEARNING_RATE, MOMENTUM, Task
from output import write_json
from pytorch_networks import NETWORKS
from scaling import images_per_second
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn import functional

from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.recipes import named
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.train.fit import fit
from jaxcnn.train.members import Members

BATCH_SIZE = 64

Round = Callable[[], float]
"""Measures a contender once, in images per second."""


def setting(task: Task, epochs: int) -> tuple[Recipe, Dataset]:
    """Returns the recipe and a random data set of a task."""
    recipe = named.recipe(task.network, "reference").replace(
        epochs=epochs, batch_size=task.batch_size, learning_rate=LEARNING_RATE, momentum=MOMENTUM
    )
    split = task.split()
    test = Split(split.images[:10], split.labels[:10])
    return recipe, Dataset(task.network, "random", split, test, tuple("0123456789"))


def single(task: Task) -> Round:
    """Makes the round of a single run of `fit`."""

    def measure() -> float:
        recipe, dataset = setting(task, epochs=3)
        history = fit(recipe, dataset).history[1:]
        return statistics.median(record.images_per_second for record in history)

    return measure


def jaxcnn(task: Task, count: int, chunk: int) -> Round:
    """Makes the round of an ensemble of `count` members, `chunk` at a time (0: jaxcnn's choice)."""
    recipe, dataset = setting(task, epochs=3)
    rates = np.geomspace(LEARNING_RATE / 10, LEARNING_RATE, count)
    members = Members(np.arange(count), {"learning_rate": rates})

    def measure() -> float:
        return images_per_second(recipe, dataset, members, chunk=chunk or None)

    return measure


def pytorch(task: Task, count: int) -> Round:
    """Makes the round of the same ensemble in PyTorch, with `vmap` over stacked parameters."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    networks = [NETWORKS[task.network]().to(device) for _ in range(count)]
    params, buffers = stack_module_state(networks)
    params = {name: value.detach() for name, value in params.items()}
    network = networks[0].train()
    velocity = {name: torch.zeros_like(value) for name, value in params.items()}
    rates = torch.logspace(-4, -3, count, device=device)
    split = task.split()
    images = torch.from_numpy(split.images).to(device).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(split.labels).to(device).long()

    def loss(params: Any, buffers: Any, images: Any, labels: Any) -> torch.Tensor:
        normalized = (images.float() / 255 - 0.1307) / 0.3081
        logits = functional_call(network, (params, buffers), (normalized,))
        return functional.cross_entropy(logits, labels)

    step = vmap(grad_and_value(loss), randomness="different")

    def epoch() -> None:
        orders = torch.stack([torch.randperm(len(labels), device=device) for _ in range(count)])
        for indices in orders.split(task.batch_size, dim=1):
            grads, _ = step(params, buffers, images[indices], labels[indices])
            for name, gradient in grads.items():
                velocity[name].mul_(MOMENTUM).add_(gradient)
                shape = (-1,) + (1,) * (gradient.dim() - 1)
                params[name].sub_(rates.view(shape) * velocity[name])
        if device.type == "cuda":
            torch.cuda.synchronize()

    def measure() -> float:
        epoch()
        began = time.perf_counter()
        epoch()
        return count * len(labels) / (time.perf_counter() - began)

    return measure


def measure(network: str, count: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures all contenders for ensembles of `count` members and returns a row."""
    # Longer epochs for few members, which otherwise take too little time.
    steps = max(arguments.steps, arguments.total_steps // count)
    task = Task(network, BATCH_SIZE, steps)
    rounds: dict[str, Round] = {"single": single(task)}
    for chunk in arguments.chunks:
        if chunk <= count:
            rounds[f"ensemble, chunk {chunk or 'chosen'}"] = jaxcnn(task, count, chunk)
    if count <= arguments.most_pytorch:
        rounds["PyTorch, torch.func"] = pytorch(task, count)
    speeds: dict[str, list[float]] = {name: [] for name in rounds}
    for _ in range(arguments.repeats):
        for name, measure_once in rounds.items():
            speeds[name].append(measure_once())
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    return {
        "network": network,
        "members": count,
        "steps_an_epoch": steps,
        "images_per_second": medians,
        "all": speeds,
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--members", nargs="+", type=int, default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument("--chunks", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=20, help="least steps per epoch")
    parser.add_argument("--total-steps", type=int, default=2000, help="least steps of all members")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most-pytorch", type=int, default=1024, help="members in PyTorch")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    arguments = parser.parse_args()
    rows = []
    for network in arguments.networks:
        for count in arguments.members:
            rows.append(measure(network, count, arguments))
            medians = rows[-1]["images_per_second"]
            shown = (
                f"{name} {value:,.0f} ({value / medians['single']:.2f})"
                for name, value in medians.items()
            )
            print(f"{network}, {count} members: {'; '.join(shown)}", flush=True)
            content = {"batch_size": BATCH_SIZE, "rows": rows}
            write_json(arguments.out, content, torch=torch.__version__)


if __name__ == "__main__":
    main()
