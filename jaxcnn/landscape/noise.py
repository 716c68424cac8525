"""The noise of the gradient, which tells the batch size from which more images stop to help."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxcnn.landscape.loss import Loss, mean_over


class GradientNoise(NamedTuple):
    """Unbiased estimates of the squared norm of the gradient G and of its noise.

    Attributes:
        squared_norm: float32[], |G|^2 of the loss over all examples there are. The estimate can be
            negative, where the gradient is too small for the examples given.
        trace: float32[], tr(Sigma): the sum of the variances of one example's gradient.
    """

    squared_norm: jax.Array
    trace: jax.Array

    @property
    def scale(self) -> float | None:
        """B_simple = tr(Sigma) / |G|^2, in examples; None where |G|^2 is not resolved."""
        scale = float(self.trace) / float(self.squared_norm) if self.squared_norm > 0 else None
        return scale if scale is None or scale >= 0 else None


@functools.partial(jax.jit, static_argnums=(0, 3))
def gradient_noise(loss: Loss, params: Any, batches: Any, batch_size: int) -> GradientNoise:
    """Estimates the simple noise scale from gradients at two batch sizes.

    McCandlish et al., An Empirical Model of Large-Batch Training, 2018 (arXiv 1812.06162),
    appendix A.1. The squared norm of a gradient over b examples is |G|^2 + tr(Sigma) / b on
    average. With the mean q of it over K batches of b examples, and its value Q for all B = K b of
    them,

        |G|^2 = (B Q - b q) / (B - b),    tr(Sigma) = (q - Q) / (1 / b - 1 / B).

    Both are unbiased for examples drawn independently; their ratio is not.

    Args:
        loss: (params, batch) -> float32[], the mean over the examples of a batch.
        params: pytree of float32 arrays.
        batches: K batches, at least two, see `jaxcnn.landscape.loss`.
        batch_size: b, examples in each batch.
    """

    def moments(params: Any, batch: Any) -> tuple[Any, jax.Array]:
        gradient = jax.grad(loss)(params, batch)
        return gradient, _squared_norm(gradient)

    gradient, small = mean_over(moments, params, batches)
    large = _squared_norm(gradient)
    all_examples = jax.tree.leaves(batches)[0].shape[0] * batch_size
    return GradientNoise(
        squared_norm=(all_examples * large - batch_size * small) / (all_examples - batch_size),
        trace=(small - large) / (1 / batch_size - 1 / all_examples),
    )


def _squared_norm(tree: Any) -> jax.Array:
    return sum((jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)), start=jnp.zeros(()))
