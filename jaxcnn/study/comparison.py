"""The results of a study: means with standard errors, paired differences, and their tables."""

import csv
import io
import itertools
from dataclasses import dataclass

import numpy as np

from jaxcnn.study.runs import Run, best_rate, select_runs
from jaxcnn.study.specification import Study


@dataclass(frozen=True)
class Summary:
    """The results of an optimizer at its best learning rate.

    Attributes:
        optimizer: its name.
        learning_rate: the one with the highest mean validation accuracy.
        at_edge: whether it is the smallest or largest of at least three tried, so that a better
            one may lie beyond.
        validation: mean accuracy on the held-out images at that rate, 0..1.
        test: mean accuracy on the test images after training on all training images, 0..1.
        standard_error: of `test`; None for a single run.
        runs: number of runs that `test` is the mean of.
        steps_to_target: optimizer steps until the target validation accuracy, counted at the end
            of epochs: the median of the runs that reach it; None if none does.
        reached: number of runs that reach the target.
        tuned: number of tuning runs at that rate.
        diverged: number of runs of this optimizer, at any rate, that diverged.
        tried: number of all runs of this optimizer.
    """

    optimizer: str
    learning_rate: float
    at_edge: bool
    validation: float
    test: float
    standard_error: float | None
    runs: int
    steps_to_target: float | None
    reached: int
    tuned: int
    diverged: int
    tried: int


@dataclass(frozen=True)
class Difference:
    """The difference of two optimizers in test accuracy, paired by seed.

    Attributes:
        optimizer: the name of the one.
        other: the name of the other, whose accuracy is subtracted.
        mean: of the differences, -1..1.
        low: lower end of the 95 % confidence interval by Student's t; None for a single pair.
        high: upper end of that interval; None for a single pair.
        pairs: number of seeds that both have.
    """

    optimizer: str
    other: str
    mean: float
    low: float | None
    high: float | None
    pairs: int


def summarize(study: Study, runs: list[Run]) -> list[Summary]:
    """Returns a summary of every optimizer, ordered by test accuracy, the highest first.

    Args:
        study: that the runs belong to.
        runs: all of them.
    """
    summaries = [_summarize(study, runs, optimizer) for optimizer in study.learning_rates]
    return sorted(summaries, key=lambda summary: -summary.test)


def differences(runs: list[Run], optimizers: list[str]) -> list[Difference]:
    """Returns the paired differences of any two optimizers.

    Runs of the same seed are a pair: they start from the same parameters and take the images in the
    same order, so what these contribute to the accuracy cancels out.

    Args:
        runs: of a study.
        optimizers: their names; each is compared with those after it.
    """
    # Imported here: it takes longer to import than the rest of this module.
    from scipy import stats

    found = []
    for optimizer, other in itertools.combinations(optimizers, 2):
        ours, theirs = (
            {run.seed: run.accuracy for run in select_runs(runs, "final", name)}
            for name in (optimizer, other)
        )
        seeds = sorted(ours.keys() & theirs.keys())
        gaps = np.array([ours[seed] - theirs[seed] for seed in seeds])
        mean, low, high = float(gaps.mean()), None, None
        if len(gaps) > 1:
            half = stats.t.ppf(0.975, len(gaps) - 1) * gaps.std(ddof=1) / len(gaps) ** 0.5
            low, high = mean - float(half), mean + float(half)
        found.append(Difference(optimizer, other, mean, low, high, len(gaps)))
    return found


def markdown_tables(study: Study, runs: list[Run]) -> str:
    """Returns the summaries and the paired differences of a study as tables in Markdown.

    Args:
        study: that the runs belong to.
        runs: all of them.
    """
    summaries = summarize(study, runs)
    lines = [
        f"| optimizer | test accuracy, mean ± standard error ({summaries[0].runs} seeds) | "
        "learning rate, best of those tried | validation accuracy | "
        f"steps to {study.target:.1%} validation accuracy | diverged runs |",
        "| --- | --- | --- | --- | --- | --- |",
        *map(_summary_row, summaries),
    ]
    names = [summary.optimizer for summary in summaries]
    if len(names) > 1:
        lines += [
            "",
            "Differences in test accuracy, row minus column in percentage points, paired by seed, "
            "with 95 % confidence intervals (Student's t, not corrected for the number of "
            "comparisons):",
            "",
            "| | " + " | ".join(names[1:]) + " |",
            "| --- " * len(names) + "|",
        ]
        cells = {(one.optimizer, one.other): _cell(one) for one in differences(runs, names)}
        for row in names[:-1]:
            columns = (cells.get((row, column), "") for column in names[1:])
            lines.append(f"| {row} | {' | '.join(columns)} |")
    return "\n".join(lines) + "\n"


def curves_csv(runs: list[Run]) -> str:
    """Returns a table in CSV with a row for every epoch of every run.

    Its columns are fields of `jaxcnn.study.runs.Run`, the epoch, counted from 1, and the step at
    its end. `correct` and `total` are those at the end of the run.
    """
    run_columns = ["phase", "optimizer", "learning_rate", "seed", "diverged_at", "correct", "total"]
    curves = ["train_loss", "train_accuracy", "validation_loss", "validation_accuracy"]
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow([*run_columns, "epoch", "step", *curves])
    for run in runs:
        for epoch in range(len(run.train_loss)):
            values = (getattr(run, name)[epoch : epoch + 1] for name in curves)
            row = [getattr(run, name) for name in run_columns]
            row += [epoch + 1, (epoch + 1) * run.steps_an_epoch]
            writer.writerow(row + ["" if v in ((), (None,)) else v[0] for v in values])
    return file.getvalue()


def _summarize(study: Study, runs: list[Run], optimizer: str) -> Summary:
    """Returns the summary of an optimizer."""
    rates = study.learning_rates[optimizer]
    rate = best_rate(study, runs, optimizer)
    tuned, final = (select_runs(runs, phase, optimizer, rate) for phase in ("tune", "final"))
    test = np.array([run.accuracy for run in final])
    steps = [count for run in tuned if (count := _steps_to(study.target, run)) is not None]
    everything = [run for run in runs if run.optimizer == optimizer]
    return Summary(
        optimizer=optimizer,
        learning_rate=rate,
        at_edge=len(rates) > 2 and rate in (min(rates), max(rates)),
        validation=float(np.mean([run.accuracy for run in tuned])),
        test=float(test.mean()),
        standard_error=float(test.std(ddof=1) / len(test) ** 0.5) if len(test) > 1 else None,
        runs=len(final),
        steps_to_target=float(np.median(steps)) if steps else None,
        reached=len(steps),
        tuned=len(tuned),
        diverged=sum(run.diverged_at > 0 for run in everything),
        tried=len(everything),
    )


def _steps_to(target: float, run: Run) -> int | None:
    for epoch, accuracy in enumerate(run.validation_accuracy, start=1):
        if accuracy is not None and accuracy >= target:
            return epoch * run.steps_an_epoch
    return None


def _summary_row(one: Summary) -> str:
    error = "" if one.standard_error is None else f" ± {100 * one.standard_error:.2f}"
    edge = " (at the edge)" if one.at_edge else ""
    steps = "not reached"
    if one.steps_to_target is not None:
        steps = f"{one.steps_to_target:,.0f} ({one.reached} of {one.tuned} runs)"
    return (
        f"| {one.optimizer} | {100 * one.test:.2f}{error} % | {one.learning_rate:g}{edge} | "
        f"{one.validation:.2%} | {steps} | {one.diverged} of {one.tried} |"
    )


def _cell(difference: Difference) -> str:
    mean = f"{100 * difference.mean:+.2f}"
    if difference.low is None or difference.high is None:
        return mean
    cell = f"{mean} ({100 * difference.low:+.2f} to {100 * difference.high:+.2f})"
    return f"**{cell}**" if difference.low > 0 or difference.high < 0 else cell
