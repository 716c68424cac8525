import numpy as np
import pytest

from jaxcnn.data import digits, synthetic


def test_digits_are_as_bright_as_those_of_mnist() -> None:
    images, _ = synthetic.generate_split("mnist", "train", size=1000)
    # MNIST's own mean and standard deviation, with which the recipes normalise.
    assert images.mean() / 255 == pytest.approx(0.1307, abs=0.02)
    assert images.std() / 255 == pytest.approx(0.3081, abs=0.05)


def test_a_pen_without_spread_follows_the_variants() -> None:
    labels = np.repeat(np.arange(10, dtype=np.int32), 50)
    positions, pen_down = digits.pen_paths(np.random.default_rng(0), labels, spread=0)
    assert positions.shape == (500, 96, 2)
    assert pen_down.shape == (500, 95)
    assert np.abs(positions).max() < 1.5
    variants = [len(np.unique(positions[labels == label], axis=0)) for label in range(10)]
    assert variants == [2, 3, 2, 2, 2, 2, 2, 3, 2, 2]
    assert pen_down[labels == 0].all()  # both variants are a single stroke
    distorted, _ = digits.pen_paths(np.random.default_rng(0), labels)
    assert len(np.unique(distorted, axis=0)) == 500
