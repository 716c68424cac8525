"""The plots of a study."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.display import drawing
from jaxcnn.display.drawing import Axes, style_axes, use_log_scale
from jaxcnn.study import comparison
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
    styled = []
    for summary in comparison.summarize(study, runs):
        index = names.index(summary.optimizer)
        colour = _COLOURS[index % len(_COLOURS)]
        marker = _MARKERS[(index + index // len(_COLOURS)) % len(_MARKERS)]
        styled.append(({"color": colour, "marker": marker, "markersize": 5}, summary))
    return styled


def _mean_and_error(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean over the rows and its standard error, zero for a single row."""
    error = values.std(0, ddof=1) / len(values) ** 0.5 if len(values) > 1 else 0 * values[0]
    return values.mean(0), error
