"""Accuracy of a recipe over several seeds: mean, standard deviation and training time.

    python benchmarks/accuracy.py mnist --recipe best --seeds 5 --out benchmarks/results/FILE.json

Trains one run for each seed and evaluates the parameters after the last epoch on all images of
both splits, and on the test images also with test-time augmentation. Repeating the command runs
only the seeds that the file lacks; an interrupted run resumes from its last checkpoint.
"""

import json
import shutil
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from output import write_json

from jaxcnn.data.dataset import Dataset, load_data
from jaxcnn.recipes import named
from jaxcnn.recipes.recipe import NetworkName, Recipe, RecipeName
from jaxcnn.storage import checkpoint, compilation
from jaxcnn.train.evaluate import evaluate
from jaxcnn.train.fit import fit


@dataclass(frozen=True)
class Flags:
    """Trains a recipe with the seeds 0, 1, 2, ... and writes the accuracies."""

    network: Annotated[NetworkName, tyro.conf.Positional]
    out: Path
    """The JSON file to write."""
    recipe: RecipeName = "fast"
    seeds: int = 5
    data_dir: str = ""
    archive_dir: str = ""


def measure(
    recipe: Recipe, dataset: Dataset, seed: int, policy: checkpoint.Policy | None
) -> dict[str, Any]:
    """Trains and evaluates one run.

    Args:
        recipe: of the run.
        dataset: the training and test splits.
        seed: of the run.
        policy: where checkpoints are saved; None for none.

    Returns:
        Accuracies in 0..1, times in seconds and the history, as JSON values.
    """
    result = fit(recipe, dataset, seed=seed, checkpoints=policy)
    variables = result.state.eval_variables
    train_correct, train_total, _ = evaluate(recipe, variables, dataset.train)
    tta_correct, total, _ = evaluate(recipe, variables, dataset.test, tta=True)
    return {
        "seed": seed,
        "test_accuracy": result.test_accuracy,
        "test_correct": result.test_correct,
        "tta_test_accuracy": tta_correct / total,
        "tta_test_correct": tta_correct,
        "train_accuracy": train_correct / train_total,
        "train_correct": train_correct,
        "train_seconds": result.train_seconds,
        "eval_seconds": result.eval_seconds,
        "compile_seconds": result.compile_seconds,
        "images_per_second": result.images_per_second,
        "history": [record.asdict() for record in result.history],
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns mean and standard deviation of the accuracies, and the median training time."""

    def over(name: str) -> dict[str, float | None]:
        values = [run[name] for run in runs]
        return {
            f"{name}_mean": statistics.mean(values),
            f"{name}_std": statistics.stdev(values) if len(values) > 1 else None,
        }

    seconds = statistics.median(run["train_seconds"] for run in runs)
    return {
        **over("test_accuracy"),
        **over("tta_test_accuracy"),
        **over("train_accuracy"),
        "train_seconds_median": seconds,
    }


def main(flags: Flags) -> None:
    """Runs the benchmark."""
    compilation.enable_cache()
    recipe = named.recipe(flags.network, flags.recipe)
    dataset = load_data(
        flags.network, data_dir=flags.data_dir or None, archive_dir=flags.archive_dir or None
    )
    saved = json.loads(flags.out.read_text()) if flags.out.exists() else {}
    hyperparameters = json.loads(json.dumps(recipe.asdict()))
    runs = saved["runs"] if saved.get("recipe") == hyperparameters else []
    for seed in range(flags.seeds):
        if any(run["seed"] == seed for run in runs):
            continue
        folder = flags.out.with_name(f"{flags.out.stem}-{seed}")
        runs.append(measure(recipe, dataset, seed, checkpoint.Policy(folder)))
        content = {"dataset": dataset.name, "recipe": hyperparameters, **summary(runs)}
        # After every run, so that an interrupted benchmark leaves its results.
        write_json(flags.out, {**content, "runs": runs})
        shutil.rmtree(folder)
        print(
            f"seed {seed}: {runs[-1]['test_accuracy']:.2%}, with test-time augmentation "
            f"{runs[-1]['tta_test_accuracy']:.2%}, {runs[-1]['train_seconds']:.0f} s",
            flush=True,
        )
    final = summary(runs)
    print(
        f"mean {final['test_accuracy_mean']:.2%}, with test-time augmentation "
        f"{final['tta_test_accuracy_mean']:.2%}, {flags.out}"
    )


if __name__ == "__main__":
    main(tyro.cli(Flags))
