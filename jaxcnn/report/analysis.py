"""What a trained network does on the test images, in numbers that a report shows."""

import functools
from dataclasses import dataclass

import numpy as np

from jaxcnn.data.dataset import Split

# Equal widths, as in Guo et al., On Calibration of Modern Neural Networks, 2017 (arXiv 1706.04599).
_BINS = 15


@dataclass(frozen=True)
class Analysis:
    """Answers to a split.

    Attributes:
        labels: int[N].
        probabilities: float[N, 10], of the classes.
    """

    labels: np.ndarray
    probabilities: np.ndarray

    @functools.cached_property
    def answers(self) -> np.ndarray:
        """The most probable class of each picture, int[N]."""
        return self.probabilities.argmax(-1)

    @functools.cached_property
    def confidences(self) -> np.ndarray:
        """The probability of each answer, float[N]."""
        return self.probabilities.max(-1)

    @property
    def accuracy(self) -> float:
        """Right answers, in 0..1."""
        return float((self.answers == self.labels).mean())

    @functools.cached_property
    def confusion(self) -> np.ndarray:
        """Pictures by label (rows) and answer (columns), int[10, 10]."""
        counts = np.zeros((10, 10), int)
        np.add.at(counts, (self.labels, self.answers), 1)
        return counts

    @property
    def accuracy_by_class(self) -> np.ndarray:
        """Right answers among the pictures of each label, float[10]; not a number without any."""
        right, totals = self.confusion.diagonal(), self.confusion.sum(1)
        ratio: np.ndarray = np.where(totals > 0, right / np.maximum(totals, 1), np.nan)
        return ratio

    def mistakes(self, count: int) -> np.ndarray:
        """Returns the positions of the most confident wrong answers, at most so many."""
        wrong = np.flatnonzero(self.answers != self.labels)
        return wrong[np.argsort(-self.confidences[wrong], kind="stable")][:count]

    @functools.cached_property
    def reliability(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Share of the pictures, confidence and accuracy in bins of confidence, float[15] each.

        Bins without pictures have no numbers for the latter two.
        """
        bins = np.minimum((self.confidences * _BINS).astype(int), _BINS - 1)
        counts = np.bincount(bins, minlength=_BINS)
        right = np.bincount(bins, self.answers == self.labels, minlength=_BINS)
        confidence = np.bincount(bins, self.confidences, minlength=_BINS)
        with np.errstate(invalid="ignore"):
            return counts / len(bins), confidence / counts, right / counts

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, in 0..1: the mean gap between confidence and accuracy."""
        share, confidence, accuracy = self.reliability
        return float(np.nansum(share * np.abs(confidence - accuracy)))


def analyse(probabilities: np.ndarray, split: Split) -> Analysis:
    """Returns the analysis of a split's probabilities, float[N, 10]."""
    return Analysis(np.asarray(split.labels), np.asarray(probabilities, float))
