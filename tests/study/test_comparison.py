import csv
import dataclasses
import io

import numpy as np
import pytest
from scipy import stats

from jaxcnn.recipes.named import recipe
from jaxcnn.study import comparison
from jaxcnn.study.runs import Run
from jaxcnn.study.specification import Study

RATES = {"sgd": (0.1, 0.2, 0.4), "adam": (0.001, 0.002, 0.004)}
STUDY = Study(recipe("mnist", "fast").replace(epochs=2), RATES, 2, 4, target=0.9)


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


def made_up() -> list[Run]:
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


@pytest.fixture
def runs() -> list[Run]:
    return made_up()


def test_summaries(runs: list[Run]) -> None:
    sgd, adam = comparison.summarize(STUDY, runs)
    assert (sgd.optimizer, sgd.learning_rate, sgd.at_edge) == ("sgd", 0.2, False)
    assert (adam.optimizer, adam.learning_rate, adam.at_edge) == ("adam", 0.004, True)
    assert sgd.test == pytest.approx(0.905)
    assert sgd.standard_error == pytest.approx(stats.sem([0.9, 0.91, 0.92, 0.89]))
    assert (sgd.steps_to_target, sgd.reached, sgd.tuned) == (15, 2, 2)
    assert (adam.steps_to_target, adam.reached) == (None, 0)
    assert (sgd.diverged, sgd.tried) == (2, 10)
    assert (sgd.runs, sgd.validation, adam.validation) == (4, 0.95, 0.8)
    assert (adam.diverged, adam.tried) == (0, 10)


def test_two_seeds_have_a_standard_error(runs: list[Run]) -> None:
    sgd, _ = comparison.summarize(STUDY, [run for run in runs if run.seed < 2])
    assert (sgd.runs, sgd.standard_error) == (2, pytest.approx(stats.sem([0.9, 0.91])))


def test_the_edge_is_one_of_three_or_more(runs: list[Run]) -> None:
    for tried, best, at_edge in (
        ((0.2,), 0.2, False),
        ((0.1, 0.2), 0.2, False),
        ((0.4, 0.1, 0.2), 0.2, False),
        ((0.05, 0.1, 0.2), 0.2, True),
        ((0.2, 0.4, 0.5), 0.2, True),
    ):
        plan = dataclasses.replace(STUDY, learning_rates={"sgd": tried})
        more = [tuned("sgd", rate, 0, (0.1, 0.2)) for rate in (0.05, 0.5)]
        (one,) = comparison.summarize(plan, runs + more)
        assert (one.learning_rate, one.at_edge) == (best, at_edge)


def test_the_target_may_just_be_reached(runs: list[Run]) -> None:
    """Of the runs that get there, the median of the steps."""
    for target, steps, reached in ((0.95, 20, 2), (0.951, None, 0), (0.91, 15, 2), (0.8, 10, 2)):
        plan = dataclasses.replace(STUDY, target=target, learning_rates={"sgd": (0.2,)})
        (one,) = comparison.summarize(plan, runs)
        assert (one.steps_to_target, one.reached) == (steps, reached)


def test_differences_are_paired(runs: list[Run]) -> None:
    (one,) = comparison.differences(runs, ["sgd", "adam"])
    gaps = [0.02, 0.005, 0.03, 0.005]
    interval = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert one.mean == pytest.approx(np.mean(gaps))
    assert (one.low, one.high) == pytest.approx((interval.low, interval.high))
    assert one.pairs == 4
    (reverse,) = comparison.differences(runs, ["adam", "sgd"])
    assert reverse.mean == pytest.approx(-one.mean)
    assert (reverse.low, reverse.high) == pytest.approx((-one.high, -one.low))
    # A seed that only one of them has is not paired.
    (fewer,) = comparison.differences(runs[:-1], ["sgd", "adam"])
    assert (fewer.pairs, fewer.mean) == (3, pytest.approx(np.mean(gaps[:3])))
    (two,) = comparison.differences([run for run in runs if run.seed < 2], ["sgd", "adam"])
    interval = stats.ttest_1samp(gaps[:2], 0).confidence_interval(0.95)
    assert (two.low, two.high) == pytest.approx((interval.low, interval.high))


def test_a_single_seed_has_no_interval(runs: list[Run]) -> None:
    some = [run for run in runs if run.phase == "tune" or run.seed == 0]
    (one,) = comparison.differences(some, ["sgd", "adam"])
    assert (one.low, one.high) == (None, None)
    assert (
        "± "
        not in comparison.markdown_tables(dataclasses.replace(STUDY, seeds=1), some).split("|\n")[2]
    )


def test_the_table(runs: list[Run]) -> None:
    table = comparison.markdown_tables(STUDY, runs)
    assert "| sgd | 90.50 ± 0.65 % | 0.2 | 95.00% | 15 (2 of 2 runs) | 2 of 10 |" in table
    assert (
        "| adam | 89.00 ± 0.54 % | 0.004 (at the edge) | 80.00% | not reached | 0 of 10 |" in table
    )
    assert "| sgd | +1.50 (-0.45 to +3.45) |" in table
    assert table.startswith("| optimizer | test accuracy, mean ± standard error (4 seeds) | ")
    assert "| steps to 90.0% validation accuracy | diverged runs |\n" in table
    assert "\n\nDifferences in test accuracy, row minus column in percentage points" in table
    assert "\n| | adam |\n| --- | --- |\n| sgd | " in table
    alone = dataclasses.replace(STUDY, learning_rates={"sgd": RATES["sgd"]})
    assert (
        len(comparison.markdown_tables(alone, runs).splitlines()) == 3
    )  # there is nothing to compare


def test_differences_that_are_beyond_chance_are_bold() -> None:
    """Of three optimizers, each but the last is compared with all after it."""
    plan = dataclasses.replace(STUDY, learning_rates={"sgd": (0.2,), "adam": (0.1,), "lion": (1,)})
    runs = [tuned(name, rate, 0, (0.5, 0.6)) for name, (rate,) in plan.learning_rates.items()]
    for seed in range(3):
        runs += [final("sgd", 0.2, seed, 900 + seed), final("adam", 0.1, seed, 800 + seed)]
        runs.append(final("lion", 1, seed, 799 + 10 * (seed - 1)))
    *_, row, last = comparison.markdown_tables(plan, runs).splitlines()
    assert row.startswith("| sgd | **+10.00 (+10.00 to +10.00)** | **+10.20 (")
    assert last == "| adam |  | +0.20 (-2.04 to +2.44) |"
    worse = [dataclasses.replace(run, correct=1000 - run.correct) for run in runs]
    *_, row, last = comparison.markdown_tables(plan, worse).splitlines()
    assert row.startswith("| lion | +0.20 (")
    assert last == "| adam |  | **+10.00 (+10.00 to +10.00)** |"
    (first, *_) = comparison.differences(runs, ["adam", "sgd"])
    assert comparison._cell(first) == "**-10.00 (-10.00 to -10.00)**"


def test_tidy_rows(runs: list[Run]) -> None:
    rows = list(csv.DictReader(io.StringIO(comparison.curves_csv(runs))))
    assert len(rows) == 2 * len(runs)
    diverged = next(row for row in rows if row["diverged_at"] == "7" and row["epoch"] == "2")
    assert (diverged["validation_accuracy"], diverged["step"]) == ("", "20")
    last = rows[-1]
    assert (last["phase"], last["validation_loss"], last["train_loss"]) == ("final", "", "0.5")
    assert [last[name] for name in ("epoch", "step", "seed", "correct")] == ["2", "24", "3", "885"]
    header = "phase optimizer learning_rate seed diverged_at correct total epoch step train_loss"
    header += " train_accuracy validation_loss validation_accuracy"
    assert list(last) == header.split()
    assert [rows[0]["epoch"], rows[0]["step"], rows[0]["validation_loss"]] == ["1", "10", "0.5"]
