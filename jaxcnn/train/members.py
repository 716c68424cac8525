"""The members of an ensemble: their seeds and hyperparameters."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxcnn.train.setup import checked_seeds


@dataclass(frozen=True)
class Members:
    """The runs of an ensemble.

    Attributes:
        seeds: uint32[E].
        hyperparameters: float32[E] by name; see `jaxcnn.optim.factory.make_optimizer`.

    Raises:
        UserError: a seed is not a whole number in 0..2**32 - 1.
        ValueError: a hyperparameter has another shape than the seeds.
    """

    seeds: np.ndarray
    hyperparameters: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "seeds", checked_seeds(self.seeds))
        arrays = {k: np.asarray(v, np.float32) for k, v in self.hyperparameters.items()}
        object.__setattr__(self, "hyperparameters", arrays)
        for name, array in arrays.items():
            if array.shape != self.seeds.shape:
                raise ValueError(f"{name} has shape {array.shape}, the seeds {self.seeds.shape}")

    def __len__(self) -> int:
        return len(self.seeds)

    def take(self, indices: Any) -> "Members":
        """Returns the members at some positions, an integer array or a list."""
        arrays = {name: array[indices] for name, array in self.hyperparameters.items()}
        return Members(self.seeds[indices], arrays)


def grid(seeds: Sequence[int], **hyperparameters: Sequence[float]) -> Members:
    """Returns every combination of seeds and hyperparameters; the seeds vary fastest.

    Args:
        seeds: of each combination.
        **hyperparameters: the values of each, by name.

    Raises:
        ValueError: there is no seed, or no value of a hyperparameter.
    """
    rows = list(itertools.product(*hyperparameters.values(), seeds))
    if not rows:
        raise ValueError("a grid takes at least one seed and one value of every hyperparameter")
    columns = list(zip(*rows, strict=True))
    arrays = dict(zip(hyperparameters, map(np.array, columns[:-1]), strict=True))
    return Members(np.array(columns[-1]), arrays)
