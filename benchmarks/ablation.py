"""Ablation of the recipe `best`: the accuracy with one technique removed or replaced.

    python benchmarks/ablation.py cifar10 --epochs 12 --seeds 3 --out benchmarks/results/FILE.json

Trains the recipe and each variation with each seed on the training images without a held-out part,
on which the parameters are evaluated after the last epoch; the test images are not used. Prints a
table in Markdown. Repeating the command runs only what the file lacks.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import accuracy
import tyro
from output import write_json

from jaxcnn.data.dataset import load_data
from jaxcnn.recipes import named
from jaxcnn.recipes.recipe import NetworkName
from jaxcnn.storage import compilation
from jaxcnn.study import study

_SGD = {"optimizer": "sgd", "nesterov": True, "weight_decay": 5e-4}
_BOTH: dict[str, dict[str, Any]] = {
    "dropout 0.5": {"dropout": 0.5},
    "no augmentation": {"augment": "none"},
    "constant learning rate": {"schedule": "constant"},
    "moving average of the parameters, 0.999": {"ema": 0.999},
    "Flax's initialisation": {"initialization": "flax"},
    "no label smoothing": {"label_smoothing": 0.0},
}
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "mnist": {
        "SGD instead of Muon": {**_SGD, "learning_rate": 0.1},
        "AdamW instead of Muon": {"optimizer": "adamw", "learning_rate": 0.01},
        "shifts of up to 2 pixels instead of distortions": {"augment": "shift"},
        "label smoothing 0.1": {"label_smoothing": 0.1},
        **_BOTH,
    },
    "cifar10": {
        "SGD instead of Muon": {**_SGD, "learning_rate": 0.2},
        "AdamW instead of Muon": {"optimizer": "adamw", "learning_rate": 0.01},
        "no dropout": {"dropout": 0.0},
        **_BOTH,
    },
}


@dataclass(frozen=True)
class Flags:
    """Trains a recipe and its variations, and writes their accuracies on held-out images."""

    network: Annotated[NetworkName, tyro.conf.Positional]
    out: Path
    """The JSON file to write."""
    epochs: int
    """Epochs of each run; the recipe has more."""
    seeds: int = 3
    hold_out: int = 5000
    """Number of training images that are held out for evaluation."""
    data_dir: str = ""
    archive_dir: str = ""


def table(rows: dict[str, list[dict[str, Any]]]) -> str:
    """Returns a table in Markdown.

    Args:
        rows: the runs of each variation, see `accuracy.measure`; the recipe itself is the first.
    """
    summaries = {name: accuracy.summary(runs) for name, runs in rows.items()}
    first = next(iter(rows))
    base = summaries[first]["test_accuracy_mean"]
    lines = [
        "| | held-out accuracy | against the recipe | with test-time augmentation "
        "| training accuracy | seeds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, statistics in summaries.items():
        mean, spread = statistics["test_accuracy_mean"], statistics["test_accuracy_std"]
        cells = [
            name,
            f"{100 * mean:.2f}" + (f" ± {100 * spread:.2f} %" if spread is not None else " %"),
            f"{100 * (mean - base):+.2f}" if name != first else "",
            f"{100 * statistics['tta_test_accuracy_mean']:.2f} %",
            f"{100 * statistics['train_accuracy_mean']:.2f} %",
            str(len(rows[name])),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main(flags: Flags) -> None:
    """Runs the benchmark."""
    compilation.enable_cache()
    recipe = named.recipe(flags.network, "best").replace(epochs=flags.epochs)
    whole = load_data(
        flags.network, data_dir=flags.data_dir or None, archive_dir=flags.archive_dir or None
    )
    rest, held = study.hold_out(whole, flags.hold_out)
    dataset = dataclasses.replace(rest, test=held)
    base = json.loads(json.dumps(recipe.asdict())) | {"hold_out": flags.hold_out}
    saved = json.loads(flags.out.read_text()) if flags.out.exists() else {}
    rows: dict[str, list[dict[str, Any]]] = saved["rows"] if saved.get("base") == base else {}
    changes = {"the recipe": {}, **CHANGES[flags.network]}
    rows = {name: rows.get(name, []) for name in changes}
    # Seed by seed, so that an interrupted benchmark leaves results for each variation.
    for seed in range(flags.seeds):
        for name, fields in changes.items():
            if any(run["seed"] == seed for run in rows[name]):
                continue
            run = accuracy.measure(recipe.replace(**fields), dataset, seed, None)
            rows[name].append(run)
            content = {"dataset": whole.name, "base": base, "changes": changes, "rows": rows}
            write_json(flags.out, content)
            print(f"seed {seed}, {name}: {run['test_accuracy']:.2%}", flush=True)
    print(table(rows))


if __name__ == "__main__":
    main(tyro.cli(Flags))
