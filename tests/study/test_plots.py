import dataclasses
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from jaxcnn.study import plots
from jaxcnn.study.plots import write_plots
from jaxcnn.study.runs import Run
from tests.study.test_comparison import RATES, STUDY, made_up
from tests.study.test_rate_range import made_up as made_up_range


@pytest.fixture
def axes() -> Axes:
    axes: Axes = Figure().subplots()
    return axes


@pytest.fixture
def runs() -> list[Run]:
    """SGD is best, at 0.2 with curves (0.91, 0.95) and (0.81, 0.95), Adam at 0.004."""
    return made_up()


def texts(axes: Axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    return [text.get_text() for text in found.get_texts()] if found else []


def test_files(runs: list[Run], tmp_path: Path) -> None:
    paths = write_plots(STUDY, runs, tmp_path)
    assert [path.name for path in paths] == [
        "learning-curves.png",
        "learning-rates.png",
        "time-to-target.png",
    ]
    for path in paths:
        assert path.parent == tmp_path
        assert path.read_bytes().startswith(b"\x89PNG")
        with Image.open(path) as image:
            assert image.size == (1040, 624)


def test_learning_curves(axes: Axes, runs: list[Run]) -> None:
    plots._learning_curves(axes, STUDY, runs)
    sgd, adam = axes.lines
    assert [line.get_label() for line in axes.lines] == ["sgd", "adam"]
    np.testing.assert_allclose(sgd.get_xydata(), [[1, 86], [2, 95]])
    np.testing.assert_allclose(adam.get_xydata(), [[1, 50], [2, 80]])
    band, none = (item.get_datalim(axes.transData) for item in axes.collections)
    # 0.91 and 0.81: a standard error of 0.05.
    np.testing.assert_allclose([band.ymin, band.ymax], [81, 95])
    np.testing.assert_allclose([none.ymin, none.ymax], [50, 80])
    assert axes.get_xticks().tolist() == [1, 2]
    assert axes.get_xlabel() == "epoch"
    assert legend(axes) == ["sgd", "adam"]
    assert axes.get_title().startswith("Learning curves at the best learning rates")


def test_a_diverged_run_guesses(axes: Axes, runs: list[Run]) -> None:
    """If nothing else was tried, its curve is that of a network that guesses one of ten classes."""
    plan = dataclasses.replace(STUDY, learning_rates={"sgd": (0.4,)})
    final = [dataclasses.replace(run, learning_rate=0.4) for run in runs if run.phase == "final"]
    plots._learning_curves(axes, plan, [run for run in runs if run.phase == "tune"] + final)
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [30, 10])


def test_learning_rates(axes: Axes, runs: list[Run]) -> None:
    plots._learning_rates(axes, STUDY, runs)
    for container, name, errors in zip(
        axes.containers, ("sgd", "adam"), ([20, 5, 90], [40, 30, 20]), strict=True
    ):
        line, _, (bars,) = container
        np.testing.assert_allclose(line.get_xydata(), list(zip(RATES[name], errors, strict=True)))
        lengths = [np.ptp(segment[:, 1]) for segment in bars.get_segments()]
        np.testing.assert_allclose(lengths, 0, atol=1e-9)  # both seeds alike
        assert container.get_label() == name
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert legend(axes) == ["sgd", "adam"]
    assert axes.get_title().startswith("Error by learning rate")
    assert axes.get_ylabel() == "validation error at the end, %"


def test_seeds_that_differ_have_bars(axes: Axes, runs: list[Run]) -> None:
    changed = dataclasses.replace(runs[1], correct=runs[1].correct - 20)
    plots._learning_rates(axes, STUDY, [*runs[:1], changed, *runs[2:]])
    line, _, (bars,) = axes.containers[0]
    np.testing.assert_allclose(
        line.get_xydata()[1], [0.2, 6]
    )  # 95 % and 93 %, a standard error of 1 %
    np.testing.assert_allclose(bars.get_segments()[1][:, 1], [5, 7])


def test_time_to_target(axes: Axes, runs: list[Run]) -> None:
    plots._time_to_target(axes, STUDY, runs)
    (bar,) = axes.patches
    assert bar.get_height() < 1  # a gap to the next
    assert axes.get_xlabel().startswith("optimizer steps (median")
    assert (bar.get_width(), bar.get_y() + bar.get_height() / 2) == (15, pytest.approx(1))
    assert texts(axes) == ["not reached by 2 runs", "15 (2 of 2 runs)"]
    places = [text.get_position() for text in axes.texts]
    np.testing.assert_allclose(places, [(0.15, 0), (15.15, 1)])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["adam", "sgd"]
    assert axes.get_yticks().tolist() == [0, 1]
    np.testing.assert_allclose(axes.get_xlim(), (0, 1.3 * 15))
    assert axes.get_ylim() == (-0.5, 1.5)  # the label at the bottom is above the axis
    assert axes.get_title() == "Time to 90.0% validation accuracy"


def test_a_target_that_none_reaches(axes: Axes, runs: list[Run]) -> None:
    plots._time_to_target(axes, dataclasses.replace(STUDY, target=1.0), runs)
    assert not axes.patches
    assert axes.get_xlim() == (0, 1.3)
    assert texts(axes) == ["not reached by 2 runs"] * 2


def test_each_optimizer_keeps_its_colour_and_marker(runs: list[Run]) -> None:
    """By its place in the study, whichever is best; 64 differ in one of the two."""
    styles = {summary.optimizer: style for style, summary in plots._styled(STUDY, runs)}
    assert list(styles) == ["sgd", "adam"]
    turned = dataclasses.replace(STUDY, learning_rates=dict(reversed(RATES.items())))
    other = {summary.optimizer: style for style, summary in plots._styled(turned, runs)}
    assert list(other) == ["sgd", "adam"]
    assert (styles["sgd"], styles["adam"]) == (other["adam"], other["sgd"])
    first = {"color": to_hex("#0072B2").upper(), "marker": "o", "markersize": 5}
    assert styles["sgd"] == first
    names = [f"mine:{number}" for number in range(64)]
    many = dataclasses.replace(STUDY, learning_rates=dict.fromkeys(names, (0.2,)))
    copies = [
        dataclasses.replace(run, optimizer=name)
        for name in names
        for run in runs
        if run.optimizer == "sgd"
    ]
    found = [(style["color"], style["marker"]) for style, _ in plots._styled(many, copies)]
    assert len(set(found)) == 64
    assert found[1] == ("#D55E00", "s")
    assert found[8] == ("#0072B2", "s")


def test_rate_ranges(axes: Axes, tmp_path: Path) -> None:
    sgd = made_up_range([2.0, 1.0, 0.25, 1e9, np.nan], 0.1)
    muon = made_up_range([np.nan] * 5, None, "muon")
    plots._rate_ranges(axes, [sgd, muon], "MNIST, batch 64")
    curve, trained, lost, point, *_ = axes.lines
    np.testing.assert_allclose(curve.get_xdata(), sgd.rates)
    guessing = np.log(10)
    np.testing.assert_allclose(curve.get_ydata(), [2, 1, 0.25, guessing, guessing])
    np.testing.assert_allclose(trained.get_xdata(), sgd.rates[:3])
    np.testing.assert_allclose(lost.get_xdata(), sgd.rates[3:])
    np.testing.assert_allclose(point.get_xydata(), [[0.1, 0.25]])
    assert lost.get_marker() == "x"
    assert legend(axes) == ["sgd: 0.1", "muon: none", "diverged", "guessing"]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_ylabel() == "held-out loss after 40 steps, nats"
    assert axes.get_title() == "Learning rate range test, MNIST, batch 64"
    path = plots.write_rate_plot([sgd, muon], "MNIST", tmp_path)
    assert path == tmp_path / "find-rate.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_means_and_errors() -> None:
    mean, error = plots._mean_and_error(np.array([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]]))
    np.testing.assert_allclose(mean, [3, 2])
    np.testing.assert_allclose(error, [2 / 3**0.5, 0])
    mean, error = plots._mean_and_error(np.array([[1.0, 2.0]]))
    assert (mean.tolist(), error.tolist()) == ([1, 2], [0, 0])
