"""Matplotlib for reports and studies: without pyplot, in matplotlib's default settings.

Pyplot's figures, its backend and the settings are the user's, who may work in a notebook.
"""

import contextlib
import importlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from jaxcnn.errors import WORKDIR_REMEDY
from jaxcnn.storage import atomic


def _import_matplotlib() -> None:
    """Imports matplotlib, if necessary without the variables for its backend and its folder.

    They may belong to another environment's notebook or name an impossible path; the figures need
    neither.
    """
    try:
        importlib.import_module("matplotlib").get_cachedir()
    except (ValueError, RuntimeError, OSError):
        if "matplotlib" not in sys.modules:  # the import failed and left parts of it
            for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
                del sys.modules[name]
        names = ("MPLBACKEND", "MPLCONFIGDIR")
        kept = {name: os.environ.pop(name) for name in names if name in os.environ}
        with tempfile.TemporaryDirectory(prefix="matplotlib-") as folder:
            os.environ["MPLCONFIGDIR"] = folder
            try:
                # Matplotlib caches the folder's name, and works when the folder is gone.
                importlib.import_module("matplotlib").get_cachedir()
                importlib.import_module("matplotlib.font_manager")
            finally:
                del os.environ["MPLCONFIGDIR"]
                os.environ.update(kept)


_import_matplotlib()

import matplotlib as mpl  # noqa: E402
from matplotlib import figure as mpl_figure  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: E402
from matplotlib.ticker import (  # noqa: E402
    FixedLocator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)

__all__ = [
    "DPI",
    "Axes",
    "ConstrainedLayoutEngine",
    "Figure",
    "FixedLocator",
    "MaxNLocator",
    "own_settings",
    "save",
    "style_axes",
    "subplots",
    "use_log_scale",
]

DPI = 130
"""Pixels per inch of the saved figures."""


class Figure(mpl_figure.Figure):
    """A figure that shows itself in a notebook, where only pyplot would teach others to."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Applies matplotlib's default settings in a block, and restores the user's after it."""
    with mpl.rc_context():
        mpl.rcdefaults()
        yield


def subplots(
    rows: int = 1,
    columns: int = 1,
    *,
    figsize: tuple[float, float] | None = None,
    layout: Any = "constrained",
    squeeze: bool = True,
) -> tuple[Figure, Any]:
    """Makes a figure that is unknown to pyplot, and its axes, as `pyplot.subplots` does.

    Args:
        rows: number of rows of axes.
        columns: number of columns of axes.
        figsize: width and height, in inches.
        layout: see `matplotlib.figure.Figure`.
        squeeze: whether dimensions of size one are removed from the array of axes.

    Returns:
        The figure and its axes, a single one or an array.
    """
    figure = Figure(figsize=figsize, layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=squeeze)


def style_axes(axes: Axes, grid: Literal["none", "y", "both"] = "none") -> None:
    """Applies the style of the project: no frame above and to the right, a faint grid.

    Args:
        axes: the axes.
        grid: the axis whose ticks have grid lines.
    """
    axes.spines[["top", "right"]].set_visible(False)
    if grid != "none":
        axes.grid(axis=grid, alpha=0.3)


def use_log_scale(axes: Axes) -> None:
    """Makes the y axis logarithmic, with plain numbers at 1, 2, 3 and 5 times powers of ten."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())


def save(figures: dict[str, Figure], folder: Path, remedy: str = WORKDIR_REMEDY) -> dict[str, Path]:
    """Writes figures as PNG files of 130 pixels per inch, each atomically.

    Args:
        figures: by name.
        folder: where the files `<name>.png` are written.
        remedy: the advice of an error, see `jaxcnn.errors.writing`.

    Returns:
        The paths of the files, by name.

    Raises:
        WriteError: a file cannot be written.
    """
    paths = {}
    for name, figure in figures.items():
        paths[name] = folder / f"{name}.png"
        content = io.BytesIO()
        figure.savefig(content, dpi=DPI, format="png")
        atomic.write(paths[name], content.getvalue(), remedy)
    return paths
