import numpy as np
import pytest

from jaxcnn.data import synthetic


# Four standard deviations of a share of a third among the images of a class.
@pytest.mark.parametrize(
    ("size", "margin"), [(1000, 0.19), pytest.param(4000, 0.09, marks=pytest.mark.slow)]
)
def test_no_shape_has_a_colour_of_its_own(size: int, margin: float) -> None:
    images, labels = synthetic.generate_split("cifar10", "train", size=size)
    strongest = images.mean((1, 2)).argmax(-1)
    for label in range(10):
        shares = np.bincount(strongest[labels == label], minlength=3) / (size / 10)
        np.testing.assert_allclose(shares, 1 / 3, atol=margin)
