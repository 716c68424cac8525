"""The figure of a ranking: the first optimizers of each track, with intervals."""

from collections.abc import Sequence
from pathlib import Path

from jaxcnn.arena.scores import TrackScores
from jaxcnn.display import drawing
from jaxcnn.display.drawing import Axes, style_axes
from jaxcnn.display.series import TRAIN
from jaxcnn.errors import OUT_REMEDY


def write_figure(tracks: Sequence[TrackScores], out: Path, count: int = 10) -> Path:
    """Writes a PNG file with the test accuracies of the first optimizers, best on top.

    Args:
        tracks: one panel each, side by side.
        out: path of the file, with the suffix .png.
        count: number of optimizers.

    Returns:
        The path.

    Raises:
        WriteError: the file cannot be written.
    """
    with drawing.own_settings():
        size = (5.2 * len(tracks), 0.9 + 0.3 * count)
        figure, axes = drawing.subplots(1, len(tracks), figsize=size, squeeze=False)
        for axis, track in zip(axes[0], tracks, strict=True):
            _draw(axis, track, count)
        return drawing.save({out.stem: figure}, out.parent, OUT_REMEDY)[out.stem]


def _draw(axes: Axes, track: TrackScores, count: int) -> None:
    """Draws mean accuracies with their 95 % intervals by Student's t, and intervals of ranks."""
    from scipy import stats

    shown, beside = track.scores[:count], axes.get_yaxis_transform()
    for place, score in enumerate(shown):
        half = 0.0
        if score.standard_error is not None:
            freedom = len(score.entry["final"]) - 1
            half = float(stats.t.ppf(0.975, freedom)) * score.standard_error
        axes.errorbar(100 * score.accuracy, place, xerr=100 * half, fmt="o", color=TRAIN, capsize=3)
        if score.interval is not None:
            low, high = score.interval
            rank = f"{low:g}" if low == high else f"{low:g} to {high:g}"
            axes.text(1.01, place, rank, va="center", color="0.35", fontsize=8.5, transform=beside)
    axes.text(1.01, -0.9, "rank, 95 %", fontsize=8.5, transform=beside)
    names = [
        f"{score.optimizer[:24]}…" if len(score.optimizer) > 25 else score.optimizer
        for score in shown
    ]
    axes.set_yticks(range(len(shown)), names, parse_math=False)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_title(f"{track.name}: {len(shown)} of {len(track.scores)}", parse_math=False)
    axes.set_xlabel("test accuracy, %, mean and 95 % interval")
    style_axes(axes)
    axes.grid(axis="x", alpha=0.3)
