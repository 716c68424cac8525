"""How the convolutional layers train on CPU: stages, worked through in slices of the batch.

A stage is a convolution with what stands directly before and after it. Three things make it fast,
each measured in benchmarks/results/cpu.md:

* Pictures are the last axis, so that every operation runs over long rows of memory whatever the
  number of channels.
* A product computes squares of 2 x 2 outputs at once, from the 4 x 4 (or 6 x 6) inputs they share:
  more multiplications than necessary, but far fewer patches to write and read. The four corners of
  the squares stay apart in leading axes, which makes pooling them cheap.
* The batch is cut into slices whose patches fit the caches, and they are computed again in the
  backward pass rather than kept.

BatchNorm needs sums over the whole batch. So a stage takes its input before normalisation together
with the scale and shift that normalise it, and returns the sums for the next one's.

A block is float[T, T, C, H/T, W/T, N]: N pictures of H x W pixels, cut into tiles of T x T; the
first two axes are a pixel's row and column in its tile. An array of S slices has S in front.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Pictures in a slice. Half and twice as many are slower for one of the networks or both.
_SLICE = 64

# All axes of a block but its channels.
_PICTURES = (0, 1, 3, 4, 5)


@dataclass(frozen=True)
class Stage:
    """A convolution of stride 1 that keeps the size, with what surrounds it.

    In order: scale and shift (BatchNorm's), relu, average pooling; the convolution; relu; sums
    for BatchNorm; max pooling. All but the convolution can be left out.

    Attributes:
        tile: T of the block that the convolution works on, 1 or 2.
        relu_before: relu before the convolution.
        average_before: average pooling over 2 x 2 squares before the convolution.
        relu_after: relu after the convolution.
        sums: sums of the values and of their squares, for BatchNorm.
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
            sign: float[Cout] of +1 and -1, or None for +1. With -1 the smallest of each square is
                taken, which becomes the largest once the next scale, a negative one, is applied.

        Returns:
            The output, float[S, T, T, Cout, H/T, W/T, N], or float[S, 1, 1, Cout, H/2, W/2, N]
            after max pooling; and, where asked for, two float[Cout]: the sums over all pictures
            and pixels of the values before the pooling, and of their squares.
        """
        out: jax.Array
        out, sums = _differentiable(self)(x, kernel, bias, scale, shift, sign)
        return out, sums


def to_slices(images: jax.Array, tile: int) -> jax.Array:
    """Cuts float[B, H, W, C] images into float[S, tile, tile, C, H/tile, W/tile, N], B = S N."""
    batch, height, width, channels = images.shape
    size = _slice_size(batch)
    tiled = images.reshape(batch // size, size, height // tile, tile, width // tile, tile, channels)
    return _written(tiled.transpose(0, 3, 5, 6, 2, 4, 1))


def to_features(x: jax.Array) -> jax.Array:
    """Flattens float[S, 1, 1, C, H, W, N] to float[S N, H W C], the order of NHWC images."""
    slices, _, _, _, _, _, size = x.shape
    return x[:, 0, 0].transpose(0, 4, 2, 3, 1).reshape(slices * size, -1)


def normalize(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """Scales and shifts the channels of a block, or of slices of them."""
    return x * _channels(scale, x) + _channels(shift, x)


def _slice_size(batch: int) -> int:
    """Returns a divisor of the batch size that is not much larger or smaller than a slice."""
    if batch <= _SLICE:
        return batch
    divisors = [n for n in range(_SLICE, _SLICE // 4, -1) if batch % n == 0]
    return divisors[0] if divisors else batch


def _differentiable(stage: Stage) -> Callable[..., Any]:
    """Returns the stage as a function with a derivative of its own."""

    @jax.custom_vjp
    def run(*args: Any) -> Any:
        return forward(*args)[0]

    def forward(x: jax.Array, kernel: jax.Array, *rest: Any) -> Any:
        zeros = (jnp.zeros(kernel.shape[-1], x.dtype),) * (2 if stage.sums else 0)

        def one(block: jax.Array) -> tuple[Any, Any]:
            y = _convolve(stage, block, kernel, *rest[:-1])
            sums = (y.sum(_PICTURES), (y * y).sum(_PICTURES)) if stage.sums else ()
            return sums, ((y, _max_pool(y, rest[-1])) if stage.max_after else (y,))

        sums, ys = _for_each_slice(one, zeros, x)
        return (ys[-1], sums), ((x, kernel, *rest), ys[0])

    def backward(residuals: Any, cotangents: Any) -> Any:
        (x, kernel, bias, scale, shift, sign), y = residuals
        d_out, d_sums = cotangents
        tiles, tile_transpose = jax.vjp(lambda kernel: _tile_kernel(kernel, stage.tile), kernel)

        def one(block: tuple[jax.Array, ...]) -> tuple[Any, Any]:
            x, y, d_out = block

            def through_sums(dy: jax.Array, y: jax.Array) -> jax.Array:
                if stage.sums:
                    dy = dy + _channels(d_sums[0], y) + y * _channels(2 * d_sums[1], y)
                return jnp.where(y > 0, dy, 0.0) if stage.relu_after else dy

            if stage.max_after:
                routed = _max_pool_transpose(y, d_out, sign)
                corners = zip(routed, _corners(y), strict=True)
                dy = _join([through_sums(*corner) for corner in corners], stage.tile)
            else:
                dy = through_sums(d_out, y)
            dy = _written(dy)
            inputs = _prepare(stage, x, scale, shift)
            flat = dy.reshape(-1, dy[0, 0, 0].size)
            d_tiles = _dot(_patches(inputs, kernel.shape[0]), flat, 1, 1)
            d_patches = _dot(tiles, flat, 1, 0)
            dx = _patches_transpose(d_patches, inputs.shape, kernel.shape[0])
            dx = _prepare_transpose(stage, x, scale, shift, _written(dx))
            sums = [d_tiles, dy.sum(_PICTURES)]
            if scale is None:
                return sums, dx
            dx = _written(dx)
            sums += [(dx * x).sum(_PICTURES), dx.sum(_PICTURES)]
            return sums, dx * _channels(scale, dx)

        zeros = [jnp.zeros_like(tiles), jnp.zeros_like(bias)]
        if scale is not None:
            zeros += [jnp.zeros_like(scale), jnp.zeros_like(shift)]
        (d_tiles, d_bias, *d_affine), dx = _for_each_slice(one, zeros, (x, y, d_out))
        (d_kernel,) = tile_transpose(d_tiles)
        d_scale, d_shift = d_affine or (None, None)
        return dx, d_kernel, d_bias, d_scale, d_shift, _zeros_like(sign)

    run.defvjp(forward, backward)
    return run


def _for_each_slice(function: Callable[..., Any], zeros: Any, slices: Any) -> tuple[Any, Any]:
    """Maps blocks to (sums, outputs) one after the other; adds the sums, stacks the outputs."""
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
    inputs = _prepare(stage, x, scale, shift)
    tile, _, _, height, width, size = inputs.shape
    patches = _patches(inputs, kernel.shape[0])
    y = _dot(_tile_kernel(kernel, tile), patches, 0, 0)
    y = y.reshape(tile, tile, kernel.shape[-1], height, width, size)
    y = y + _channels(bias, y)
    return jax.nn.relu(y) if stage.relu_after else y


def _prepare(
    stage: Stage, x: jax.Array, scale: jax.Array | None, shift: jax.Array | None
) -> jax.Array:
    """Does to a block what stands before the convolution."""
    if scale is not None and shift is not None:
        x = normalize(x, scale, shift)
    if stage.relu_before:
        x = jax.nn.relu(x)
    if stage.average_before:
        first, *others = _corners(x)
        x = (sum(others, first) * 0.25)[None, None]
    return _written(_retile(x, stage.tile))


def _prepare_transpose(
    stage: Stage,
    x: jax.Array,
    scale: jax.Array | None,
    shift: jax.Array | None,
    dy: jax.Array,
) -> jax.Array:
    """Carries a cotangent back to the input after scale and shift, if any."""
    if stage.average_before:
        dy = _join([_retile(dy, 1)[0, 0] * 0.25] * 4, x.shape[0])
    dy = _retile(dy, x.shape[0])
    if not stage.relu_before:
        return dy
    if scale is not None and shift is not None:
        x = normalize(x, scale, shift)
    return jnp.where(x > 0, dy, 0.0)


def _tile_kernel(kernel: jax.Array, tile: int) -> jax.Array:
    """Spreads float[K, K, Cin, Cout] to float[(T + K - 1)^2 Cin, T^2 Cout].

    Column (a, b, o) holds the kernel at the place that output (a, b) of a tile looks at.
    """
    size, _, features_in, features_out = kernel.shape

    def at(row: int, column: int) -> jax.Array:
        rows, columns = (row, tile - 1 - row), (column, tile - 1 - column)
        return jnp.pad(kernel, (rows, columns, (0, 0), (0, 0)))

    spread = [at(row, column) for row in range(tile) for column in range(tile)]
    side = tile + size - 1
    return jnp.stack(spread, axis=-2).reshape(side * side * features_in, tile**2 * features_out)


def _offsets(tile: int, kernel_size: int) -> list[tuple[int, int]]:
    """Returns the rows that a tile's outputs look at, as (row in its tile, tile counted from it).

    The same holds for columns.
    """
    reach = kernel_size // 2
    return [(offset % tile, offset // tile) for offset in range(-reach, tile + reach)]


def _patches(x: jax.Array, kernel_size: int) -> jax.Array:
    """Returns what each tile's outputs look at: float[(T + K - 1)^2 C, H/T W/T N] of a block.

    Columns are gathered first and rows of the result then, which writes long pieces of memory.
    """
    tile, _, channels, height, width, size = x.shape
    offsets = _offsets(tile, kernel_size)
    edge = -offsets[0][1]
    margins = ((0, 0), (0, 0), (0, 0), (edge, edge), (edge, edge), (0, 0))
    padded = _written(jnp.pad(x, margins))
    columns = jnp.stack(
        [padded[:, b, :, :, edge + shift : edge + shift + width] for b, shift in offsets]
    )
    columns = _written(columns)
    rows = jnp.stack(
        [columns[:, a, :, edge + shift : edge + shift + height] for a, shift in offsets]
    )
    return rows.reshape(len(offsets) ** 2 * channels, height * width * size)


def _patches_transpose(
    patches: jax.Array, block_shape: Sequence[int], kernel_size: int
) -> jax.Array:
    """Adds up the patches' cotangents where they overlap: the transpose of `_patches`."""
    tile, _, channels, height, width, size = block_shape
    offsets = _offsets(tile, kernel_size)
    patches = patches.reshape(len(offsets), len(offsets), channels, height, width, size)
    if tile == 1:
        edge = -offsets[0][1]
        margin = [(edge + shift, edge - shift) for _, shift in offsets]
        padded: Any = sum(
            jnp.pad(patches[i, j], ((0, 0), margin[i], margin[j], (0, 0)))
            for i in range(kernel_size)
            for j in range(kernel_size)
        )
        return padded[None, None, :, edge : edge + height, edge : edge + width]
    rows: list[Any] = [0.0] * tile
    for i, (a, shift) in enumerate(offsets):
        rows[a] = rows[a] + _shift(patches[i], shift, axis=2)
    corners: list[Any] = []
    for row in rows:
        columns: list[Any] = [0.0] * tile
        for j, (b, shift) in enumerate(offsets):
            columns[b] = columns[b] + _shift(row[j], shift, axis=2)
        corners += columns
    return _join(corners, tile)


def _shift(x: jax.Array, by: int, axis: int) -> jax.Array:
    """Moves an array along an axis and fills up with zeros."""
    size = x.shape[axis]
    margins = [(0, 0)] * x.ndim
    margins[axis] = (max(by, 0), max(-by, 0))
    kept = lax.slice_in_dim(x, max(-by, 0), size - max(by, 0), axis=axis)
    return jnp.pad(kept, margins)


def _corners(x: jax.Array) -> list[jax.Array]:
    """Returns the four corners of all 2 x 2 squares, float[C, H/2, W/2, N] each."""
    if x.shape[0] == 2:
        return [x[a, b] for a in (0, 1) for b in (0, 1)]
    _, _, channels, height, width, size = x.shape
    squares = x.reshape(channels, height // 2, 2, width // 2, 2, size)
    return [squares[:, :, a, :, b] for a in (0, 1) for b in (0, 1)]


def _join(corners: list[jax.Array], tile: int) -> jax.Array:
    """Puts four corners together to a block: the transpose of `_corners`."""
    if tile == 2:
        return jnp.stack([jnp.stack(corners[:2]), jnp.stack(corners[2:])])
    channels, height, width, size = corners[0].shape
    rows = [jnp.stack(corners[:2], axis=3), jnp.stack(corners[2:], axis=3)]
    return jnp.stack(rows, axis=2).reshape(1, 1, channels, 2 * height, 2 * width, size)


def _retile(x: jax.Array, tile: int) -> jax.Array:
    """Changes the tiles of a block from 1 to `tile` or back."""
    old, _, channels, height, width, size = x.shape
    if old == tile:
        return x
    if old == 1:
        squares = x.reshape(channels, height // tile, tile, width // tile, tile, size)
        return squares.transpose(2, 4, 0, 1, 3, 5)
    return x.transpose(2, 3, 0, 4, 1, 5).reshape(1, 1, channels, height * old, width * old, size)


def _max_pool(y: jax.Array, sign: jax.Array | None) -> jax.Array:
    """Takes the largest of each square, or the smallest where the channel's sign is -1."""
    corners, signs = _signed_corners(y, sign)
    return (_largest(corners) * signs)[None, None]


def _max_pool_transpose(y: jax.Array, d_out: jax.Array, sign: jax.Array | None) -> list[jax.Array]:
    """Gives each square's cotangent to the first of its corners that was taken, as PyTorch does."""
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
    corners = _corners(y)
    if sign is None:
        return corners, 1.0
    signs = _channels(sign, corners[0])
    return [corner * signs for corner in corners], signs


def _largest(corners: list[jax.Array]) -> jax.Array:
    top, bottom = jnp.maximum(*corners[:2]), jnp.maximum(*corners[2:])
    return jnp.maximum(top, bottom)


def _channels(x: jax.Array, like: jax.Array) -> jax.Array:
    """Shapes float[C] to be broadcast over an array of [..., C, H, W, N]."""
    return x.reshape((1,) * (like.ndim - 4) + (-1, 1, 1, 1))


def _dot(lhs: jax.Array, rhs: jax.Array, lhs_axis: int, rhs_axis: int) -> jax.Array:
    """Multiplies two matrices over the given axes."""
    return lax.dot_general(lhs, rhs, (((lhs_axis,), (rhs_axis,)), ((), ())))


def _written(x: jax.Array) -> jax.Array:
    """Keeps the compiler from rewriting a value together with what uses it.

    Without, it turns the two steps of `_patches` into one again.
    """
    return lax.optimization_barrier(x)


def _zeros_like(x: jax.Array | None) -> jax.Array | None:
    return None if x is None else jnp.zeros_like(x)
