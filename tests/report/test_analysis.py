import numpy as np
import pytest

from jaxcnn.data.dataset import Split
from jaxcnn.report import analysis


def analysed(labels: list[int], answers: list[int], confidences: list[float]) -> analysis.Analysis:
    rows = np.zeros((len(labels), 10))
    for row, answer, confidence in zip(rows, answers, confidences, strict=True):
        row[:] = (1 - confidence) / 9
        row[answer] = confidence
    images = np.zeros((len(labels), 28, 28, 1), np.uint8)
    return analysis.analyse(rows, Split(images, np.array(labels, np.int32)))


def test_counts() -> None:
    found = analysed([0, 0, 1, 2, 1], [0, 1, 1, 1, 1], [0.9, 0.8, 0.7, 0.95, 0.6])
    assert found.accuracy == 0.6
    assert found.confusion[0, 0] == found.confusion[0, 1] == found.confusion[2, 1] == 1
    assert found.confusion.sum() == 5
    assert found.confusion.shape == (10, 10)
    np.testing.assert_array_equal(found.accuracy_by_class[:3], [0.5, 1.0, 0.0])
    assert np.isnan(found.accuracy_by_class[3:]).all()
    assert found.mistakes(5).tolist() == [3, 1]
    assert found.mistakes(1).tolist() == [3]


def test_calibration_error() -> None:
    # Two bins: confidence 0.95 and half of it right, confidence 0.55 and all of it right.
    found = analysed([0, 1, 2, 3], [0, 9, 2, 3], [0.95, 0.95, 0.55, 0.55])
    assert found.calibration_error == pytest.approx(0.5 * 0.45 + 0.5 * 0.45)
    share, confidence, accuracy = found.reliability
    assert share[14] == share[8] == 0.5
    assert (confidence[14], accuracy[14]) == (pytest.approx(0.95), 0.5)
    assert np.isnan(confidence[0])


def test_a_confidence_of_one_has_a_bin() -> None:
    found = analysed([0], [0], [1.0])
    assert found.calibration_error == 0
    assert len(found.mistakes(3)) == 0
