"""Accuracy of jaxcnn and of PyTorch: many runs of each, and Welch's test of equal means.

    python benchmarks/distribution.py mnist --seeds 10 --epochs 1 --out FILE.json
    python benchmarks/distribution.py cifar10 --seeds 5 --epochs 3 --batch-size 64 --out FILE.json

Both frameworks train the recipe `reference`, each with its own random initialization, order of the
images and dropout, and are evaluated on the whole test set after the last epoch.
"""

import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import tyro
from output import write_json
from pytorch_networks import NETWORKS
from scipy import stats
from torch.nn import functional

from jaxcnn.data.dataset import Dataset, Split, load_data
from jaxcnn.recipes import named
from jaxcnn.recipes.recipe import NetworkName, Recipe
from jaxcnn.storage import compilation
from jaxcnn.train.fit import fit


@dataclass(frozen=True)
class Flags:
    """Trains with both frameworks and the seeds 0, 1, 2, ... in turn, and compares the results."""

    network: Annotated[NetworkName, tyro.conf.Positional]
    out: Path
    """The JSON file to write."""
    seeds: int = 10
    epochs: int = 1
    batch_size: int = 64
    data_dir: str = ""
    archive_dir: str = ""


def train_pytorch(recipe: Recipe, dataset: Dataset, seed: int) -> dict[str, float]:
    """Trains with PyTorch; returns test accuracy and training loss of the last epoch."""
    torch.manual_seed(seed)
    net = NETWORKS[recipe.network]()
    optimizer = torch.optim.SGD(net.parameters(), lr=recipe.learning_rate, momentum=recipe.momentum)

    def batch(split: Split, indices: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        images = torch.from_numpy(split.images[indices]).permute(0, 3, 1, 2).float()
        images = (images / 255 - recipe.mean[0]) / recipe.std[0]
        return images, torch.from_numpy(split.labels[indices]).long()

    train_loss = 0.0
    for _ in range(recipe.epochs):
        net.train()
        order = torch.randperm(len(dataset.train)).numpy()
        train_loss = 0.0
        for start in range(0, len(order), recipe.batch_size):
            images, labels = batch(dataset.train, order[start : start + recipe.batch_size])
            optimizer.zero_grad()
            loss = functional.cross_entropy(net(images), labels)
            loss.backward()
            optimizer.step()
            train_loss += loss.item() * len(labels)
    net.eval()
    correct = 0
    with torch.no_grad():
        for start in range(0, len(dataset.test), 500):
            images, labels = batch(dataset.test, np.arange(start, start + 500))
            correct += int((net(images).argmax(1) == labels).sum())
    return {
        "test_accuracy": correct / len(dataset.test),
        "train_loss": train_loss / len(dataset.train),
    }


def train_jaxcnn(recipe: Recipe, dataset: Dataset, seed: int) -> dict[str, float]:
    """Trains with jaxcnn; returns the same metrics."""
    result = fit(recipe, dataset, seed=seed)
    return {
        "test_accuracy": result.test_accuracy,
        "train_loss": result.history[-1].train_loss,
    }


def compare(runs: dict[str, list[dict[str, float]]], metric: str) -> dict[str, Any]:
    """Returns the statistics of a metric for each framework, and Welch's t-test of equal means."""
    values = {name: [run[metric] for run in each] for name, each in runs.items()}
    means = {name: statistics.mean(each) for name, each in values.items()}
    # Welch's: it does not assume equal variances.
    test = stats.ttest_ind(values["jaxcnn"], values["pytorch"], equal_var=False)
    return {
        **{
            name: {"mean": means[name], "std": statistics.stdev(each), "all": each}
            for name, each in values.items()
        },
        "difference_of_means": means["jaxcnn"] - means["pytorch"],
        "welch_t": float(test.statistic),
        "welch_p": float(test.pvalue),
    }


def main(flags: Flags) -> None:
    """Runs the benchmark."""
    compilation.enable_cache()
    recipe = named.recipe(flags.network, "reference").replace(
        epochs=flags.epochs, batch_size=flags.batch_size
    )
    dataset = load_data(
        flags.network, data_dir=flags.data_dir or None, archive_dir=flags.archive_dir or None
    )
    runs: dict[str, list[dict[str, float]]] = {"jaxcnn": [], "pytorch": []}
    for seed in range(flags.seeds):
        for name, train in (("jaxcnn", train_jaxcnn), ("pytorch", train_pytorch)):
            began = time.perf_counter()
            runs[name].append(train(recipe, dataset, seed))
            print(name, seed, runs[name][-1], f"{time.perf_counter() - began:.1f} s", flush=True)
    metrics = {metric: compare(runs, metric) for metric in ("test_accuracy", "train_loss")}
    content = {
        "recipe": vars(recipe), "dataset": dataset.name, "seeds": flags.seeds, **metrics,
    }  # fmt: skip
    write_json(flags.out, content, torch=torch.__version__)
    print(json.dumps(metrics, indent=2))


if __name__ == "__main__":
    main(tyro.cli(Flags))
