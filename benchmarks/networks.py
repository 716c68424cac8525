"""Training speed of other networks than the two built-in ones on CPU, in images per second.

    python benchmarks/networks.py --out benchmarks/results/networks-cpu.json

As in `throughput.py`, all contenders of a row train in one process, in turn, round after round:
`fit`'s program; the same step jitted and called a step at a time, as the network is written; the
same in a loop; and PyTorch, eager. Evaluation of `fit` is timed beside the forward pass of
PyTorch. Needs jax, flax, optax, numpy and torch.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import torch
from other_networks import NETWORKS
from output import write_json
from torch.nn import functional

from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.devices.mesh import ONE_DEVICE
from jaxcnn.networks.cpu.substitution import fastest, slow_in_loops
from jaxcnn.recipes import named
from jaxcnn.train.feed import make_feed
from jaxcnn.train.run_program import RunProgram
from jaxcnn.train.state import init_state

SHAPE = (32, 32, 3)


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--batch-size", type=int, default=64, metavar="B")
    parser.add_argument("--steps", type=int, default=8, help="of a timed epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--loop", action="store_true", help="time the loop too, which takes long")
    parser.add_argument("--out", type=Path, default=Path("networks.json"), metavar="FILE.json")
    return parser.parse_args()


def dataset(batch_size: int, steps: int) -> Dataset:
    """Generates random images and labels, on whose content the speed does not depend."""
    rng = np.random.default_rng(0)
    size = batch_size * steps
    images = rng.integers(0, 256, (size, *SHAPE), np.uint8)
    split = Split(images, rng.integers(0, 10, size, np.int32))
    return Dataset("random", "1", split, split, tuple("0123456789"))


def ours(
    model: Any, data: Dataset, batch_size: int, *, single: bool
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Returns an epoch of `fit`'s program, and its evaluation."""
    recipe = named.recipe("cifar10", "reference").replace(batch_size=batch_size, augment="none")
    tx = optax.sgd(1e-3, momentum=0.9)
    feed = make_feed("device", data.train, batch_size, jax.random.key(0))
    program = RunProgram(recipe, data, model, tx, feed, ONE_DEVICE, single=single)
    state = init_state(jax.random.key(1), model, tx, SHAPE)
    program.compile(state)

    def epoch() -> None:
        nonlocal state
        for piece in program.epoch(state, program.zero_sums(), 1, 0, ()):
            state = piece.state
        jax.block_until_ready(state.params)

    return epoch, lambda: program.evaluate(state) and None


def pytorch(
    make: Callable[[], torch.nn.Module], data: Dataset, batch_size: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Returns an epoch of PyTorch in eager mode, and its evaluation."""
    net = make()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)
    images = torch.from_numpy(data.train.images).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(data.train.labels).long()

    def epoch() -> None:
        net.train()
        for indices in torch.randperm(len(labels)).split(batch_size):
            optimizer.zero_grad()
            logits = net((images[indices].float() / 255 - 0.5) / 0.25)
            functional.cross_entropy(logits, labels[indices]).backward()
            optimizer.step()

    def evaluate() -> None:
        net.eval()
        with torch.no_grad():
            for batch in images.split(batch_size):
                net((batch.float() / 255 - 0.5) / 0.25)

    return epoch, evaluate


def measure(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times all contenders on a network and returns a row of the results."""
    model, make = NETWORKS[name]
    size, data = arguments.batch_size, dataset(arguments.batch_size, arguments.steps)
    epochs: dict[str, Callable[[], None]] = {}
    fast = fastest(model)
    single = slow_in_loops(fast, SHAPE)
    epochs["fit"], epochs["fit, evaluation"] = ours(fast, data, size, single=single)
    epochs["step at a time"], _ = ours(model, data, size, single=True)
    if arguments.loop:
        epochs["loop"], epochs["loop, evaluation"] = ours(model, data, size, single=False)
    epochs["eager"], epochs["eager, evaluation"] = pytorch(make, data, size)
    times: dict[str, list[float]] = {contender: [] for contender in epochs}
    for number in range(arguments.rounds + 1):
        for contender, epoch in epochs.items():
            began = time.perf_counter()
            epoch()
            if number:  # the first round warms up
                times[contender].append(time.perf_counter() - began)
    images = len(data.train)
    return {
        "network": name,
        "batch_size": size,
        "steps": arguments.steps,
        "images_per_second": {n: images / statistics.median(t) for n, t in times.items()},
        "most_images_per_second": {n: images / min(t) for n, t in times.items()},
        "seconds": times,
        "ratios": {
            n: statistics.median(t) / statistics.median(times["fit"])
            for n, t in times.items()
            if "evaluation" not in n
        },
    }


def main() -> None:
    """Runs the benchmark."""
    arguments = parse_arguments()
    rows: list[dict[str, Any]] = []
    for name in arguments.networks:
        rows.append(measure(name, arguments))
        speeds = ", ".join(f"{n} {v:,.0f}" for n, v in rows[-1]["images_per_second"].items())
        print(f"{name}, images/s: {speeds}", flush=True)
        # After every row, so that an interrupted benchmark leaves its results.
        content = {"rows": rows, "torch_threads": torch.get_num_threads()}
        write_json(arguments.out, content, torch=torch.__version__)
        jax.clear_caches()


if __name__ == "__main__":
    main()
