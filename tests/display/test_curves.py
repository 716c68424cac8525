import numpy as np

from jaxcnn.display.curves import plot_curves
from jaxcnn.display.drawing import Figure


def test_a_line_for_each_run_and_split() -> None:
    values = np.array([[0.5, 0.4, 0.3], [0.25, np.nan, 0.2]])
    names = ("train_loss", "train_accuracy", "eval_loss", "eval_accuracy")
    figure = plot_curves(dict.fromkeys(names, values))
    assert isinstance(figure, Figure)
    for axes, scale in zip(figure.axes, (1, 100), strict=True):
        assert len(axes.lines) == 6
        for line, expected in zip(axes.lines[3:], values.T, strict=True):
            np.testing.assert_allclose(line.get_ydata(), scale * expected)  # type: ignore[arg-type]
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["train", "eval"]
    assert figure._repr_png_().startswith(b"\x89PNG")
