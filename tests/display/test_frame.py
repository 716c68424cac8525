import sys

import pytest

from jaxcnn.display.frame import make_frame
from jaxcnn.errors import UserError


def test_columns() -> None:
    pytest.importorskip("pandas", reason="pip install 'jaxcnn[notebook]'")
    frame = make_frame({"epoch": [1, 2], "loss": [0.5, 0.25]})
    assert list(frame.columns) == ["epoch", "loss"]
    assert frame.loss.tolist() == [0.5, 0.25]


def test_without_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"needs pandas, .*: pip install 'jaxcnn\[notebook\]'"):
        make_frame({})
