import numpy as np
import pytest

from jaxcnn import recipes, schedules

# Optax's own arithmetic mixes dtypes.
pytestmark = pytest.mark.loose_promotion

BASE = recipes.get("mnist", "reference")


@pytest.mark.parametrize(
    "schedule", ["constant", "cosine", "linear", "trapezoid", "exponential", "steps"]
)
@pytest.mark.parametrize("warmup", [0.0, 0.1])
def test_schedules(schedule: str, warmup: float) -> None:
    recipe = BASE.replace(schedule=schedule, warmup=warmup, learning_rate=0.5)
    rates = np.array([schedules.make_schedule(recipe, 100)(step) for step in range(101)])
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
    rates = np.array([schedules.make_schedule(recipe, 100)(step) for step in range(101)])
    assert rates.argmax() == top
    assert rates[0] == pytest.approx(0.02)
    assert (np.diff(rates[:top]) > 0).all()
    assert (np.diff(rates[top:]) < 0).all()
    assert rates[-1] < 1e-4


@pytest.mark.parametrize("schedule", recipes.get_args(recipes.ScheduleName))
def test_a_run_of_one_step(schedule: str) -> None:
    recipe = BASE.replace(schedule=schedule, warmup=0.9)
    assert float(schedules.make_schedule(recipe, 1)(0)) > 0
