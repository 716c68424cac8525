import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.optim import schedules
from jaxcnn.recipes import named
from jaxcnn.recipes.named import get_args
from jaxcnn.recipes.recipe import Recipe, ScheduleName

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

BASE = named.recipe("mnist", "reference")


def rates_of(recipe: Recipe, total_steps: int) -> np.ndarray:
    """The learning rate at every step, and at the one after the last."""
    schedule = schedules.make_schedule(recipe, total_steps)
    return np.array(jax.jit(jax.vmap(schedule))(jnp.arange(total_steps + 1)))


@pytest.mark.parametrize(
    "schedule", ["constant", "cosine", "linear", "trapezoid", "exponential", "steps"]
)
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_schedules(schedule: str, warmup: float) -> None:
    recipe = BASE.replace(schedule=schedule, warmup=warmup, learning_rate=0.5)
    rates = rates_of(recipe, 100)
    # Each rate takes a few float32 operations on numbers up to 1: 6e-8 each.
    assert rates.max() == pytest.approx(0.5)
    if warmup:
        np.testing.assert_allclose(rates[:10], 0.05 * np.arange(1, 11), rtol=1e-5)
    else:
        assert rates[0] == pytest.approx(0.5)
    rest = np.arange(101 - 100 * warmup) / (100 - 100 * warmup)
    expected = {
        "constant": np.ones_like(rest),
        "cosine": (1 + np.cos(np.pi * rest)) / 2,
        "linear": 1 - rest,
        "trapezoid": np.minimum(1, 5 * (1 - rest)),
        "exponential": 0.01**rest,
        "steps": np.where(rest < 0.5, 1, np.where(rest < 0.744, 0.1, 0.01)),
    }[schedule]
    np.testing.assert_allclose(rates[round(100 * warmup) :], 0.5 * expected, atol=2e-6)


@pytest.mark.parametrize(("warmup", "top"), [(0.0, 30), (0.5, 50)])
def test_one_cycle(warmup: float, top: int) -> None:
    recipe = BASE.replace(schedule="onecycle", warmup=warmup, learning_rate=0.5)
    rates = rates_of(recipe, 100)
    assert rates.argmax() == top
    assert rates.max() == pytest.approx(0.5)
    assert rates[0] == pytest.approx(0.02)
    assert (np.diff(rates[:top]) > 0).all()
    assert (np.diff(rates[top:]) < 0).all()
    assert rates[-1] < 1e-4


@pytest.mark.parametrize("schedule", get_args(ScheduleName))
def test_a_run_of_one_step(schedule: str) -> None:
    recipe = BASE.replace(schedule=schedule, warmup=0.9)
    assert rates_of(recipe, 1)[0] > 0


def test_a_single_step_has_the_peak() -> None:
    rates = rates_of(BASE.replace(schedule="linear", learning_rate=1.0), 1)
    np.testing.assert_array_equal(rates, [1.0, 0.0])


def test_a_trapezoid_of_no_whole_fifth_falls_to_zero() -> None:
    rates = rates_of(BASE.replace(schedule="trapezoid", learning_rate=1.0), 12)
    np.testing.assert_allclose(rates, [1.0] * 10 + [2 / 3, 1 / 3, 0.0], atol=1e-6)


def test_another_learning_rate_takes_the_place_of_the_recipe_s() -> None:
    recipe = BASE.replace(schedule="linear", learning_rate=0.5)
    schedule = schedules.make_schedule(recipe, 10, learning_rate=0.25)
    assert float(schedule(5)) == 0.125
    assert float(schedules.make_schedule(recipe, 10)(5)) == 0.25
