"""The figures of a survey."""

import numpy as np

from jaxcnn.display import series
from jaxcnn.display.drawing import Figure, FixedLocator, MaxNLocator, style_axes, subplots
from jaxcnn.landscape.survey import Survey

# As in reports.
_BLUE, _RED = series.TRAIN, series.TEST
# Where positions have ticks.
_HALVES = np.arange(-1.5, 2, 0.5).tolist()


def plot_survey(surveyed: Survey) -> dict[str, Figure]:
    """Plots all figures of a survey.

    Args:
        surveyed: the measurements.

    Returns:
        The figures by name, which is also the name of the file.
    """
    figures = {
        "landscape-slices": plot_slices(surveyed),
        "landscape-plane": plot_plane(surveyed),
    }
    if len(surveyed.points) > 1:
        figures["landscape-steps"] = plot_steps(surveyed)
    return figures


def plot_slices(surveyed: Survey) -> Figure:
    """Plots the loss along the update and along the random directions."""
    figure, axes = subplots(1, 2, figsize=(9, 3.6))
    axes[0].plot(surveyed.update_positions, surveyed.update_losses, color=_RED)
    if surveyed.before_step is not None:
        loss = float(np.interp(-1, surveyed.update_positions, surveyed.update_losses))
        label = f"step {surveyed.before_step:,}: {loss:.3g} nats"
        axes[0].plot(-1, loss, "o", ms=5, color="white", mec="black", label=label)
    axes[0].set_title(f"Along {surveyed.direction}", fontsize=10)
    axes[0].set_xlabel("position, in lengths of the step")
    for losses in surveyed.random_losses:
        axes[1].plot(surveyed.random_positions, losses, color=_BLUE, alpha=0.7, lw=1.2)
    count = len(surveyed.random_losses)
    axes[1].set_title(f"Along {count} random directions, filter-normalised", fontsize=10)
    axes[1].set_xlabel("position, in norms of each filter")
    for axis in axes:
        axis.plot(0, surveyed.points[-1].loss, "o", ms=5, color="black", label=_place(surveyed))
        axis.set_ylabel("loss, nats")
        axis.xaxis.set_major_locator(FixedLocator(_HALVES))
        style_axes(axis, grid="both")
        axis.legend(frameon=False, loc="upper center", fontsize=9)
    return figure


def plot_plane(surveyed: Survey) -> Figure:
    """Plots the loss on a plane of two random directions, as contours at even ratios."""
    figure, axis = subplots(figsize=(5, 4.6))
    losses = np.array(surveyed.plane_losses)
    positions = surveyed.plane_positions
    finite = losses[np.isfinite(losses) & (losses > 0)]
    least, most = (finite.min(), finite.max()) if finite.size else (1.0, 1.0)
    # By ratio: the loss at the middle is a small part of that at the edges.
    levels = np.geomspace(least, max(most, 1.001 * least), 13)
    axis.contourf(positions, positions, np.log(losses), np.log(levels), cmap="viridis")
    lines = axis.contour(
        positions,
        positions,
        np.log(losses),
        np.log(levels)[1:-1:2],
        colors="white",
        linewidths=0.8,
        linestyles="solid",
    )
    axis.clabel(lines, fmt=lambda value: f"{np.exp(value):.2g}", fontsize=8)
    axis.plot(0, 0, "o", ms=5, color="white", mec="black")
    axis.set_title(f"Loss, nats, around {_place(surveyed)}", fontsize=10)
    axis.xaxis.set_major_locator(FixedLocator(_HALVES))
    axis.yaxis.set_major_locator(FixedLocator(_HALVES))
    axis.set(
        xlabel="first random direction, in norms of each filter",
        ylabel="second random direction",
        aspect="equal",
    )
    return figure


def plot_steps(surveyed: Survey) -> Figure:
    """Plots the eigenvalues and the noise scale over the steps."""
    figure, axes = subplots(1, 2, figsize=(9, 3.6))
    steps = [point.step for point in surveyed.points]
    largest = np.array([point.largest_eigenvalues for point in surveyed.points])
    smallest = [point.smallest_eigenvalue for point in surveyed.points]
    for index, values in enumerate(largest.T):
        label = f"{len(largest.T)} largest" if index == 0 else None
        alpha = 1 - 0.7 * index / len(largest.T)
        axes[0].plot(steps, values, "o-", ms=3, color=_BLUE, alpha=alpha, label=label)
    axes[0].plot(steps, smallest, "o--", ms=3, color=_RED, label="smallest")
    axes[0].axhline(0, color="grey", lw=0.8)
    axes[0].set(ylabel="eigenvalue, nats", title="Eigenvalues of the Hessian")
    axes[0].legend(frameon=False, fontsize=9)
    scales = [np.nan if p.noise_scale is None else p.noise_scale for p in surveyed.points]
    axes[1].plot(steps, scales, "o-", ms=3, color=_BLUE)
    axes[1].set(
        ylabel="simple noise scale, images", title="Gradient noise scale (gaps: not resolved)"
    )
    axes[1].set_ylim(bottom=0)
    for axis in axes:
        axis.set_xlabel("optimizer steps")
        axis.title.set_fontsize(10)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        style_axes(axis, grid="y")
    return figure


def _place(surveyed: Survey) -> str:
    return f"step {surveyed.slice_step:,}: {surveyed.points[-1].loss:.3g} nats"
