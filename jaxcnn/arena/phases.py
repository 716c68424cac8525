"""The training of an entry's runs, phase by phase and chunk by chunk.

A phase's runs are always cut into the same chunks, and a chunk that was interrupted is trained anew
as a whole: so each run is computed by the same program beside the same others, and has the same
numbers however often the entry was resumed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jaxcnn.arena.spaces import hyperparameters
from jaxcnn.arena.speed import Stopwatch
from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.recipes.recipe import Recipe
from jaxcnn.train import ensemble
from jaxcnn.train.many_result import ManyResult
from jaxcnn.train.members import Members

WINDOWS = 32

# A run: its values of the hyperparameters, and its seed.
Point = tuple[Mapping[str, float], int]
# A run as an entry has it.
Run = dict[str, Any]
# Runs by phase and the position of the first of them in it.
Chunks = dict[tuple[str, int], list[Run]]


@dataclass(frozen=True)
class Trainer:
    """Trains the runs of an entry.

    Attributes:
        recipe: that all runs have in common.
        done: the chunks that have ended before.
        at_once: number of runs on each device; 0 for all of a phase.
        mesh: of devices, with the axis "ensemble"; None for one device.
        record: called with phase, position and runs of a chunk that has ended.
        advance: called with the number of images trained on.
        watch: measures the speed.
    """

    recipe: Recipe
    done: Chunks
    at_once: int
    mesh: jax.sharding.Mesh | None
    record: Callable[[str, int, list[Run]], None]
    advance: Callable[[int], None]
    watch: Stopwatch

    def train(
        self, phase: str, points: Sequence[Point], dataset: Dataset, held_out: Split | None = None
    ) -> list[Run]:
        """Returns the runs of a phase, those in the order of the points.

        Args:
            phase: its name.
            points: one for each run.
            dataset: to train on.
            held_out: to score on. Default: the test images.

        Raises:
            UserError: see `jaxcnn.train.ensemble.fit_chunks`.
        """
        spread = self.mesh.shape["ensemble"] if self.mesh else 1
        size = spread * self.at_once if self.at_once else -(-len(points) // spread) * spread
        firsts = range(0, len(points), size)
        missing = [first for first in firsts if (phase, first) not in self.done]
        images = self.recipe.epochs * len(dataset.train)
        self.advance(images * sum(len(self.done.get((phase, first), ())) for first in firsts))
        known = dict(self.done)
        if missing:
            # The last chunk is filled up, and with it what one program computes.
            at = np.concatenate([np.arange(first, first + size) for first in missing])
            members = _members([points[min(index, len(points) - 1)] for index in at])
            self.watch.start()
            results = ensemble.fit_chunks(
                self.recipe,
                dataset,
                members,
                chunk=size,
                mesh=self.mesh,
                evaluate_on=held_out,
                evaluate_once=True,
                log_every=1,
                report=self._report,
            )
            for first, result in zip(missing, results, strict=True):
                self.watch.end()
                runs = _runs(result, points[first : first + size])
                self.record(phase, first, runs)
                known[phase, first] = runs
        return [run for first in firsts for run in known[phase, first]]

    def _report(self, images: int) -> None:
        self.watch.advance(images)
        self.advance(images)


def _members(points: Sequence[Point]) -> Members:
    """Returns the runs as members of an ensemble."""
    values = [hyperparameters(one) for one, _ in points]
    seeds = np.array([seed for _, seed in points])
    return Members(seeds, {name: np.array([one[name] for one in values]) for name in values[0]})


def _runs(result: ManyResult, points: Sequence[Point]) -> list[Run]:
    """Returns the runs of a chunk, of which those without a point only filled it up."""
    return [
        {
            "seed": seed,
            "diverged_at": int(result.diverged_at[member]),
            "correct": int(result.correct[member]),
            "total": int(result.total),
            "loss": _number(result.history["eval_loss"][-1, member]),
            "progress": list(map(_number, window_means(result.log["loss"][:, member]))),
        }
        for member, (_, seed) in enumerate(points)
    ]


def window_means(values: np.ndarray, windows: int = WINDOWS) -> np.ndarray:
    """Returns the means over equal windows; a value that lies in two counts in both in part.

    Args:
        values: float[N]; from the first that is not finite on, the means are NaN.
        windows: number of windows.

    Returns:
        float64[windows].
    """
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    ends = np.linspace(0, len(values), windows + 1)
    finite = np.isfinite(total)
    at = np.interp(ends, np.flatnonzero(finite), total[finite])
    at[ends > finite.sum() - 1] = np.nan
    means: np.ndarray = np.diff(at) * windows / len(values)
    return means


def _number(value: Any) -> float | None:
    """Returns a number of six digits, or None for one that is not finite."""
    return float(f"{value:.6g}") if np.isfinite(value) else None
