import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from jaxcnn import comparison, plots, recipes
from jaxcnn.study import Run, Study

RATES = {"sgd": (0.1, 0.2, 0.4), "adam": (0.001, 0.002, 0.004)}
STUDY = Study(recipes.get("mnist", "fast").replace(epochs=2), RATES, 2, 4, target=0.9)


def tuned(optimizer: str, rate: float, seed: int, curve: tuple[float | None, ...]) -> Run:
    end = curve[-1] or 0.1
    diverged = 7 if None in curve else 0
    return Run(
        "tune",
        optimizer,
        rate,
        seed,
        10,
        diverged,
        round(1000 * end),
        1000,
        curve,
        curve,
        curve,
        curve,
    )


def final(optimizer: str, rate: float, seed: int, correct: int) -> Run:
    return Run("final", optimizer, rate, seed, 12, 0, correct, 1000, (1.0, 0.5), (0.6, 0.8))


@pytest.fixture
def runs() -> list[Run]:
    """SGD is best in the middle and reaches the target, Adam is best at the edge and does not."""
    found = []
    for seed in (0, 1):
        found += [
            tuned("sgd", 0.1, seed, (0.5, 0.8)),
            tuned("sgd", 0.2, seed, (0.91 - seed / 10, 0.95)),
            tuned("sgd", 0.4, seed, (0.3, None)),
            tuned("adam", 0.001, seed, (0.5, 0.6)),
            tuned("adam", 0.002, seed, (0.5, 0.7)),
            tuned("adam", 0.004, seed, (0.5, 0.8)),
        ]
    for seed, (one, other) in enumerate([(900, 880), (910, 905), (920, 890), (890, 885)]):
        found += [final("sgd", 0.2, seed, one), final("adam", 0.004, seed, other)]
    return found


def test_summaries(runs: list[Run]) -> None:
    sgd, adam = comparison.summarize(STUDY, runs)
    assert (sgd.optimizer, sgd.learning_rate, sgd.at_edge) == ("sgd", 0.2, False)
    assert (adam.optimizer, adam.learning_rate, adam.at_edge) == ("adam", 0.004, True)
    assert sgd.test == pytest.approx(0.905)
    assert sgd.standard_error == pytest.approx(stats.sem([0.9, 0.91, 0.92, 0.89]))
    assert (sgd.steps_to_target, sgd.reached, sgd.tuned) == (15, 2, 2)
    assert (adam.steps_to_target, adam.reached) == (None, 0)
    assert (sgd.diverged, sgd.tried) == (2, 10)
    assert (adam.diverged, adam.tried) == (0, 10)


def test_differences_are_paired(runs: list[Run]) -> None:
    (one,) = comparison.differences(runs, ["sgd", "adam"])
    gaps = [0.02, 0.005, 0.03, 0.005]
    interval = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert one.mean == pytest.approx(np.mean(gaps))
    assert (one.low, one.high) == pytest.approx((interval.low, interval.high))
    assert one.pairs == 4
    (reverse,) = comparison.differences(runs, ["adam", "sgd"])
    assert reverse.mean == pytest.approx(-one.mean)


def test_a_single_seed_has_no_interval(runs: list[Run]) -> None:
    some = [run for run in runs if run.phase == "tune" or run.seed == 0]
    (one,) = comparison.differences(some, ["sgd", "adam"])
    assert (one.low, one.high) == (None, None)
    assert (
        "± " not in comparison.markdown(dataclasses.replace(STUDY, seeds=1), some).split("|\n")[2]
    )


def test_the_table(runs: list[Run]) -> None:
    table = comparison.markdown(STUDY, runs)
    assert "| sgd | 90.50 ± 0.65 % | 0.2 | 95.00% | 15 (2 of 2 runs) | 2 of 10 |" in table
    assert (
        "| adam | 89.00 ± 0.54 % | 0.004 (at the edge) | 80.00% | not reached | 0 of 10 |" in table
    )
    assert "| sgd | +1.50 (-0.45 to +3.45) |" in table


def test_tidy_rows(runs: list[Run], tmp_path: Path) -> None:
    comparison.write_csv(tmp_path / "curves.csv", runs)
    with (tmp_path / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * len(runs)
    diverged = next(row for row in rows if row["diverged_at"] == "7" and row["epoch"] == "2")
    assert (diverged["validation_accuracy"], diverged["step"]) == ("", "20")
    last = rows[-1]
    assert (last["phase"], last["validation_loss"], last["train_loss"]) == ("final", "", "0.5")


def test_pictures(runs: list[Run], tmp_path: Path) -> None:
    paths = plots.write(STUDY, runs, tmp_path)
    assert [path.name for path in paths] == [
        "learning-curves.png",
        "learning-rates.png",
        "time-to-target.png",
    ]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths)
