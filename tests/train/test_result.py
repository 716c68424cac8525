import dataclasses

import pytest
from matplotlib import rc_context

from tests.train.test_records import RECORD, RESULT

TWO = dataclasses.replace(RESULT, history=(RECORD, dataclasses.replace(RECORD, epoch=2, step=1200)))


def test_frame() -> None:
    pytest.importorskip("pandas", reason="pip install 'jaxcnn[notebook]'")
    frame = TWO.frame()
    assert frame.to_dict("records") == [record.asdict() for record in TWO.history]
    measured = dataclasses.replace(RECORD, metrics={"sparsity": 0.5})
    frame = dataclasses.replace(RESULT, history=(measured, measured)).frame()
    assert frame.sparsity.tolist() == [0.5, 0.5]
    assert "metrics" not in frame


def test_plot_is_in_the_style_of_the_project() -> None:
    with rc_context({"axes.facecolor": "black"}):
        figure = TWO.plot()
    losses, accuracies = figure.axes
    assert list(losses.lines[1].get_ydata()) == [0.25, 0.25]  # type: ignore[arg-type]
    assert list(accuracies.lines[1].get_ydata()) == [87.5, 87.5]  # type: ignore[arg-type]
    assert losses.get_facecolor() == (1, 1, 1, 1)


def test_shown_in_a_notebook() -> None:
    text = TWO._repr_html_()
    assert "98.76% (9,876 of 10,000)" in text
    assert "207,258" in text
    assert text.count("<svg") == 2


def test_the_text_form_leaves_out_the_arrays() -> None:
    assert "state" not in repr(TWO)
