"""Seconds of training until the accuracy on the whole test set reaches each of several thresholds.

    python benchmarks/time_to_accuracy.py mnist --seeds 10 --out FILE.json
    python benchmarks/time_to_accuracy.py cifar10 --arrays FILE.npz --seeds 100 --out FILE.json

Every run trains all epochs of the recipe and is evaluated after each; none is stopped at a
threshold. The time is that of training, without loading and evaluation; "with compilation" adds
the seconds of compiling all programs, which every run does anew. The accuracy with test-time
augmentation is measured after the last epoch. `--arrays` takes uint8 `train_images` and
`test_images` [N, H, W, C] and integer `train_labels` and `test_labels`, and needs no TFDS.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any, get_args

import numpy as np
from output import write_json

from jaxcnn.data.dataset import Dataset, Split, load_data
from jaxcnn.recipes import named
from jaxcnn.recipes.recipe import RecipeName
from jaxcnn.train.evaluate import evaluate
from jaxcnn.train.fit import fit

THRESHOLDS = {"mnist": (0.97, 0.98, 0.99, 0.993), "cifar10": (0.70, 0.75, 0.7884, 0.82, 0.85)}


def load_images(arguments: argparse.Namespace) -> Dataset:
    """Returns the real data set, from the file of arrays or as the experiments do."""
    if not arguments.arrays:
        return load_data(
            arguments.network,
            data_dir=arguments.data_dir or None,
            archive_dir=arguments.archive_dir or None,
        )
    with np.load(arguments.arrays, allow_pickle=False) as arrays:
        train, test = (
            Split(arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.int32))
            for split in ("train", "test")
        )
    return Dataset(arguments.network, "arrays", train, test, tuple(map(str, range(10))))


def time_to(runs: list[dict[str, Any]], threshold: float) -> dict[str, Any]:
    """Returns the number of runs that reach an accuracy, and the quartiles of their seconds."""
    without, including = [], []
    for run in runs:
        for epoch, accuracy in enumerate(run["test_accuracy"]):
            if accuracy >= threshold:
                seconds = sum(run["seconds"][: epoch + 1])
                without.append(seconds)
                including.append(seconds + run["compile_seconds"])
                break

    def summary(seconds: list[float]) -> dict[str, float] | None:
        if not seconds:
            return None
        low, high = np.percentile(seconds, (25, 75))
        return {
            "median": statistics.median(seconds),
            "quartile_low": float(low),
            "quartile_high": float(high),
        }

    return {
        "accuracy": threshold,
        "runs_reaching_it": len(without),
        "runs": len(runs),
        "seconds": summary(without),
        "seconds_with_compilation": summary(including),
    }


def spread(name: str, values: list[float]) -> dict[str, float | None]:
    """Returns mean and standard deviation, with keys that begin with `name`."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {f"{name}_mean": statistics.mean(values), f"{name}_std": std}


def write_runs(arguments: argparse.Namespace, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes the results of the runs so far, and returns them."""
    content = {
        "network": arguments.network,
        "recipe": vars(named.recipe(arguments.network, arguments.recipe)),
        "thresholds": [time_to(runs, threshold) for threshold in THRESHOLDS[arguments.network]],
        **spread("final_test_accuracy", [run["test_accuracy"][-1] for run in runs]),
        **spread("tta_test_accuracy", [run["tta_test_accuracy"] for run in runs]),
        "runs": runs,
    }
    write_json(arguments.out, content)
    return content


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("network", choices=list(THRESHOLDS))
    parser.add_argument("--recipe", choices=get_args(RecipeName), default="fast")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--arrays", type=Path, metavar="FILE.npz")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--archive-dir", default="")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    arguments = parser.parse_args()
    recipe = named.recipe(arguments.network, arguments.recipe)
    dataset = load_images(arguments)
    runs: list[dict[str, Any]] = []
    content: dict[str, Any] = {"thresholds": []}
    for seed in range(arguments.seeds):
        result = fit(recipe, dataset, seed=seed)
        correct, total, _ = evaluate(recipe, result.state.eval_variables, dataset.test, tta=True)
        runs.append(
            {
                "seed": seed,
                "test_accuracy": [record.test_accuracy for record in result.history],
                "tta_test_accuracy": correct / total,
                "seconds": [record.seconds for record in result.history],
                "compile_seconds": result.compile_seconds,
            }
        )
        accuracy, seconds = runs[-1]["test_accuracy"][-1], sum(runs[-1]["seconds"])
        print(f"seed {seed}: {accuracy:.2%} after {seconds:.1f} s", flush=True)
        # After every run, so that an interrupted benchmark leaves its results.
        content = write_runs(arguments, runs)
    for row in content["thresholds"]:
        shown = "never" if row["seconds"] is None else f"{row['seconds']['median']:.1f} s"
        print(f"{row['accuracy']:.2%}: {shown}, {row['runs_reaching_it']} of {row['runs']} runs")


if __name__ == "__main__":
    main()
