"""Images a second of many runs in one program, against single runs and PyTorch's `torch.func`.

    python benchmarks/ensemble.py --out FILE.json
    python benchmarks/ensemble.py --networks mnist --members 1 16 256 --chunks 0 16 --out FILE.json

Every member trains at batch 64 with SGD and momentum, from its own seed, in its own order and with
its own learning rate. Compilation and the first epoch are not timed; what is measured against each
other runs in turns. A chunk of 0 is what jaxcnn chooses. Needs jax, flax, optax, numpy and torch.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contenders import LEARNING_RATE, MOMENTUM, Task
from pytorch_networks import NETWORKS
from scaling import images_per_second
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.nn import functional

from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.devices import environment
from jaxcnn.recipes import named
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.train.fit import fit
from jaxcnn.train.members import Members

BATCH_SIZE = 64

# Returns images a second of one round.
Round = Callable[[], float]


def setting(task: Task, epochs: int) -> tuple[Recipe, Dataset]:
    """Returns the recipe and a data set of a task."""
    recipe = named.recipe(task.network, "reference").replace(
        epochs=epochs, batch_size=task.batch_size, learning_rate=LEARNING_RATE, momentum=MOMENTUM
    )
    split = task.split()
    test = Split(split.images[:10], split.labels[:10])
    return recipe, Dataset(task.network, "random", split, test, tuple("0123456789"))


def single(task: Task) -> Round:
    """One run of `fit`."""

    def measure() -> float:
        recipe, dataset = setting(task, epochs=3)
        history = fit(recipe, dataset).history[1:]
        return statistics.median(record.images_per_second for record in history)

    return measure


def jaxcnn(task: Task, count: int, chunk: int) -> Round:
    """An ensemble."""
    recipe, dataset = setting(task, epochs=3)
    rates = np.geomspace(LEARNING_RATE / 10, LEARNING_RATE, count)
    members = Members(np.arange(count), {"learning_rate": rates})

    def measure() -> float:
        return images_per_second(recipe, dataset, members, chunk=chunk or None)

    return measure


def pytorch(task: Task, count: int) -> Round:
    """The same ensemble with stacked parameters and `vmap` over them."""
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


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--members", nargs="+", type=int, default=[1, 4, 16, 64, 256, 1024])
    parser.add_argument("--chunks", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=20, help="of an epoch, at least")
    parser.add_argument("--total-steps", type=int, default=2000, help="of all members, at least")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--most-pytorch", type=int, default=1024, help="members in PyTorch")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    asked = parser.parse_args()
    rows = []
    for network in asked.networks:
        for count in asked.members:
            # Longer epochs where few members leave little to time.
            task = Task(network, BATCH_SIZE, max(asked.steps, asked.total_steps // count))
            rounds: dict[str, Round] = {"single": single(task)}
            for chunk in asked.chunks:
                if chunk <= count:
                    rounds[f"ensemble, chunk {chunk or 'chosen'}"] = jaxcnn(task, count, chunk)
            if count <= asked.most_pytorch:
                rounds["PyTorch, torch.func"] = pytorch(task, count)
            seen: dict[str, list[float]] = {name: [] for name in rounds}
            for _ in range(asked.repeats):
                for name, measure in rounds.items():
                    seen[name].append(measure())
            medians = {name: statistics.median(values) for name, values in seen.items()}
            rows.append(
                {
                    "network": network,
                    "members": count,
                    "steps_an_epoch": task.steps,
                    "images_per_second": medians,
                    "all": seen,
                }
            )
            shown = (
                f"{name} {value:,.0f} ({value / medians['single']:.2f})"
                for name, value in medians.items()
            )
            print(f"{network}, {count} members: {'; '.join(shown)}", flush=True)
            content = {
                "batch_size": BATCH_SIZE,
                "rows": rows,
                "device": environment.device(),
                "versions": environment.versions() | {"torch": torch.__version__},
            }
            asked.out.parent.mkdir(parents=True, exist_ok=True)
            asked.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
