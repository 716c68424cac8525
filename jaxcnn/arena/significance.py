"""How sure a ranking is: intervals of ranks, and tests of pairs, both paired by seed.

Runs of the same seed are a pair: they start from the same parameters and take the images in the
same order, so what these contribute to the accuracy cancels out.
"""

import numpy as np

LEVEL = 0.05
"""Of significance: differences with a smaller p-value count, and intervals cover 95 %."""

_RESAMPLES = 10_000


def rank_intervals(accuracies: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks optimizers by their mean accuracy, with bootstrapped 95 % intervals.

    The seeds are drawn with replacement 10,000 times, the same ones for all optimizers, and the
    ends are percentiles of the ranks (Efron and Tibshirani, An Introduction to the Bootstrap, 1993,
    chapter 13). The draws are the same in every call.

    Args:
        accuracies: float[K, S], of K optimizers with S seeds.

    Returns:
        float[K] each: the ranks, 1 the best, the mean one for equal accuracies; the lower and the
        upper ends of the intervals.
    """
    # Imported here and below: it takes longer to import than the rest of this module.
    from scipy import stats

    seeds = accuracies.shape[1]
    drawn = np.random.default_rng(0).integers(seeds, size=(_RESAMPLES, seeds))
    # How often each seed is in each draw: a product is much quicker than gathering.
    counts = (drawn[:, :, None] == np.arange(seeds)).sum(1)
    means = np.round(accuracies @ counts.T / seeds, 12)  # equal ones stay equal
    ranks = stats.rankdata(-means, axis=0)
    low, high = np.quantile(ranks, [LEVEL / 2, 1 - LEVEL / 2], axis=1, method="inverted_cdf")
    return stats.rankdata(-np.round(accuracies.mean(1), 12)), low, high


def paired_p_values(accuracies: np.ndarray) -> np.ndarray:
    """Tests for every pair of optimizers whether their mean accuracies differ.

    By the paired t-test, corrected for the number of pairs, see `holm`. With five seeds Wilcoxon's
    signed-rank test could not find anything: its smallest p-value is 1/16 then.

    Args:
        accuracies: float[K, S], of K optimizers with S seeds, at least two.

    Returns:
        float[K, K], symmetric; 1 on the diagonal, and for optimizers with the same accuracies.
    """
    from scipy import stats

    count = len(accuracies)
    first, second = np.triu_indices(count, 1)
    one, other = accuracies[first], accuracies[second]
    # Where all differences are equal the test divides by zero; they are then certain, or zero.
    differences = one - other
    varied = np.ptp(differences, axis=1) > 1e-12
    found = np.where(np.abs(differences[:, 0]) < 1e-12, 1.0, 0.0)
    if varied.any():
        found[varied] = stats.ttest_rel(one[varied], other[varied], axis=1).pvalue
    values = np.ones((count, count))
    values[first, second] = values[second, first] = holm(found)
    return values


def holm(p_values: np.ndarray) -> np.ndarray:
    """Corrects p-values for the number of tests, so that one false finding at all is as rare.

    Args:
        p_values: float[N], of N tests.

    Returns:
        float[N], by Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian
        Journal of Statistics 6 (1979): the i-th smallest, times N - i + 1, and no less than those
        before it.
    """
    order = np.argsort(p_values, kind="stable")
    factors = len(p_values) - np.arange(len(p_values))
    corrected = np.empty(len(p_values))
    corrected[order] = np.minimum(np.maximum.accumulate(factors * p_values[order]), 1)
    return corrected
