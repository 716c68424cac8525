"""The curvature of the loss: extreme eigenvalues of its Hessian, which is never formed."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxcnn.errors import UserError
from jaxcnn.landscape.loss import Loss, mean_over

# Residuals at which eigenvalues are accepted, relative to the largest one or to one of them. An
# eigenvalue's own error is of second order in the residual.
_TOLERANCE = 0.001
_MOST_RESTARTS = 100


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
    Guide, 1998), with a fixed start, so the result is reproducible.
    The residual of the smallest one is a thousandth of the largest at most.

    Args:
        loss: see `hessian_product`.
        params: pytree of float32 arrays, more than `count` numbers.
        batches: K batches, see `jaxcnn.landscape.loss`.
        count: how many of the largest.

    Returns:
        The smallest eigenvalue, negative where the loss is not convex, and the largest ones, the
        largest first, float32[count].

    Raises:
        UserError: they do not converge, for example because the loss is not finite.
    """
    # Imported here: it takes a while, and only this needs it.
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    flat, unravel = ravel_pytree(params)

    def multiply(vector: np.ndarray) -> np.ndarray:
        direction = unravel(jnp.asarray(vector, flat.dtype).reshape(-1))
        return np.asarray(ravel_pytree(hessian_product(loss, params, direction, batches))[0])

    def solve(shift: float, number: int, which: str) -> np.ndarray:
        hessian = LinearOperator(
            (flat.size, flat.size),
            matvec=lambda vector: multiply(vector) - shift * vector.reshape(-1),
            dtype=np.float32,
        )
        start = np.random.default_rng(0).standard_normal(flat.size).astype(np.float32)
        options = {"tol": _TOLERANCE, "maxiter": _MOST_RESTARTS, "return_eigenvectors": False}
        try:
            found = eigsh(hessian, k=number, which=which, v0=start, **options)
        except ArpackError as error:
            raise UserError(
                f"the eigenvalues of the Hessian do not converge ({error}): take a checkpoint "
                "with a finite loss, or fewer eigenvalues"
            ) from None
        return np.sort(found)[::-1]

    largest = solve(0.0, count, "LA")
    # Shifted, since a tolerance relative to an eigenvalue near zero would never be reached.
    shift = float(abs(largest[0]))
    return shift + float(solve(shift, 1, "SA")[0]), largest
