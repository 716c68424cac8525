import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jaxcnn.display import drawing

DRAW = """
import sys
from pathlib import Path
from jaxcnn.display import drawing
with drawing.own_settings():
    figure, axes = drawing.subplots(figsize=(2, 1))
    axes.set_title("$x$ as text")
    drawing.save({"x": figure}, Path(sys.argv[1]))
assert "matplotlib.pyplot" not in sys.modules
"""


def test_saved_whole(tmp_path: Path) -> None:
    figure, axes = drawing.subplots(2, 3, figsize=(3, 2))
    assert axes.shape == (2, 3)
    assert drawing.save({"x": figure}, tmp_path) == {"x": tmp_path / "x.png"}
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (3 * 130, 2 * 130)


def test_own_settings(tmp_path: Path) -> None:
    """The figure does not depend on the user's settings, and these stay."""
    files = []
    for number, settings in enumerate(({}, {"text.usetex": True, "font.size": 30.0})):
        with mpl.rc_context(settings):
            before = dict(mpl.rcParams)
            with drawing.own_settings():
                figure, axes = drawing.subplots(figsize=(2, 1))
                axes.set_title("%&$")
                files.append(drawing.save({str(number): figure}, tmp_path)[str(number)])
            assert dict(mpl.rcParams) == before
    assert files[0].read_bytes() == files[1].read_bytes()


def test_pyplot_is_left_to_the_user() -> None:
    from matplotlib import pyplot

    backend = mpl.get_backend()
    figures = pyplot.get_fignums()
    figure, _ = drawing.subplots()
    assert isinstance(figure, Figure)
    assert pyplot.get_fignums() == figures
    assert mpl.get_backend() == backend


@pytest.mark.parametrize(
    "variables",
    [
        *(
            pytest.param(variables, marks=pytest.mark.slow)
            for variables in ({"MPLBACKEND": "nonsense"}, {"MPLCONFIGDIR": "{folder}/loop/x"}, {})
        ),
        {"MPLBACKEND": "module://of_another_environment.backend"},
        {"XDG_CACHE_HOME": "{folder}/loop/x", "MPLBACKEND": "nonsense"},
        pytest.param({"XDG_CONFIG_HOME": "{folder}/loop/x"}, marks=pytest.mark.slow),
        {"MATPLOTLIBRC": "{folder}/matplotlibrc"},
    ],
    ids=lambda variables: " ".join(variables) or "none",
)
def test_an_environment_made_for_another_program(tmp_path: Path, variables: dict[str, str]) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nbackend: nbagg\n")
    given = {name: text.format(folder=tmp_path) for name, text in variables.items()}
    ran = subprocess.run(
        [sys.executable, "-c", DRAW, str(tmp_path)],
        env={**os.environ, **given},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "x.png").stat().st_size > 500


@pytest.mark.parametrize("grid", ["none", "y", "both"])
def test_style(grid: Any) -> None:
    _, axes = drawing.subplots()
    drawing.style_axes(axes, grid)
    visible = [side for side, spine in axes.spines.items() if spine.get_visible()]
    assert sorted(visible) == ["bottom", "left"]
    assert axes.get_xgridlines()[0].get_visible() == (grid == "both")
    assert axes.get_ygridlines()[0].get_visible() == (grid in ("y", "both"))


def test_log_scale() -> None:
    figure, axes = drawing.subplots()
    axes.set_ylim(0.9, 40)
    drawing.use_log_scale(axes)
    figure.draw_without_rendering()
    ticks = [tick for tick in axes.get_yticks() if 0.9 <= tick <= 40]
    assert ticks == pytest.approx([1, 2, 3, 5, 10, 20, 30])
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert {"1", "2", "3", "5", "10", "20", "30"} <= set(labels)
    assert not any(label.get_text() for label in axes.get_yticklabels(minor=True))
