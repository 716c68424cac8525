import json
import math
from typing import Any

import numpy as np
import pytest

from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import UserError
from jaxcnn.study import rate_range
from jaxcnn.study.rate_range import RateRange, find_rate, make_rates, suggest_rate
from jaxcnn.train.ensemble import fit_many
from tests.linear import Linear
from tests.study.conftest import RECIPE

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

SGD = RECIPE.replace(optimizer="sgd", momentum=0.0, ema=0.5)
GUESSING = math.log(10)
RATES = np.geomspace(1e-3, 10, 5)


def test_the_smallest_rate_within_a_tenth_of_the_least_loss() -> None:
    assert suggest_rate(RATES, np.array([1.0, 0.5, 0.2, 0.5, 1.0]), GUESSING) == RATES[2]
    assert suggest_rate(RATES, np.array([np.nan, 0.5, 0.4, np.inf, np.nan]), GUESSING) == RATES[2]
    assert suggest_rate(RATES, np.array([0.5, 0.23, 0.215, 0.2, np.nan]), GUESSING) == RATES[2]


@pytest.mark.parametrize("loss", [np.nan, np.inf, 5.0, 2.2])
def test_where_nothing_was_learnt_nothing_is_suggested(loss: float) -> None:
    assert suggest_rate(RATES, np.full(5, loss), GUESSING) is None


def test_rates() -> None:
    rates = make_rates(SGD.replace(learning_rate=0.02))
    assert len(rates) == 19
    np.testing.assert_array_equal(rates[[0, 9, 18]], [2e-5, 0.02, 20])
    np.testing.assert_allclose(rates[1:] / rates[:-1], 10 ** (1 / 3), rtol=0.01)
    np.testing.assert_array_equal(make_rates(SGD, 0.5, 2, 3), [0.5, 1, 2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0.0}, "0 < low < high"),
        ({"high": math.inf}, "0 < low < high"),
        ({"low": 2.0, "high": 1.0}, "got 2 and 1"),
        ({"count": 2}, "--rates takes a whole number from 3"),
        ({"steps": 0}, "--steps takes a whole number from 1"),
    ],
)
def test_impossible_ranges(options: Any, message: str, tiny_mnist: Dataset) -> None:
    with pytest.raises(UserError, match=message):
        find_rate(SGD, tiny_mnist, **options)


def test_a_range(tiny_mnist: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def spy(recipe: Any, dataset: Any, members: Any, **options: Any) -> Any:
        calls.append((recipe, dataset, members, options))
        return fit_many(recipe, dataset, members, **options)

    monkeypatch.setattr("jaxcnn.study.rate_range.fit_many", spy)
    shares: list[float] = []
    options = {"low": 1e-6, "high": 1e6, "count": 7, "seed": 3, "report": shares.append}
    found = find_rate(SGD, tiny_mnist, steps=12, model=Linear(), **options)
    recipe, dataset, members, asked = calls[0]
    np.testing.assert_allclose(found.rates, [1e-6, 1e-4, 0.01, 1, 100, 1e4, 1e6])
    np.testing.assert_array_equal(members.hyperparameters["learning_rate"], np.float32(found.rates))
    assert members.seeds.tolist() == 7 * [3]
    # 297 images are left, nine batches of 30: twelve steps are two passes over six batches.
    assert (recipe.epochs, len(dataset.train), found.steps) == (2, 180, 12)
    assert (recipe.schedule, recipe.warmup, recipe.ema) == (SGD.schedule, SGD.warmup, 0)
    held_out = {image.tobytes() for image in asked["evaluate_on"].images}
    assert len(held_out) == 33
    training = {image.tobytes() for image in tiny_mnist.train.images}
    assert held_out < training
    assert {image.tobytes() for image in dataset.train.images} < training - held_out
    assert sum(shares) == pytest.approx(1)
    # A linear network learns the stripes at 0.01 to 100, hardly at 1e-6, and is lost at 1e6.
    assert found.suggestion in (0.01, 1, 100)
    assert found.loss == found.losses[found.rates.tolist().index(found.suggestion)] < 1
    assert found.learns_from is not None
    assert 1e-6 < found.learns_from <= found.suggestion
    assert found.diverged.tolist()[:3] == [False] * 3  # hardly trained is not diverged
    assert found.diverged[-1]
    assert found.train_losses.shape == (7,)
    assert not found.at_edge


def test_one_pass_or_300_steps_by_default(tiny_mnist: Dataset) -> None:
    recipe, dataset = rate_range._shorten(SGD, tiny_mnist, None)
    assert (recipe.epochs, len(dataset.train)) == (1, 330)
    recipe, dataset = rate_range._shorten(SGD.replace(batch_size=1), tiny_mnist, None)
    assert (recipe.epochs, len(dataset.train)) == (1, 300)
    recipe, dataset = rate_range._shorten(SGD.replace(batch_size=100), tiny_mnist, 7)
    assert (recipe.epochs, len(dataset.train)) == (3, 300)  # nine steps, at least seven


def made_up(losses: list[float], suggestion: float | None, name: str = "sgd") -> RateRange:
    """A range of the rates 0.001 to 10."""
    array = np.array(losses, np.float32)
    lost = ~np.isfinite(array) | (((suggestion or 0) < RATES) & (array > 0.9 * GUESSING))
    return RateRange(name, 40, RATES, array + 1, array, lost, suggestion, GUESSING)


def test_what_a_range_says() -> None:
    found = made_up([2.3, 1.0, 0.1, 5.0, np.nan], RATES[2])
    assert (found.learns_from, found.diverges_from) == (RATES[1], RATES[3])
    assert found.loss == np.float32(0.1)
    assert not found.at_edge
    assert made_up([2.3, 2.3, 1.0, 0.5, 0.1], RATES[4]).at_edge
    assert made_up([0.1, 0.5, 1.0, 2.0, 2.0], RATES[0]).diverges_from is None
    none = made_up([2.3] * 5, None)
    assert (none.learns_from, none.at_edge) == (None, False)
    assert np.isnan(none.loss)


def test_a_range_as_json() -> None:
    found = json.loads(json.dumps(made_up([2.25, 1.0, 0.5, 5.0, np.nan], 0.1).asdict()))
    assert found["held_out_losses"] == [2.25, 1.0, 0.5, 5.0, None]
    assert found["train_losses"] == [3.25, 2.0, 1.5, 6.0, None]
    assert found["diverged"] == [False, False, False, True, True]
    assert (found["optimizer"], found["steps"], found["suggestion"]) == ("sgd", 40, 0.1)
    assert found["learning_rates"] == pytest.approx(RATES.tolist())
