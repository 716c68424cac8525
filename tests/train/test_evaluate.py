import math

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.train.evaluate import eval_batches
from tests.train.test_fit import DATA


@pytest.mark.parametrize("batch_size", [1, 50, 64, 65])
def test_eval_batches(batch_size: int) -> None:
    batches = eval_batches(DATA.test, batch_size)
    mask = np.array(batches["mask"]).ravel()
    assert mask.sum() == 64
    assert batches["label"].shape == (math.ceil(64 / batch_size), batch_size)
    flat = np.array(batches["image"]).reshape(-1, 28, 28, 1)
    np.testing.assert_array_equal(flat[mask], DATA.test.images)
    np.testing.assert_array_equal(np.array(batches["label"]).ravel()[mask], DATA.test.labels)
    assert batches["label"].dtype == jnp.int32
