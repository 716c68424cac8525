"""The learning rate range test: many learning rates for a short while, to find a good one."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.errors import UserError
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.study.study import hold_out
from jaxcnn.train.ensemble import fit_many
from jaxcnn.train.members import grid

# A run that ends above this share of the cross entropy of guessing has learnt nothing.
_LEARNT = 0.9
# A rate whose loss is this many times the least may be the best one too.
_AS_GOOD = 1.1
# By default the range is the recipe's learning rate divided and multiplied by this.
_SPAN = 1000.0
# By default a run takes this many steps, or one pass over the images if that is less.
_STEPS = 300
_HELD_OUT = 5000


@dataclass(frozen=True)
class RateRange:
    """The result of a learning rate range test.

    Attributes:
        optimizer: its name.
        steps: of each run.
        rates: float64[E], the learning rates at their peak, in ascending order.
        train_losses: float32[E], mean over the run, in training mode; over its last pass if there
            are several. NaN where it was not finite.
        losses: float32[E], on held-out training images after the last step; NaN likewise.
        diverged: bool[E], whether the loss was not finite, or at least nine tenths of `guessing`
            at a rate above the suggestion: the network has come to guess.
        suggestion: the learning rate to take, see `suggest_rate`; None if no run has learnt
            anything.
        guessing: cross entropy of guessing one of the classes, in nats.
    """

    optimizer: str
    steps: int
    rates: np.ndarray
    train_losses: np.ndarray
    losses: np.ndarray
    diverged: np.ndarray
    suggestion: float | None
    guessing: float

    @property
    def loss(self) -> float:
        """The held-out loss at the suggestion; NaN if there is none."""
        return float("nan") if self.suggestion is None else float(self.losses[self._index])

    @property
    def at_edge(self) -> bool:
        """Whether the suggestion is the smallest or largest rate, so better ones may lie beyond."""
        return self.suggestion is not None and self._index in (0, len(self.rates) - 1)

    @property
    def learns_from(self) -> float | None:
        """The smallest rate whose run has learnt something; None if there is none."""
        learnt = self.rates[self.losses <= _LEARNT * self.guessing]
        return float(learnt[0]) if len(learnt) else None

    @property
    def diverges_from(self) -> float | None:
        """The smallest diverged rate above the suggestion; None if there is none."""
        above = self.rates[self.diverged & (self.rates > (self.suggestion or 0))]
        return float(above[0]) if len(above) else None

    def asdict(self) -> dict[str, Any]:
        """Returns all values by name, as those of JSON: lists, with None in the place of NaN."""

        def plain(losses: np.ndarray) -> list[float | None]:
            return [float(loss) if np.isfinite(loss) else None for loss in losses]

        return {
            "optimizer": self.optimizer,
            "steps": self.steps,
            "learning_rates": self.rates.tolist(),
            "train_losses": plain(self.train_losses),
            "held_out_losses": plain(self.losses),
            "diverged": self.diverged.tolist(),
            "suggestion": self.suggestion,
        }

    @property
    def _index(self) -> int:
        """Position of the suggestion."""
        return int(np.argmin(np.abs(self.rates - (self.suggestion or 0))))


def find_rate(
    recipe: Recipe,
    dataset: Dataset,
    *,
    low: float | None = None,
    high: float | None = None,
    count: int = 19,
    steps: int | None = None,
    seed: int = 0,
    report: Callable[[float], None] = lambda share: None,
    **options: Any,
) -> RateRange:
    """Trains briefly at many learning rates, in one program, and suggests one of them.

    The range test is that of Smith, Cyclical Learning Rates for Training Neural Networks, 2015
    (arXiv 1506.01186), but each rate has a run of its own from the same initial parameters, where
    Smith raises the rate within one run: so a loss belongs to one rate. And each run has the whole
    schedule of the recipe, compressed: one with warm-up and decay bears higher peaks than a
    constant rate does. `suggest_rate` has the rule of the suggestion.

    Args:
        recipe: with the optimizer and its schedule. The average of the parameters is left out.
        dataset: up to 5,000 of its training images are held out; the test images are not used.
        low: smallest learning rate. Default: a thousandth of the recipe's.
        high: largest learning rate. Default: a thousand times the recipe's.
        count: number of learning rates, at equal ratios.
        steps: of each run, at least. Default: 300, or one pass over the training images if that
            is less.
        seed: of every run.
        report: called with the share of all work that was done since the last call.
        **options: those of `jaxcnn.train.ensemble.fit_chunks`: chunk, mesh, model, and tx, a
            function of the hyperparameters.

    Raises:
        UserError: the range or a number is impossible, or as `fit_chunks` does.
    """
    rates = make_rates(recipe, low, high, count)
    dataset, held_out = hold_out(dataset, min(_HELD_OUT, len(dataset.train) // 10))
    recipe, dataset = _shorten(recipe, dataset, steps)
    images = count * recipe.epochs * len(dataset.train)
    result = fit_many(
        recipe,
        dataset,
        grid([seed], learning_rate=rates.tolist()),
        evaluate_on=held_out,
        evaluate_once=True,
        report=lambda trained: report(trained / images),
        **options,
    )
    losses = result.history["eval_loss"][-1]
    guessing = math.log(dataset.classes)
    suggestion = suggest_rate(rates, losses, guessing)
    best = suggestion or 0.0
    return RateRange(
        optimizer=recipe.optimizer,
        steps=recipe.epochs * (len(dataset.train) // recipe.batch_size),
        rates=rates,
        train_losses=result.history["train_loss"][-1],
        losses=losses,
        diverged=~np.isfinite(losses) | ((rates > best) & (losses > _LEARNT * guessing)),
        suggestion=suggestion,
        guessing=guessing,
    )


def make_rates(
    recipe: Recipe, low: float | None = None, high: float | None = None, count: int = 19
) -> np.ndarray:
    """Returns learning rates at equal ratios, float64[count], see `find_rate`.

    Raises:
        UserError: the range is empty, or has fewer than three rates.
    """
    low = recipe.learning_rate / _SPAN if low is None else low
    high = recipe.learning_rate * _SPAN if high is None else high
    if not 0 < low < high < math.inf:
        raise UserError(f"--low and --high take 0 < low < high, got {low:g} and {high:g}")
    if not 3 <= count <= 1000:
        raise UserError(f"--rates takes a whole number from 3 to 1000, got {count}")
    # Rounded, so that they read well and are those that a user types.
    return np.array([float(f"{rate:.3g}") for rate in np.geomspace(low, high, count)])


def suggest_rate(rates: np.ndarray, losses: np.ndarray, guessing: float) -> float | None:
    """Returns the smallest learning rate whose loss is within a tenth of the least.

    In a flat valley noise decides which rate has the least loss, and a longer run is safer at a
    smaller rate.

    Args:
        rates: float[E], in ascending order.
        losses: float[E], at the end of each run; NaN if it has diverged.
        guessing: cross entropy of guessing one of the classes, in nats.

    Returns:
        One of the rates; None if no run has learnt anything.
    """
    known = np.nan_to_num(losses, nan=np.inf)
    if known.min() > _LEARNT * guessing:
        return None
    return float(rates[int(np.argmax(known <= _AS_GOOD * known.min()))])


def _shorten(recipe: Recipe, dataset: Dataset, steps: int | None) -> tuple[Recipe, Dataset]:
    """Returns the recipe and the data of runs of a number of steps."""
    size, batch_size = len(dataset.train), recipe.batch_size
    most = max(1, size // batch_size)
    steps = min(_STEPS, most) if steps is None else steps
    if not 1 <= steps <= 10**6:
        raise UserError(f"--steps takes a whole number from 1 to 1000000, got {steps}")
    epochs = -(-steps // most)
    images = min(size, -(-steps // epochs) * batch_size)
    chosen = np.sort(np.random.default_rng(1).permutation(size)[:images])
    train = Split(dataset.train.images[chosen], dataset.train.labels[chosen])
    # An average over more steps than these would evaluate the initial parameters.
    recipe = recipe.replace(epochs=epochs, ema=0.0)
    return recipe, dataclasses.replace(dataset, train=train)
