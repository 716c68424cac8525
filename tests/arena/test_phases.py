import numpy as np
import pytest

from jaxcnn.arena.phases import window_means


@pytest.mark.parametrize("count", [5, 32, 33, 938])
def test_windows_are_equal(count: int) -> None:
    """As if every value were repeated, so that the windows begin and end at values."""
    values = np.random.default_rng(0).normal(size=count)
    wanted = np.repeat(values, 32).reshape(32, count).mean(axis=1)
    assert np.allclose(window_means(values), wanted)


def test_windows_after_a_value_that_is_not_finite_have_no_mean() -> None:
    values = np.ones(64, np.float32)
    values[10:] = np.nan
    found = window_means(values)
    assert (found[:5] == 1).all()
    assert np.isnan(found[5:]).all()
    values[0] = np.inf
    assert np.isnan(window_means(values)).all()
