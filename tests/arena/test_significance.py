import itertools

import numpy as np
import pytest
from scipy import stats

from jaxcnn.arena import significance


def test_ranks_and_their_intervals() -> None:
    # The first is the best with every seed, the next two change places with the seeds.
    accuracies = np.array(
        [[0.99, 0.98, 0.99, 0.98], [0.97, 0.95, 0.97, 0.95], [0.95, 0.97, 0.95, 0.969]]
    )
    ranks, low, high = significance.rank_intervals(accuracies)
    assert ranks.tolist() == [1, 2, 3]
    assert low.tolist() == [1, 2, 2]
    assert high.tolist() == [1, 3, 3]
    again = significance.rank_intervals(accuracies)
    np.testing.assert_array_equal(np.array(again), [ranks, low, high])


def test_equal_optimizers_share_a_rank() -> None:
    ranks, low, high = significance.rank_intervals(np.array([[0.1, 0.7], [0.7, 0.1], [0.9, 0.9]]))
    assert ranks.tolist() == [2.5, 2.5, 1]
    assert low.tolist() == [2, 2, 1]
    assert high.tolist() == [3, 3, 1]


def test_intervals_are_those_of_all_draws() -> None:
    """With three seeds there are 27 equally likely draws, of which 10,000 leave nothing out."""
    accuracies = np.random.default_rng(3).normal(0.9, 0.01, (4, 3))
    draws = np.array(list(itertools.product(range(3), repeat=3)))
    ranks = stats.rankdata(-accuracies[:, draws].mean(2), axis=0)
    exact = np.quantile(ranks, [0.025, 0.975], axis=1, method="inverted_cdf")
    np.testing.assert_array_equal(np.array(significance.rank_intervals(accuracies)[1:]), exact)


def test_pairs_are_tested_by_seed() -> None:
    """Seeds matter more than optimizers here, and cancel out."""
    seeds = np.array([0.90, 0.95, 0.85, 0.92, 0.88])
    noise = 1e-4 * np.array([1, -1, 2, -2, 0.5])
    values = significance.paired_p_values(np.array([seeds, seeds + 0.005 + noise, seeds - noise]))
    plain = [stats.ttest_rel(seeds, seeds + 0.005 + noise).pvalue]
    plain += [stats.ttest_rel(seeds + 0.005 + noise, seeds - noise).pvalue]
    assert values[0, 1] == pytest.approx(3 * min(plain))
    assert values[1, 2] == pytest.approx(2 * max(plain))
    assert values[0, 2] > 0.5
    np.testing.assert_array_equal(values, values.T)
    np.testing.assert_array_equal(values.diagonal(), 1)


def test_pairs_whose_differences_are_all_equal() -> None:
    accuracies = np.array([[0.5, 0.75], [0.5, 0.75], [0.25, 0.5]])
    assert significance.paired_p_values(accuracies).tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 1]]


def test_holm() -> None:
    # 4 x 0.01, 3 x 0.02 = 0.06, 2 x 0.025 is less than that before it, 1 x 0.9.
    found = significance.holm(np.array([0.02, 0.9, 0.01, 0.025]))
    np.testing.assert_allclose(found, [0.06, 0.9, 0.04, 0.06])
    np.testing.assert_allclose(significance.holm(np.array([0.6, 0.7])), [1, 1])
