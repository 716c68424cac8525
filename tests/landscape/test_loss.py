from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.data.dataset import Dataset
from jaxcnn.errors import UserError
from jaxcnn.landscape.loss import make_batches, make_loss, mean_over
from jaxcnn.networks import pytorch
from tests import saved


def test_the_loss_is_that_of_evaluation(tiny_mnist: Dataset) -> None:
    """Against float64, without dropout and label smoothing."""
    recipe = saved.recipe("mnist", label_smoothing=0.2, dropout=0.5)
    variables: Any = pytorch.load_state_dict(saved.weights("mnist"))
    batches = make_batches(tiny_mnist.train, 200, {})
    loss = mean_over(make_loss(recipe, staged=False), variables["params"], batches)
    images = np.asarray(batches["image"]).reshape(200, 28, 28, 1)
    labels = np.asarray(batches["label"]).reshape(200)
    logits = saved.exact_logits(recipe, variables, images)
    exact = np.log(np.exp(logits).sum(-1)) - logits[np.arange(200), labels]
    assert loss == pytest.approx(exact.mean(), rel=1e-4)


def test_batches_are_different_images_with_their_labels(tiny_mnist: Dataset) -> None:
    batches = make_batches(tiny_mnist.train, 300, {"norm": {"mean": np.arange(2.0)}})
    assert batches["image"].shape == (3, 100, 28, 28, 1)
    np.testing.assert_array_equal(batches["batch_stats"]["norm"]["mean"], [[0.0, 1.0]] * 3)
    known = [image.tobytes() for image in tiny_mnist.train.images]
    images = np.asarray(batches["image"]).reshape(300, 28, 28, 1)
    places = [known.index(image.tobytes()) for image in images]
    assert len(set(places)) == len(places)
    labels = tiny_mnist.train.labels[places]
    np.testing.assert_array_equal(np.asarray(batches["label"]).reshape(-1), labels)


@pytest.mark.parametrize("count", [100, 250, 400, -200])
def test_impossible_numbers_of_images(count: int, tiny_mnist: Dataset) -> None:
    with pytest.raises(UserError, match="--images a multiple of 100"):
        make_batches(tiny_mnist.train, count, {})


def test_the_mean_over_batches() -> None:
    batches = jnp.array([1.0, 2.0, 6.0])
    mean = mean_over(lambda params, batch: {"x": params * batch}, jnp.float32(2), batches)
    assert mean["x"] == pytest.approx(6)
