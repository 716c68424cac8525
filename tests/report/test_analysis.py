import numpy as np
import pytest

from jaxcnn.report.analysis import Analysis


def analyse(labels: list[int], predictions: list[int], confidences: list[float]) -> Analysis:
    rows = np.zeros((len(labels), 10))
    for row, prediction, confidence in zip(rows, predictions, confidences, strict=True):
        row[:] = (1 - confidence) / 9
        row[prediction] = confidence
    return Analysis(np.array(labels, np.int32), rows)


def test_counts() -> None:
    found = analyse([0, 0, 1, 2, 1], [0, 1, 1, 1, 1], [0.9, 0.8, 0.7, 0.95, 0.6])
    assert found.accuracy == 0.6
    assert found.predictions.tolist() == [0, 1, 1, 1, 1]
    assert found.correct.tolist() == [True, False, True, False, True]
    assert found.confusion[0, 0] == found.confusion[0, 1] == found.confusion[2, 1] == 1
    assert found.confusion.sum() == 5
    assert found.confusion.shape == (10, 10)
    np.testing.assert_array_equal(found.class_accuracy[:3], [0.5, 1.0, 0.0])
    assert np.isnan(found.class_accuracy[3:]).all()
    assert found.mistakes(5).tolist() == [3, 1]
    assert found.mistakes(1).tolist() == [3]


def test_calibration_error() -> None:
    # Two bins: confidence 0.95 and accuracy 0.5, confidence 0.55 and accuracy 1.
    found = analyse([0, 1, 2, 3], [0, 9, 2, 3], [0.95, 0.95, 0.55, 0.55])
    assert found.calibration_error == pytest.approx(0.5 * 0.45 + 0.5 * 0.45)
    share, confidence, accuracy = found.reliability
    assert share[14] == share[8] == 0.5
    assert (confidence[14], accuracy[14]) == (pytest.approx(0.95), 0.5)
    assert np.isnan(confidence[0])


def test_a_confidence_of_one_has_a_bin() -> None:
    found = analyse([0], [0], [1.0])
    assert found.calibration_error == 0
    assert len(found.mistakes(3)) == 0
