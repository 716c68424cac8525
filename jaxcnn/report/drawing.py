"""Matplotlib for the project's pictures: without pyplot, and with settings of the project's own.

Pyplot's figures and backend are the user's, who may work in a notebook.
"""

import contextlib
import importlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxcnn.storage import atomic


def _import_matplotlib() -> None:
    """Imports it, if need be without what the environment says of its backend and its folders.

    That may be of another environment's notebook, or a path that cannot be; the pictures need
    neither.
    """
    try:
        importlib.import_module("matplotlib").get_cachedir()
    except (ValueError, RuntimeError, OSError):
        if "matplotlib" not in sys.modules:  # then parts of it are
            for name in [name for name in sys.modules if name.startswith("matplotlib.")]:
                del sys.modules[name]
        names = ("MPLBACKEND", "MPLCONFIGDIR")
        kept = {name: os.environ.pop(name) for name in names if name in os.environ}
        with tempfile.TemporaryDirectory(prefix="matplotlib-") as folder:
            os.environ["MPLCONFIGDIR"] = folder
            try:
                # It remembers its folder, and is content with one that is not there any more.
                importlib.import_module("matplotlib").get_cachedir()
                importlib.import_module("matplotlib.font_manager")
            finally:
                del os.environ["MPLCONFIGDIR"]
                os.environ.update(kept)


_import_matplotlib()

import matplotlib as mpl  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.layout_engine import ConstrainedLayoutEngine  # noqa: E402
from matplotlib.ticker import (  # noqa: E402
    FixedLocator,
    LogLocator,
    MaxNLocator,
    NullFormatter,
)

__all__ = [
    "Axes",
    "ConstrainedLayoutEngine",
    "Figure",
    "FixedLocator",
    "LogLocator",
    "MaxNLocator",
    "NullFormatter",
    "own_settings",
    "save",
    "subplots",
]


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Draws as matplotlib does by itself, and puts the settings of the user back."""
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
    """Returns a figure that pyplot does not know, and its axes, as pyplot's `subplots` does."""
    figure = Figure(figsize=figsize, layout=layout)
    return figure, figure.subplots(rows, columns, squeeze=squeeze)


def save(figures: dict[str, Figure], folder: Path) -> dict[str, Path]:
    """Writes figures as PNG files, each whole or not at all.

    Returns:
        Their paths by name.

    Raises:
        WriteError: one cannot be written.
    """
    paths = {}
    for name, figure in figures.items():
        paths[name] = folder / f"{name}.png"
        content = io.BytesIO()
        figure.savefig(content, dpi=130, format="png")
        atomic.write(paths[name], content.getvalue())
    return paths
