import dataclasses
from typing import Any

import numpy as np
import pytest

from jaxcnn.errors import UserError
from jaxcnn.train.members import Members, grid
from tests.train.test_ensemble import EVEN, MEMBERS, check_history, fit
from tests.train.test_fit import fit as fit_alone


def test_grid() -> None:
    members = grid([5, 6], learning_rate=[0.1, 0.2], b1=[0.9])
    assert members.seeds.tolist() == [5, 6, 5, 6]
    np.testing.assert_allclose(members.hyperparameters["learning_rate"], [0.1, 0.1, 0.2, 0.2])
    np.testing.assert_allclose(members.hyperparameters["b1"], 0.9)
    assert grid([1, 2]).seeds.tolist() == [1, 2]
    taken = members.take([2, 0])
    assert taken.seeds.tolist() == [5, 5]
    np.testing.assert_allclose(taken.hyperparameters["learning_rate"], [0.2, 0.1])
    with pytest.raises(ValueError, match="b1 has shape"):
        Members(np.arange(2), {"b1": np.arange(3)})
    with pytest.raises(ValueError, match="at least one seed"):
        grid([])


def test_seeds_of_all_32_bits() -> None:
    seed = 2**32 - 1
    members = dataclasses.replace(MEMBERS.take([0]), seeds=np.array([seed]))
    check_history(fit(members), 0, fit_alone(EVEN, seed=seed))


@pytest.mark.parametrize("seeds", [[0, -1], [0, 2**32], np.array([0, -1])])
def test_seeds_that_would_be_taken_for_others(seeds: Any) -> None:
    with pytest.raises(UserError, match=r"the seed .*, at position 1, is not a whole number"):
        grid(seeds)
