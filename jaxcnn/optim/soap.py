"""SOAP, which is Adam in the eigenbasis of Shampoo's preconditioner.

Algorithms 3 and 4 of Vyas et al., 2024, https://arxiv.org/abs/2409.11321. Of gradients G, the
means of G G^T and G^T G have the eigenvectors Q_L and Q_R, and Adam's second moments are those
of Q_L^T G Q_R. A convolution kernel [KH, KW, Cin, Cout] is a matrix [KH KW Cin, Cout].
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.custom_batching import custom_vmap


class Side(NamedTuple):
    """Of an axis of size n: float[n, n], the mean of G G^T or G^T G, and its eigenvectors."""

    factor: jax.Array
    basis: jax.Array


class Moments(NamedTuple):
    """Of a parameter: mean gradient, mean square in the eigenbasis, and the axes in rotation."""

    mu: jax.Array
    nu: jax.Array
    sides: dict[int, Side]


class SoapState(NamedTuple):
    """int32[], the number of updates so far, and the moments of each parameter."""

    step: jax.Array
    moments: list[Moments]


def soap(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.95,
    b2: float = 0.95,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    mask: Any = None,
    precondition_frequency: int = 10,
    max_precondition_dim: int = 1024,
) -> optax.GradientTransformation:
    """Returns SOAP with decoupled weight decay; the first update decays and makes the bases.

    Args:
        learning_rate: per step, a number or a schedule.
        b1: decay of the mean of the gradients.
        b2: decay of the mean of their squares, and of G G^T and G^T G.
        eps: added to the root of the mean square.
        weight_decay: times the learning rate.
        mask: of the parameters that decay, see `optax.add_decayed_weights`.
        precondition_frequency: once in so many steps the eigenvectors are renewed.
        max_precondition_dim: longer axes are not rotated, nor are vectors.
    """

    def start(leaf: jax.Array) -> Moments:
        shape = math.prod(leaf.shape[:-1]), math.prod(leaf.shape[-1:])
        axes = [i for i in (0, 1) if leaf.ndim > 1 and shape[i] <= max_precondition_dim]
        eyes = [jnp.eye(shape[axis], dtype=leaf.dtype) for axis in axes]
        sides = {axis: Side(0 * eye, eye) for axis, eye in zip(axes, eyes, strict=True)}
        return Moments(jnp.zeros(shape, leaf.dtype), jnp.zeros(shape, leaf.dtype), sides)

    def init(params: Any) -> SoapState:
        return SoapState(jnp.zeros([], jnp.int32), list(map(start, jax.tree.leaves(params))))

    def step(grad: jax.Array, old: Moments, count: jax.Array) -> tuple[jax.Array, Moments]:
        first, due = count == 0, (count > 0) & (count % precondition_frequency == 0)
        mu = jnp.where(first, 0, b1 * old.mu + (1 - b1) * grad)
        nu = jnp.where(first, 0, b2 * old.nu + (1 - b2) * _rotate(grad, old.sides) ** 2)
        steps = jnp.maximum(count, 1).astype(grad.dtype)  # of Adam
        mean, square = _rotate(mu, old.sides) / (1 - b1**steps), nu / (1 - b2**steps)
        direction = _rotate(mean / (jnp.sqrt(square) + eps), old.sides, back=True)
        sides = {}
        for axis, side in old.sides.items():
            factor = b2 * side.factor + (1 - b2) * jnp.tensordot(grad, grad, (1 - axis, 1 - axis))
            sides[axis] = Side(factor, _renew(first, due, factor, side.basis))
        return direction, Moments(mu, nu, sides)

    def update(updates: Any, state: SoapState, params: Any = None) -> tuple[Any, SoapState]:
        grads, structure = jax.tree.flatten(updates)
        pairs = zip(grads, state.moments, strict=True)
        steps = [step(grad.reshape(old.mu.shape), old, state.step) for grad, old in pairs]
        new = [one.reshape(grad.shape) for grad, (one, _) in zip(grads, steps, strict=True)]
        moments = [one for _, one in steps]
        return jax.tree.unflatten(structure, new), SoapState(state.step + 1, moments)

    decay, rate = optax.add_decayed_weights(weight_decay, mask), optax.scale_by_learning_rate
    return optax.chain(optax.GradientTransformation(init, update), decay, rate(learning_rate))


def _rotate(matrix: jax.Array, sides: dict[int, Side], back: bool = False) -> jax.Array:
    """Returns a matrix [m, n] rotated into the eigenbasis, or out of it."""
    for axis, side in sides.items():
        rotated = jnp.tensordot(matrix, side.basis, axes=(axis, int(back)))
        matrix = jnp.moveaxis(rotated, -1, axis)
    return matrix


@custom_vmap
def _renew(first: jax.Array, due: jax.Array, factor: jax.Array, basis: jax.Array) -> jax.Array:
    """Returns all eigenvectors [..., n, n], or where due [...] those of one power iteration."""
    # The largest eigenvalue comes first, which is the order that power iteration leads to.
    start = jax.lax.cond(first.any(), lambda: jnp.linalg.eigh(factor)[1][..., ::-1], lambda: basis)
    power = jax.lax.cond(due.any(), lambda: jnp.linalg.qr(factor @ basis)[0], lambda: basis)
    return jnp.where(first[..., None, None], start, jnp.where(due[..., None, None], power, basis))


@_renew.def_vmap
def _renew_many(size: int, mapped: list[bool], *args: jax.Array) -> tuple[jax.Array, bool]:
    """Calls it once for all: a mapped `cond` would compute its branches in every step."""
    pairs = zip(args, mapped, strict=True)
    whole = [one if own else jnp.broadcast_to(one, (size, *one.shape)) for one, own in pairs]
    return _renew(*whole), True
