from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from jaxcnn.arena import plots
from jaxcnn.arena.scores import score_tracks
from tests.arena import entries


def test_the_file(tmp_path: Path) -> None:
    made = [entries.entry(name, track) for track in ("a", "b") for name in ("sgd", "adam", "$x")]
    path = plots.write_figure(score_tracks(made), tmp_path / "ranking.png", count=2)
    with Image.open(path) as image:
        assert image.width > image.height > 100


def test_the_first_optimizers_with_intervals() -> None:
    axes = Figure().subplots()
    runs = {"good": [0.98, 0.99, 0.97], "sgd": [0.9, 0.9, 0.9], "bad": [0.1, 0.2, 0.3]}
    (track,) = score_tracks([entries.simple(name, runs[name]) for name in runs])
    plots._draw(axes, track, 2)
    assert [label.get_text() for label in axes.get_yticklabels()] == ["good", "sgd"]
    assert axes.get_title() == "mnist: 2 of 3"
    (good, _) = axes.containers
    (start, _), (end, _) = good[2][0].get_segments()[0]
    # Student's t of two degrees of freedom is 4.303, the standard error 0.01 / sqrt(3).
    assert (end - start) / 2 == pytest.approx(4.303 / 3**0.5, rel=1e-3)
    assert [text.get_text() for text in axes.texts] == ["1", "2", "rank, 95 %"]
