import dataclasses
from typing import Any

import numpy as np
import pytest

from jaxcnn.errors import UserError
from jaxcnn.train.many_result import ManyResult
from jaxcnn.train.members import grid


def result(**hyperparameters: Any) -> ManyResult:
    """Two seeds at each value, three epochs; the last member has diverged."""
    members = grid([3, 4], **hyperparameters)
    count = len(members)
    curve = np.arange(3 * count, dtype=np.float32).reshape(3, count) / (3 * count)
    names = ("train_loss", "train_accuracy", "eval_loss", "eval_accuracy")
    diverged = np.zeros(count, np.int32)
    diverged[-1] = 7
    correct = np.arange(count, dtype=np.int32) + 90
    log = np.arange(2 * count, dtype=np.float32).reshape(2, count)
    measured: dict[str, Any] = {
        "metrics": {"confidence": 2 * curve},
        "logged": np.array([10, 20], np.int32),
        "log": {"loss": log, "learning_rate": log / 100},
    }
    curves = dict.fromkeys(names, curve)
    return ManyResult(members, curves, correct, 100, diverged, None, **measured)


def test_frame() -> None:
    pytest.importorskip("pandas", reason="pip install 'jaxcnn[notebook]'")
    many = result(learning_rate=[0.1, 0.2])
    frame = many.frame()
    expected = ["member", "seed", "learning_rate", "epoch", *many.history, "confidence"]
    assert list(frame.columns) == expected
    assert len(frame) == 4 * 3
    for row in frame.itertuples():
        assert row.seed == many.members.seeds[row.member]
        assert row.learning_rate == many.members.hyperparameters["learning_rate"][row.member]
        assert row.eval_accuracy == many.history["eval_accuracy"][row.epoch - 1, row.member]
        assert row.confidence == 2 * row.eval_accuracy
    assert list(result().frame().columns)[:3] == ["member", "seed", "epoch"]


def test_frame_of_the_logged_steps() -> None:
    pytest.importorskip("pandas", reason="pip install 'jaxcnn[notebook]'")
    many = result(learning_rate=[0.1, 0.2])
    frame = many.log_frame()
    expected = ["member", "seed", "learning_rate", "step", "loss", "step_learning_rate"]
    assert list(frame.columns) == expected
    assert len(frame) == 4 * 2
    for row in frame.itertuples():
        assert row.seed == many.members.seeds[row.member]
        assert row.learning_rate == many.members.hyperparameters["learning_rate"][row.member]
        for name, value in (("loss", row.loss), ("learning_rate", row.step_learning_rate)):
            assert value == many.log[name][row.step // 10 - 1, row.member]


def test_without_a_log_there_is_no_frame_of_it() -> None:
    with pytest.raises(UserError, match="was logged: train it with log_every"):
        dataclasses.replace(result(), log={}).log_frame()


def test_plot() -> None:
    assert [len(axes.lines) for axes in result(learning_rate=[0.1, 0.2]).plot().axes] == [8, 8]


def test_shown_in_a_notebook() -> None:
    text = result(**{"<b>": [0.1, 0.2]})._repr_html_()
    assert "<b>" not in text
    assert "&lt;b&gt;" in text
    cells = [cell.split("</td>")[0] for cell in text.split('<td style="text-align: left">')[1:]]
    assert cells[:5] == ["0.1", "2", "90.50% ± 0.71", "91.00%", "0"]
    assert cells[5:] == ["0.2", "2", "92.50% ± 0.71", "93.00%", "1"]


def test_a_long_table_is_cut() -> None:
    text = result(ema=np.arange(30) / 100)._repr_html_()
    assert text.count("<tr>") == 1 + 20 + 1
    assert "and 10 more" in text
