"""The plots of a study and of learning rate range tests."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.display import drawing
from jaxcnn.display.drawing import Axes, style_axes, use_log_scale
from jaxcnn.errors import WORKDIR_REMEDY
from jaxcnn.study import comparison
from jaxcnn.study.rate_range import RateRange
from jaxcnn.study.runs import Run, select_runs
from jaxcnn.study.specification import Study

# Colours that colour-blind readers can distinguish; further optimizers differ by their markers.
_COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31"]
_MARKERS = "osD^vPX*"

# The accuracy of guessing one of ten classes.
_CHANCE = 0.1


def write_plots(study: Study, runs: list[Run], folder: Path) -> list[Path]:
    """Writes three plots: learning curves, accuracy by learning rate, and time to the target.

    Args:
        study: that the runs belong to.
        runs: all of them.
        folder: to write PNG files into.

    Returns:
        The paths of the files.

    Raises:
        WriteError: a file cannot be written.
    """
    plots: dict[str, Callable[[Axes, Study, list[Run]], None]] = {
        "learning-curves": _learning_curves,
        "learning-rates": _learning_rates,
        "time-to-target": _time_to_target,
    }
    figures = {}
    with drawing.own_settings():
        for name, draw in plots.items():
            figures[name], axes = drawing.subplots(figsize=(8, 4.8))
            draw(axes, study, runs)
        return list(drawing.save(figures, folder).values())


def write_rate_plot(
    ranges: Sequence[RateRange], title: str, folder: Path, remedy: str = WORKDIR_REMEDY
) -> Path:
    """Writes find-rate.png, held-out loss by learning rate for each optimizer.

    Args:
        ranges: of different optimizers, at least one.
        title: the network and what else the runs have in common.
        folder: to write into.
        remedy: the advice of an error, see `jaxcnn.errors.writing`.

    Raises:
        WriteError: the file cannot be written.
    """
    with drawing.own_settings():
        figure, axes = drawing.subplots(figsize=(8, 4.8))
        _rate_ranges(axes, ranges, title)
        return drawing.save({"find-rate": figure}, folder, remedy)["find-rate"]


def _rate_ranges(axes: Axes, ranges: Sequence[RateRange], title: str) -> None:
    """Draws held-out loss against the learning rate, diverged rates, and the suggestions."""
    for index, found in enumerate(ranges):
        style = _style(index)
        # Above guessing only divergence differs, and it would flatten the rest.
        losses = np.minimum(np.nan_to_num(found.losses, nan=found.guessing), found.guessing)
        trained, lost = ~found.diverged, found.diverged
        axes.plot(found.rates, losses, color=style["color"])
        axes.plot(found.rates[trained], losses[trained], linestyle="", **style)
        axes.plot(found.rates[lost], losses[lost], "x", color=style["color"], alpha=0.6)
        label = f"{found.optimizer}: none"
        if found.suggestion is not None:
            label = f"{found.optimizer}: {found.suggestion:g}"
            point = style | {"markersize": 11, "markeredgecolor": "black", "zorder": 3}
            axes.plot([found.suggestion], [found.loss], **point)
        axes.plot([], [], label=label, **style)
    axes.plot([], [], "x", color="0.4", label="diverged")
    dotted: dict[str, Any] = {"color": "0.4", "linewidth": 1, "linestyle": ":", "zorder": 1}
    axes.axhline(ranges[0].guessing, label="guessing", **dotted)
    axes.set_xscale("log")
    use_log_scale(axes)
    axes.set(xlabel="learning rate", ylabel=f"held-out loss after {ranges[0].steps} steps, nats")
    axes.set_title(f"Learning rate range test, {title}")
    style_axes(axes, grid="both")
    axes.legend(frameon=False, title="suggested rate", loc="lower left")


def _learning_curves(axes: Axes, study: Study, runs: list[Run]) -> None:
    """Draws validation accuracy after every epoch, at each optimizer's best learning rate."""
    for style, summary in _styled(study, runs):
        tuned = select_runs(runs, "tune", summary.optimizer, summary.learning_rate)
        curves = np.array([run.validation_accuracy for run in tuned], float)
        curves = np.where(np.isnan(curves), _CHANCE, curves)  # a diverged run guesses
        epochs = np.arange(1, curves.shape[1] + 1)
        mean, error = _mean_and_error(curves)
        axes.plot(epochs, 100 * mean, label=summary.optimizer, **style)
        axes.fill_between(
            epochs, 100 * (mean - error), 100 * (mean + error), color=style["color"], alpha=0.15
        )
    axes.set_xticks(range(1, study.recipe.epochs + 1))
    axes.set(xlabel="epoch", ylabel="validation accuracy, %")
    axes.set_title("Learning curves at the best learning rates (band: standard error)")
    style_axes(axes, grid="y")
    axes.legend(frameon=False, ncols=2, loc="lower right")


def _learning_rates(axes: Axes, study: Study, runs: list[Run]) -> None:
    """Draws validation error at the end against the learning rate."""
    for style, summary in _styled(study, runs):
        rates = np.array(study.learning_rates[summary.optimizer])
        means, errors = [], []
        for rate in rates:
            accuracies = [
                run.accuracy for run in select_runs(runs, "tune", summary.optimizer, rate)
            ]
            mean, error = _mean_and_error(np.array(accuracies)[:, None])
            means.append(100 * (1 - mean[0]))
            errors.append(100 * error[0])
        axes.errorbar(rates, means, errors, label=summary.optimizer, capsize=2, **style)
    axes.set_xscale("log")
    use_log_scale(axes)
    axes.set(xlabel="learning rate", ylabel="validation error at the end, %")
    axes.set_title("Error by learning rate (bars: standard error; diverged runs are chance)")
    style_axes(axes, grid="both")
    axes.legend(frameon=False, ncols=2)


def _time_to_target(axes: Axes, study: Study, runs: list[Run]) -> None:
    """Draws the number of optimizer steps to the target validation accuracy."""
    styled = list(_styled(study, runs))[::-1]
    highest = max((summary.steps_to_target or 0 for _, summary in styled), default=0) or 1
    for position, (style, summary) in enumerate(styled):
        label = f"not reached by {summary.tuned} runs"
        if summary.steps_to_target is not None:
            axes.barh(position, summary.steps_to_target, color=style["color"], height=0.65)
            label = f"{summary.steps_to_target:,.0f} ({summary.reached} of {summary.tuned} runs)"
        place = (summary.steps_to_target or 0) + 0.01 * highest
        axes.text(place, position, label, va="center", fontsize=9)
    axes.set_yticks(range(len(styled)), [summary.optimizer for _, summary in styled])
    axes.set_xlim(0, 1.3 * highest)
    axes.set_ylim(-0.5, len(styled) - 0.5)  # Room for labels without a bar.
    axes.set(xlabel="optimizer steps (median, counted at the end of epochs)")
    axes.set_title(f"Time to {study.target:.1%} validation accuracy")
    style_axes(axes)


def _styled(study: Study, runs: list[Run]) -> list[tuple[dict[str, Any], comparison.Summary]]:
    """Returns the summaries, best first, each with its colour and marker."""
    names = list(study.learning_rates)
    return [
        (_style(names.index(summary.optimizer)), summary)
        for summary in comparison.summarize(study, runs)
    ]


def _style(index: int) -> dict[str, Any]:
    """Returns the colour and marker of an optimizer by its place; 64 differ in one of the two."""
    colour = _COLOURS[index % len(_COLOURS)]
    marker = _MARKERS[(index + index // len(_COLOURS)) % len(_MARKERS)]
    return {"color": colour, "marker": marker, "markersize": 5}


def _mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean over the rows and its standard error, zero for a single row."""
    error = values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0 * values[0]
    return values.mean(0), error
