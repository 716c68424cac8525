"""The loss of an image: cross entropy, or a user-defined function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcnn.errors import UserError
from jaxcnn.optim.named import find_function

# logits float32[B, C], labels int32[B] -> losses of the images, float32[B].
Loss = Callable[[jax.Array, jax.Array], jax.Array]


def find_loss(name: str) -> Loss:
    """Returns a user-defined loss that the command line names.

    Args:
        name: "module:function".

    Raises:
        UserError: the name has another form, or the module cannot be imported or has no such
            function.
    """
    wanted = "that returns the losses of the images, float32[B], from logits [B, C] and labels [B]"
    return find_function("--loss", name, wanted)


def image_losses(loss: Loss | None, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the loss of each image, float32[B].

    Args:
        loss: a user-defined one; None for the cross entropy in nats.
        logits: float32[B, C].
        labels: int32[B].

    Raises:
        UserError: the user-defined loss returns something else.
    """
    if loss is None:
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    losses: Any = loss(logits, labels)
    shape: Any = getattr(losses, "shape", None)
    dtype: Any = getattr(losses, "dtype", None)
    if shape != labels.shape or not jnp.issubdtype(dtype, jnp.floating):
        found = type(losses).__name__ if shape is None else f"{dtype}{list(shape)}"
        raise UserError(
            f"the loss returns {found} for {len(labels)} images: let it return the loss of each, "
            f"float32[{len(labels)}]; the step takes their mean"
        )
    return jnp.asarray(losses)


def batch_loss(
    loss: Loss | None, logits: jax.Array, labels: jax.Array, label_smoothing: float
) -> tuple[jax.Array, jax.Array]:
    """Returns what a step minimizes, float32[], and the losses of the images, float32[B].

    Args:
        loss: a user-defined one; None for the cross entropy in nats.
        logits: float32[B, C].
        labels: int32[B].
        label_smoothing: see `jaxcnn.train.steps.make_train_step`; a part of the cross entropy that
            is minimized, not of a user-defined loss, and never of the losses of the images.

    Raises:
        UserError: see `image_losses`.
    """
    losses = image_losses(loss, logits, labels)
    if loss is not None or not label_smoothing:
        return losses.mean(), losses
    # As one loss: XLA rounds a weighted sum of two in a way that depends on the program around it,
    # and an ensemble on several devices would not be bit-identical.
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
    return optax.softmax_cross_entropy(logits, targets).mean(), losses
