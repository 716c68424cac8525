import jax
import numpy as np
import pytest

from jaxcnn.data.views import make_views
from jaxcnn.recipes.recipe import NetworkName


@pytest.mark.parametrize(
    ("network", "mode", "count"), [("mnist", "constant", 5), ("cifar10", "reflect", 10)]
)
def test_views_are_shifts_and_their_flips(network: NetworkName, mode: str, count: int) -> None:
    images = np.random.RandomState(0).randint(1, 256, (3, 6, 7, 2)).astype(np.uint8)
    views = np.array(jax.jit(make_views(network))(images))
    assert views.dtype == np.uint8
    np.testing.assert_array_equal(views[0], images)
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)), mode=mode)
    windows = [padded[:, r : r + 6, c : c + 7] for r, c in ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))]
    flipped = [window[:, :, ::-1] for window in windows] if network == "cifar10" else []
    assert len(views) == count
    for expected in windows + flipped:
        assert sum((view == expected).all() for view in views) == 1
