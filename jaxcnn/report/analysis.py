"""The predictions of a trained network on the test images, and the statistics of a report."""

import functools
from dataclasses import dataclass

import numpy as np

# Equal widths, as in Guo et al., On Calibration of Modern Neural Networks, 2017 (arXiv 1706.04599).
_BINS = 15


@dataclass(frozen=True)
class Analysis:
    """The predictions of a network on a split.

    Attributes:
        labels: int[N].
        probabilities: float[N, C], of C classes.
    """

    labels: np.ndarray
    probabilities: np.ndarray

    @functools.cached_property
    def predictions(self) -> np.ndarray:
        """The most probable class of each image, int[N]."""
        return self.probabilities.argmax(-1)

    @functools.cached_property
    def confidences(self) -> np.ndarray:
        """The probability of each prediction, float[N]."""
        return self.probabilities.max(-1)

    @functools.cached_property
    def correct(self) -> np.ndarray:
        """Whether each prediction is correct, bool[N]."""
        return self.predictions == self.labels

    @property
    def accuracy(self) -> float:
        """Share of correct predictions, in 0..1."""
        return float(self.correct.mean())

    @functools.cached_property
    def confusion(self) -> np.ndarray:
        """Number of images by label (rows) and prediction (columns), int[C, C]."""
        classes = self.probabilities.shape[1]
        counts = np.zeros((classes, classes), int)
        np.add.at(counts, (self.labels, self.predictions), 1)
        return counts

    @property
    def class_accuracy(self) -> np.ndarray:
        """Accuracy on the images of each class, float[C]; NaN for a class without images."""
        correct, totals = self.confusion.diagonal(), self.confusion.sum(1)
        ratio: np.ndarray = np.where(totals > 0, correct / np.maximum(totals, 1), np.nan)
        return ratio

    def mistakes(self, count: int) -> np.ndarray:
        """Returns the positions of the `count` (or fewer) most confident wrong predictions."""
        wrong = np.flatnonzero(~self.correct)
        return wrong[np.argsort(-self.confidences[wrong], kind="stable")][:count]

    @functools.cached_property
    def reliability(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Share of the images, mean confidence and accuracy by bin of confidence, float[15] each.

        Confidence and accuracy of a bin without images are NaN.
        """
        bins = np.minimum((self.confidences * _BINS).astype(int), _BINS - 1)
        counts = np.bincount(bins, minlength=_BINS)
        correct = np.bincount(bins, self.correct, minlength=_BINS)
        confidence = np.bincount(bins, self.confidences, minlength=_BINS)
        with np.errstate(invalid="ignore"):
            return counts / len(bins), confidence / counts, correct / counts

    @property
    def calibration_error(self) -> float:
        """Expected calibration error (Guo et al., 2017), in 0..1.

        The mean over the images of the gap between confidence and accuracy of their bin.
        """
        share, confidence, accuracy = self.reliability
        return float(np.nansum(share * np.abs(confidence - accuracy)))
