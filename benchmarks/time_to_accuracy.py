"""Seconds of training until the whole test set is scored at or above each of some accuracies.

    python benchmarks/time_to_accuracy.py mnist --seeds 10 --out FILE.json
    python benchmarks/time_to_accuracy.py cifar10 --arrays FILE.npz --seeds 100 --out FILE.json

Every run trains the recipe's whole number of epochs and is scored after each; none is cut short by
its accuracy. Only training is timed: loading and scoring are not. "With compilation" adds the
seconds of compiling all programs, anew for every run. The score with test-time augmentation, after
the last epoch, is a figure of its own. `--arrays` takes uint8 `train_images` and
`test_images` [N, H, W, C] and integer `train_labels` and `test_labels`, and needs no TFDS.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.data.dataset import Dataset, Split, load_data
from jaxcnn.devices import environment
from jaxcnn.recipes import named
from jaxcnn.train.evaluate import evaluate
from jaxcnn.train.fit import fit

THRESHOLDS = {"mnist": (0.97, 0.98, 0.99, 0.993), "cifar10": (0.70, 0.75, 0.7884, 0.82, 0.85)}


def load(found: argparse.Namespace) -> Dataset:
    """Returns the real data set, from arrays or as the experiments do."""
    if not found.arrays:
        return load_data(
            found.network, data_dir=found.data_dir or None, archive_dir=found.archive_dir or None
        )
    with np.load(found.arrays, allow_pickle=False) as arrays:
        train, test = (
            Split(arrays[f"{split}_images"], arrays[f"{split}_labels"].astype(np.int32))
            for split in ("train", "test")
        )
    return Dataset(found.network, "arrays", train, test, tuple(map(str, range(10))))


def reached(runs: list[dict[str, Any]], threshold: float) -> dict[str, Any]:
    """Returns how many runs reached an accuracy, and the seconds that those took."""
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
    """Returns mean and standard deviation under a name."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {f"{name}_mean": statistics.mean(values), f"{name}_std": std}


def write(found: argparse.Namespace, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Writes what is known so far and returns it."""
    content = {
        "network": found.network,
        "recipe": vars(named.recipe(found.network, found.recipe)),
        "thresholds": [reached(runs, threshold) for threshold in THRESHOLDS[found.network]],
        **spread("final_test_accuracy", [run["test_accuracy"][-1] for run in runs]),
        **spread("tta_test_accuracy", [run["tta_test_accuracy"] for run in runs]),
        "runs": runs,
        "versions": environment.versions(),
        "device": environment.device(),
    }
    found.out.parent.mkdir(parents=True, exist_ok=True)
    found.out.write_text(json.dumps(content, indent=1) + "\n")
    return content


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("network", choices=list(THRESHOLDS))
    parser.add_argument("--recipe", choices=["reference", "fast", "best"], default="fast")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--arrays", type=Path, metavar="FILE.npz")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--archive-dir", default="")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    found = parser.parse_args()
    recipe = named.recipe(found.network, found.recipe)
    dataset = load(found)
    runs: list[dict[str, Any]] = []
    content: dict[str, Any] = {"thresholds": []}
    for seed in range(found.seeds):
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
        # After every run, so that a benchmark that is cut short leaves what it measured.
        content = write(found, runs)
    for row in content["thresholds"]:
        shown = "never" if row["seconds"] is None else f"{row['seconds']['median']:.1f} s"
        print(f"{row['accuracy']:.2%}: {shown}, {row['runs_reaching_it']} of {row['runs']} runs")


if __name__ == "__main__":
    main()
