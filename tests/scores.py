"""Scores without training, for tests of what a study does with them."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.train import ensemble
from jaxcnn.train.members import Members

# Runs with a larger learning rate diverge.
LARGEST = 10.0


def chunks(
    recipe: Recipe,
    dataset: Dataset,
    members: Members,
    *,
    evaluate_on: Split | None = None,
    evaluate_once: bool = False,
    report: Callable[[int], None] = lambda images: None,
    chunk: int | None = None,
    mesh: Any = None,
    model: Any = None,
) -> Iterator[ensemble.ManyResult]:
    """Takes the place of `ensemble.chunks`: results are functions of recipe, data and members."""
    total = len(evaluate_on or dataset.test)
    for first in range(0, len(members), chunk or 1):
        part = members.take(slice(first, first + (chunk or 1)))
        rates = part.hyperparameters["learning_rate"]
        diverged = rates > LARGEST
        # Increases with the learning rate, from epoch to epoch, and a little with the seed.
        share = 0.5 + 0.1 * np.arctan(len(recipe.optimizer) * rates) + 0.01 * part.seeds
        share = np.where(diverged, 0.1, share)
        epochs = np.arange(1, recipe.epochs + 1)[:, None] / recipe.epochs
        curve = (epochs * np.where(diverged, np.nan, share)).astype(np.float32)
        scored = curve.copy()
        if evaluate_once:
            scored[:-1] = np.nan
        report(len(dataset.train) * recipe.epochs * len(part))
        yield ensemble.ManyResult(
            members=part,
            history={
                "train_loss": 2 - curve,
                "train_accuracy": curve,
                "eval_loss": 2 - scored,
                "eval_accuracy": scored,
            },
            correct=np.round(share * total).astype(np.int32),
            total=total,
            diverged_at=np.where(diverged, 2, 0).astype(np.int32),
            states=None,
        )
