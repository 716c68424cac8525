from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.errors import UserError
from jaxcnn.train.losses import batch_loss, find_loss, image_losses

LOGITS = jnp.array([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]])
LABELS = jnp.array([0, 2])


def first_logit(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """A user-defined loss."""
    return logits[:, 0]


def entropies() -> np.ndarray:
    return -np.asarray(jax.nn.log_softmax(LOGITS))[np.arange(2), LABELS]


def test_the_default_is_cross_entropy() -> None:
    np.testing.assert_allclose(image_losses(None, LOGITS, LABELS), entropies(), rtol=1e-6)
    mean, losses = batch_loss(None, LOGITS, LABELS, 0.0)
    assert float(mean) == pytest.approx(entropies().mean(), rel=1e-6)
    np.testing.assert_allclose(losses, entropies(), rtol=1e-6)


def test_label_smoothing_is_in_what_is_minimized_alone() -> None:
    mean, losses = batch_loss(None, LOGITS, LABELS, 0.3)
    uniform = -np.asarray(jax.nn.log_softmax(LOGITS)).mean(-1)
    assert float(mean) == pytest.approx((0.7 * entropies() + 0.3 * uniform).mean(), rel=1e-6)
    np.testing.assert_allclose(losses, entropies(), rtol=1e-6)


def test_another_loss_has_no_label_smoothing() -> None:
    mean, losses = batch_loss(first_logit, LOGITS, LABELS, 0.3)
    assert float(mean) == 1.25
    np.testing.assert_array_equal(losses, [2.0, 0.5])


@pytest.mark.parametrize("wrong", [jnp.ones(()), jnp.ones((2, 1)), jnp.ones(2, int), 1.0, None])
def test_a_loss_has_a_number_for_each_image(wrong: Any) -> None:
    with pytest.raises(UserError, match="for 2 images: let it return the loss of each"):
        image_losses(lambda logits, labels: wrong, LOGITS, LABELS)


def test_a_loss_by_its_name() -> None:
    assert find_loss("tests.train.test_losses:first_logit") is first_logit
    with pytest.raises(UserError, match="--loss takes module:function, got 'first_logit'"):
        find_loss("first_logit")
    with pytest.raises(UserError, match="no function LOGITS; give one that returns the losses"):
        find_loss("tests.train.test_losses:LOGITS")
