from typing import Any

import numpy as np
import pytest

from jaxcnn.arena.spaces import RATE, Range, Space
from jaxcnn.arena.trials import best_first, draw, edge, unit_points, widened

SPACE = Space("", "", {RATE: Range(1e-3, 1e-1), "b1": Range(0.0, 1.0, "linear")}, {})


def trial(rate: float, correct: int, loss: float | None = 0.1, diverged_at: int = 0) -> Any:
    return {
        "values": {RATE: rate},
        "correct": correct,
        "loss": loss,
        "diverged_at": diverged_at,
    }


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_the_points_are_the_same_every_time_and_cover_the_cube(dimensions: int) -> None:
    points = unit_points(16, dimensions)
    assert points.shape == (16, dimensions)
    assert (points == unit_points(16, dimensions)).all()
    for column in points.T:  # one in each sixteenth, as a Sobol sequence has them
        assert sorted((16 * column).astype(int)) == list(range(16))
    for count in (1, 5, 20):
        assert (unit_points(count, dimensions)[:16] == points[:count]).all()


def test_trials_lie_in_their_space_and_share_the_points() -> None:
    trials = draw(SPACE, 8)
    assert list(trials[0]) == [RATE, "b1"]
    points = unit_points(8, 2)
    assert np.allclose(
        [SPACE.ranges[RATE].position(one[RATE]) for one in trials], points[:, 0], atol=1e-5
    )
    assert np.allclose([one["b1"] for one in trials], points[:, 1], atol=1e-5)
    beyond = draw(SPACE, 4, SPACE.ranges[RATE].extension("high"))
    assert all(0.1 <= one[RATE] <= 1 for one in beyond)
    assert [one["b1"] for one in beyond] == [one["b1"] for one in trials[:4]]


def test_the_best_trials_have_the_lowest_loss() -> None:
    assert best_first([trial(1, 7, 0.3), trial(2, 5, 0.1), trial(3, 6, 0.2)]) == [1, 2, 0]
    assert best_first([trial(1, 5, 0.1), trial(2, 6, 0.1), trial(3, 6, 0.1)]) == [1, 2, 0]
    # Those without a loss are worse, those that have diverged the worst; of these the one of the
    # lowest learning rate is the least bad guess.
    failed = [trial(rate, 9, None, 1) for rate in (3, 1, 2)]
    assert best_first([*failed, trial(4, 9, None), trial(5, 1, 8.0)]) == [4, 3, 1, 2, 0]


def test_an_edge_is_an_eighth_of_the_logarithm() -> None:
    rates = Range(1e-4, 1e4)
    found = [edge(rates, rate) for rate in (1e-4, 9e-4, 1.1e-3, 1, 9e2, 1.1e3)]
    assert found == ["low", "low", "", "", "", "high"]
    low, high = widened(rates, "low"), widened(rates, "high")
    assert np.allclose([low.low, low.high, high.low, high.high], [1e-8, 1e4, 1e-4, 1e8])
