"""Stages: convolutions fused with the layers around them, for training on CPU.

A stage computes slice after slice of the batch. Three things make it fast, each measured in
docs/convolutions.md:

* Images are the last axis, so that every operation runs over long rows of memory whatever the
  number of channels.
* A matrix product computes squares of 2 x 2 outputs at once, from the 4 x 4 (or 6 x 6) inputs they
  share: more multiplications than necessary, but far fewer patches to write and read. The four
  corners of the squares are kept apart in leading axes, which makes pooling them cheap.
* The batch is cut into slices whose patches fit into the caches. The backward pass computes the
  patches again instead of keeping them.

BatchNorm needs sums over the whole batch. Therefore a stage takes its input before normalisation,
together with the scale and shift that normalise it, and returns the sums for the next stage's.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.networks.cpu import blocks

# All axes of a block except the channels.
_NOT_CHANNELS = (0, 1, 3, 4, 5)


@dataclass(frozen=True)
class Stage:
    """A convolution of stride 1 with zero padding that keeps the size, and the layers around it.

    In order: scale and shift (BatchNorm's), relu, average pooling; the convolution; relu; sums
    for BatchNorm; max pooling. Everything except the convolution is optional.

    Attributes:
        tile: T of the blocks that the convolution works on, 1 or 2.
        relu_before: relu before the convolution.
        average_before: average pooling over 2 x 2 squares before the convolution.
        relu_after: relu after the convolution.
        sums: return the sums of the values and of their squares, for BatchNorm.
        max_after: max pooling over 2 x 2 squares, last.
    """

    tile: int = 1
    relu_before: bool = False
    average_before: bool = False
    relu_after: bool = False
    sums: bool = False
    max_after: bool = False

    def __call__(
        self,
        x: jax.Array,
        kernel: jax.Array,
        bias: jax.Array,
        scale: jax.Array | None = None,
        shift: jax.Array | None = None,
        sign: jax.Array | None = None,
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Runs the stage.

        Args:
            x: float[S, T', T', Cin, H/T', W/T', N].
            kernel: float[K, K, Cin, Cout], K odd.
            bias: float[Cout].
            scale: float[Cin] to multiply the input with, or None for no scale and shift.
            shift: float[Cin] to add to it then.
            sign: float[Cout] of +1 and -1, or None for +1. With -1 the pooling takes the smallest
                value of each square, which the next scale, if negative, makes the largest.

        Returns:
            The output, float[S, T, T, Cout, H/T, W/T, N], or float[S, 1, 1, Cout, H/2, W/2, N]
            after max pooling; and with `sums` two float[Cout]: the sums over all images and pixels
            of the values before pooling, and of their squares.
        """
        out: jax.Array
        out, sums = _run(self, x, kernel, bias, scale, shift, sign)
        return out, sums


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(
    stage: Stage,
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    scale: jax.Array | None,
    shift: jax.Array | None,
    sign: jax.Array | None,
) -> Any:
    """The stage as a function with a handwritten reverse-mode derivative, see `Stage.__call__`."""
    return _forward(stage, x, kernel, bias, scale, shift, sign)[0]


def _forward(
    stage: Stage,
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    scale: jax.Array | None,
    shift: jax.Array | None,
    sign: jax.Array | None,
) -> Any:
    """Returns the stage's outputs, and what the backward pass needs: the arguments and y.

    y, float[S, T, T, Cout, H/T, W/T, N], are the values before max pooling.
    """
    zeros = (jnp.zeros(kernel.shape[-1], x.dtype),) * (2 if stage.sums else 0)

    def one(block: jax.Array) -> tuple[Any, Any]:
        y = _convolve(stage, block, kernel, bias, scale, shift)
        sums = (y.sum(_NOT_CHANNELS), (y * y).sum(_NOT_CHANNELS)) if stage.sums else ()
        return sums, ((y, _max_pool(y, sign)) if stage.max_after else (y,))

    sums, outputs = _for_each_slice(one, zeros, x)
    return (outputs[-1], sums), ((x, kernel, bias, scale, shift, sign), outputs[0])


def _backward(stage: Stage, residuals: Any, cotangents: Any) -> Any:
    """Returns the cotangents of all arguments, with the patches computed again."""
    (x, kernel, bias, scale, shift, sign), y = residuals
    d_out, d_sums = cotangents
    tiles, tile_transpose = jax.vjp(lambda kernel: blocks.tile_kernel(kernel, stage.tile), kernel)

    def one(block: tuple[jax.Array, ...]) -> tuple[Any, Any]:
        x, y, d_out = block
        dy = blocks.materialize(_after_transpose(stage, y, sign, d_out, d_sums))
        inputs = _prepare(stage, x, scale, shift)
        flat = dy.reshape(-1, dy[0, 0, 0].size)
        d_tiles = _dot(blocks.patches(inputs, kernel.shape[0]), flat, 1, 1)
        d_patches = _dot(tiles, flat, 1, 0)
        dx = blocks.patches_transpose(d_patches, inputs.shape, kernel.shape[0])
        dx = _prepare_transpose(stage, x, scale, shift, blocks.materialize(dx))
        sums = [d_tiles, dy.sum(_NOT_CHANNELS)]
        if scale is None:
            return sums, dx
        dx = blocks.materialize(dx)
        sums += [(dx * x).sum(_NOT_CHANNELS), dx.sum(_NOT_CHANNELS)]
        return sums, dx * blocks.channels(scale, dx)

    zeros = [jnp.zeros_like(tiles), jnp.zeros_like(bias)]
    if scale is not None:
        zeros += [jnp.zeros_like(scale), jnp.zeros_like(shift)]
    (d_tiles, d_bias, *d_affine), dx = _for_each_slice(one, zeros, (x, y, d_out))
    (d_kernel,) = tile_transpose(d_tiles)
    d_scale, d_shift = d_affine or (None, None)
    d_sign = None if sign is None else jnp.zeros_like(sign)
    return dx, d_kernel, d_bias, d_scale, d_shift, d_sign


_run.defvjp(_forward, _backward)


def _for_each_slice(function: Callable[..., Any], zeros: Any, slices: Any) -> tuple[Any, Any]:
    """Maps blocks one after the other; adds up the sums and stacks the outputs.

    Args:
        function: block -> (sums, outputs), pytrees of arrays.
        zeros: initial value of the sums.
        slices: pytree of arrays with S slices in the first axis.

    Returns:
        The sums over all slices, and the outputs with S slices in the first axis.
    """
    if jax.tree.leaves(slices)[0].shape[0] == 1:
        sums, outputs = function(jax.tree.map(lambda leaf: leaf[0], slices))
        return sums, jax.tree.map(lambda leaf: leaf[None], outputs)

    def body(total: Any, block: Any) -> tuple[Any, Any]:
        sums, outputs = function(block)
        return jax.tree.map(jnp.add, total, sums), outputs

    return lax.scan(body, zeros, slices)


def _convolve(
    stage: Stage,
    x: jax.Array,
    kernel: jax.Array,
    bias: jax.Array,
    scale: jax.Array | None,
    shift: jax.Array | None,
) -> jax.Array:
    """Computes a stage for one block up to max pooling: float[T, T, Cout, H/T, W/T, N]."""
    inputs = _prepare(stage, x, scale, shift)
    tile, _, _, height, width, size = inputs.shape
    patches = blocks.patches(inputs, kernel.shape[0])
    y = _dot(blocks.tile_kernel(kernel, tile), patches, 0, 0)
    y = y.reshape(tile, tile, kernel.shape[-1], height, width, size)
    y = y + blocks.channels(bias, y)
    return jax.nn.relu(y) if stage.relu_after else y


def _prepare(
    stage: Stage, x: jax.Array, scale: jax.Array | None, shift: jax.Array | None
) -> jax.Array:
    """Applies the layers before the convolution to a block, and returns it in tiles of T x T."""
    if scale is not None and shift is not None:
        x = blocks.normalize(x, scale, shift)
    if stage.relu_before:
        x = jax.nn.relu(x)
    if stage.average_before:
        first, *others = blocks.corners(x)
        x = (sum(others, first) * 0.25)[None, None]
    return blocks.materialize(blocks.retile(x, stage.tile))


def _prepare_transpose(
    stage: Stage,
    x: jax.Array,
    scale: jax.Array | None,
    shift: jax.Array | None,
    dy: jax.Array,
) -> jax.Array:
    """The transpose of `_prepare`, up to its scale and shift: the cotangent of their output."""
    if stage.average_before:
        dy = blocks.join([blocks.retile(dy, 1)[0, 0] * 0.25] * 4, x.shape[0])
    dy = blocks.retile(dy, x.shape[0])
    if not stage.relu_before:
        return dy
    if scale is not None and shift is not None:
        x = blocks.normalize(x, scale, shift)
    return jnp.where(x > 0, dy, 0.0)


def _after_transpose(
    stage: Stage, y: jax.Array, sign: jax.Array | None, d_out: jax.Array, d_sums: Any
) -> jax.Array:
    """Carries a block's cotangents back through pooling, sums and relu to the convolution.

    Args:
        stage: of which the block is.
        y: float[T, T, Cout, H/T, W/T, N], the values before max pooling.
        sign: float[Cout], or None for +1.
        d_out: cotangent of the stage's output for this block.
        d_sums: cotangents of its sums, float[Cout], for the whole batch.

    Returns:
        float[T, T, Cout, H/T, W/T, N].
    """

    def through_sums(dy: jax.Array, y: jax.Array) -> jax.Array:
        if stage.sums:
            dy = dy + blocks.channels(d_sums[0], y) + y * blocks.channels(2 * d_sums[1], y)
        return jnp.where(y > 0, dy, 0.0) if stage.relu_after else dy

    if not stage.max_after:
        return through_sums(d_out, y)
    routed = zip(_max_pool_transpose(y, d_out, sign), blocks.corners(y), strict=True)
    return blocks.join([through_sums(*corner) for corner in routed], stage.tile)


def _max_pool(y: jax.Array, sign: jax.Array | None) -> jax.Array:
    """Takes the largest value of each square, or the smallest where the channel's sign is -1."""
    corners, signs = _signed_corners(y, sign)
    return (_largest(corners) * signs)[None, None]


def _max_pool_transpose(y: jax.Array, d_out: jax.Array, sign: jax.Array | None) -> list[jax.Array]:
    """Routes each square's cotangent to the first of its largest corners, as PyTorch does.

    Args:
        y: float[T, T, C, H/T, W/T, N], the values before pooling.
        d_out: float[1, 1, C, H/2, W/2, N].
        sign: float[C], or None for +1.

    Returns:
        The cotangents of the four corners, float[C, H/2, W/2, N] each.
    """
    corners, _ = _signed_corners(y, sign)
    largest = _largest(corners)
    taken = [corner == largest for corner in corners]
    free = jnp.ones_like(taken[0])
    routed = []
    for hit in taken:
        routed.append(jnp.where(hit & free, d_out[0, 0], 0.0))
        free = free & ~hit
    return routed


def _signed_corners(y: jax.Array, sign: jax.Array | None) -> tuple[list[jax.Array], Any]:
    corners = blocks.corners(y)
    if sign is None:
        return corners, 1.0
    signs = blocks.channels(sign, corners[0])
    return [corner * signs for corner in corners], signs


def _largest(corners: list[jax.Array]) -> jax.Array:
    top, bottom = jnp.maximum(*corners[:2]), jnp.maximum(*corners[2:])
    return jnp.maximum(top, bottom)


def _dot(lhs: jax.Array, rhs: jax.Array, lhs_axis: int, rhs_axis: int) -> jax.Array:
    """Multiplies two matrices over the given axes."""
    return lax.dot_general(lhs, rhs, (((lhs_axis,), (rhs_axis,)), ((), ())))
