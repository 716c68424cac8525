"""Accuracy of a recipe over several seeds: mean, standard deviation and training time.

    python benchmarks/accuracy.py mnist --recipe fast --seeds 5 --out benchmarks/results/FILE.json

Both splits are scored whole and in evaluation mode, at the last epoch.
"""

import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxcnn import compilation, data, environment, recipes, training


@dataclass(frozen=True)
class Flags:
    """Trains a recipe with the seeds 0, 1, 2, ... and writes the accuracies."""

    network: Annotated[recipes.NetworkName, tyro.conf.Positional]
    out: Path
    """The JSON file to write."""
    recipe: recipes.RecipeName = "fast"
    seeds: int = 5
    data_dir: str = ""
    archive_dir: str = ""


def main(flags: Flags) -> None:
    """Runs the benchmark."""
    compilation.enable_cache()
    recipe = recipes.get(flags.network, flags.recipe)
    dataset = data.load(
        flags.network, data_dir=flags.data_dir or None, archive_dir=flags.archive_dir or None
    )
    runs = []
    for seed in range(flags.seeds):
        result = training.fit(recipe, dataset, seed=seed)
        correct, total, _ = training.evaluate(recipe, result.state.variables, dataset.train)
        runs.append(
            {
                "seed": seed,
                "test_accuracy": result.test_accuracy,
                "test_correct": result.test_correct,
                "train_accuracy": correct / total,
                "train_correct": correct,
                "train_seconds": result.train_seconds,
                "eval_seconds": result.eval_seconds,
                "compile_seconds": result.compile_seconds,
                "images_per_second": result.images_per_second,
            }
        )
        print(json.dumps(runs[-1]), flush=True)
    accuracies = [run["test_accuracy"] for run in runs]
    summary = {
        "dataset": dataset.name,
        "recipe": vars(recipe),
        "test_accuracy_mean": statistics.mean(accuracies),
        "test_accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "train_seconds_median": statistics.median(run["train_seconds"] for run in runs),
        "runs": runs,
        "versions": environment.versions(),
        "device": environment.device(),
    }
    flags.out.parent.mkdir(parents=True, exist_ok=True)
    flags.out.write_text(json.dumps(summary, indent=2) + "\n")
    print(f"mean {summary['test_accuracy_mean']:.2%}, {flags.out}")


if __name__ == "__main__":
    main(tyro.cli(Flags))
