"""The results of a track as a table in Markdown."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxcnn.arena.files import Entry
from jaxcnn.arena.spaces import RATE


def markdown_table(entries: Iterable[Entry]) -> str:
    """Returns a row for each entry, that with the highest mean accuracy first.

    Args:
        entries: of one track and variant.
    """
    lines = [
        "| optimizer | test accuracy, mean ± standard error | untuned | learning rate | failed |",
        "| --- | --- | --- | --- | --- |",
    ]
    for entry in sorted(entries, key=lambda one: -float(_accuracies(one["final"]).mean())):
        runs = [*entry["trials"], *entry["final"], *entry["untuned"]]
        failed = sum(run["diverged_at"] > 0 for run in runs)
        rate = entry["trials"][entry["best"]]["values"][RATE]
        edge = " (at the edge)" if entry["at_edge"] else ""
        lines.append(
            f"| {entry['optimizer']} | {_score(entry['final'])} | {_score(entry['untuned'])} | "
            f"{rate:.3g}{edge} | {failed} of {len(runs)} |"
        )
    return "\n".join(lines) + "\n"


def _accuracies(runs: list[dict[str, Any]]) -> np.ndarray:
    return np.array([run["correct"] / run["total"] for run in runs])


def _score(runs: list[dict[str, Any]]) -> str:
    values = 100 * _accuracies(runs)
    error = f" ± {values.std(ddof=1) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{error} %"
