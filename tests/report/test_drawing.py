import os
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jaxcnn.report import drawing

DRAW = """
import sys
from pathlib import Path
from jaxcnn.report import drawing
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
    """Whatever is set, the picture is the same, and the settings stay."""
    pictures = []
    for number, settings in enumerate(({}, {"text.usetex": True, "font.size": 30.0})):
        with mpl.rc_context(settings):
            before = dict(mpl.rcParams)
            with drawing.own_settings():
                figure, axes = drawing.subplots(figsize=(2, 1))
                axes.set_title("%&$")
                pictures.append(drawing.save({str(number): figure}, tmp_path)[str(number)])
            assert dict(mpl.rcParams) == before
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


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
def test_an_environment_that_is_not_for_it(tmp_path: Path, variables: dict[str, str]) -> None:
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
