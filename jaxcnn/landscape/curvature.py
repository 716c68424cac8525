"""The curvature of the loss: extreme eigenvalues of its Hessian, which is never formed."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxcnn.landscape.loss import Loss, mean_over

# Relative to an eigenvalue, the residual at which it is accepted. Its own error is of second order
# in the residual, and lies below a thousandth for spectra like those of networks.
_TOLERANCE = 0.01


@functools.partial(jax.jit, static_argnums=0)
def hessian_product(loss: Loss, params: Any, vector: Any, batches: Any) -> Any:
    """Multiplies the Hessian of the mean loss with a vector, forward-over-reverse.

    B. A. Pearlmutter, Fast Exact Multiplication by the Hessian, 1994.

    Args:
        loss: (params, batch) -> float32[]; needs a forward-mode derivative, so for the networks of
            jaxcnn `make_loss(recipe, staged=False)`.
        params: pytree of float32 arrays.
        vector: of the structure of `params`.
        batches: K batches, see `jaxcnn.landscape.loss`.

    Returns:
        A pytree of the structure of `params`.
    """

    def product(params: Any, batch: Any) -> Any:
        return jax.jvp(lambda at: jax.grad(loss)(at, batch), (params,), (vector,))[1]

    return mean_over(product, params, batches)


def extreme_eigenvalues(
    loss: Loss, params: Any, batches: Any, count: int = 5
) -> tuple[float, np.ndarray]:
    """Returns the smallest and the largest eigenvalues of the Hessian of the mean loss.

    By ARPACK's implicitly restarted Lanczos method (Lehoucq, Sorensen and Yang, ARPACK Users'
    Guide, 1998), with a fixed start, so the result is reproducible. A network takes some twenty
    products with the Hessian for the largest ones and a hundred for the smallest one.

    Args:
        loss: see `hessian_product`.
        params: pytree of float32 arrays, more than `count` numbers.
        batches: K batches, see `jaxcnn.landscape.loss`.
        count: how many of the largest.

    Returns:
        The smallest eigenvalue, negative where the loss is not convex, and the largest ones, the
        largest first, float32[count].
    """
    # Imported here: it takes a while, and only this needs it.
    from scipy.sparse.linalg import LinearOperator, eigsh

    flat, unravel = ravel_pytree(params)

    def multiply(vector: np.ndarray) -> np.ndarray:
        direction = unravel(jnp.asarray(vector, flat.dtype).reshape(-1))
        return np.asarray(ravel_pytree(hessian_product(loss, params, direction, batches))[0])

    hessian = LinearOperator((flat.size, flat.size), matvec=multiply, dtype=np.float32)
    start = np.random.default_rng(0).standard_normal(flat.size).astype(np.float32)
    options = {"v0": start, "tol": _TOLERANCE, "return_eigenvectors": False}
    largest = eigsh(hessian, k=count, which="LA", **options)
    smallest = eigsh(hessian, k=1, which="SA", **options)
    return float(smallest[0]), np.sort(largest)[::-1]
