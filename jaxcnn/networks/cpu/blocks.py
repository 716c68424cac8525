"""Blocks: pictures as the last axis, cut into tiles.

A block is float[T, T, C, H/T, W/T, N]: N pictures of H x W pixels, cut into tiles of T x T; the
first two axes are a pixel's row and column in its tile. An array of S slices of a batch has S in
front. `jaxcnn.networks.cpu.stages` says what for.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Pictures in a slice. Half and twice as many are slower for one of the networks or both.
_SLICE = 64


def to_slices(images: jax.Array, tile: int) -> jax.Array:
    """Cuts float[B, H, W, C] images into float[S, tile, tile, C, H/tile, W/tile, N], B = S N."""
    batch, height, width, channels = images.shape
    size = _slice_size(batch)
    tiled = images.reshape(batch // size, size, height // tile, tile, width // tile, tile, channels)
    return written(tiled.transpose(0, 3, 5, 6, 2, 4, 1))


def to_features(x: jax.Array) -> jax.Array:
    """Flattens float[S, 1, 1, C, H, W, N] to float[S N, H W C], the order of NHWC images."""
    slices, _, _, _, _, _, size = x.shape
    return x[:, 0, 0].transpose(0, 4, 2, 3, 1).reshape(slices * size, -1)


def retile(x: jax.Array, tile: int) -> jax.Array:
    """Changes the tiles of a block from 1 to `tile` or back."""
    old, _, channels, height, width, size = x.shape
    if old == tile:
        return x
    if old == 1:
        squares = x.reshape(channels, height // tile, tile, width // tile, tile, size)
        return squares.transpose(2, 4, 0, 1, 3, 5)
    return x.transpose(2, 3, 0, 4, 1, 5).reshape(1, 1, channels, height * old, width * old, size)


def tile_kernel(kernel: jax.Array, tile: int) -> jax.Array:
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


def patches(x: jax.Array, kernel_size: int) -> jax.Array:
    """Returns what each tile's outputs look at: float[(T + K - 1)^2 C, H/T W/T N] of a block.

    Columns are gathered first and rows of the result then, which writes long pieces of memory.
    """
    tile, _, channels, height, width, size = x.shape
    offsets = _offsets(tile, kernel_size)
    edge = -offsets[0][1]
    margins = ((0, 0), (0, 0), (0, 0), (edge, edge), (edge, edge), (0, 0))
    padded = written(jnp.pad(x, margins))
    columns = jnp.stack(
        [padded[:, b, :, :, edge + shift : edge + shift + width] for b, shift in offsets]
    )
    columns = written(columns)
    rows = jnp.stack(
        [columns[:, a, :, edge + shift : edge + shift + height] for a, shift in offsets]
    )
    return rows.reshape(len(offsets) ** 2 * channels, height * width * size)


def patches_transpose(
    d_patches: jax.Array, block_shape: Sequence[int], kernel_size: int
) -> jax.Array:
    """Adds up the patches' cotangents where they overlap: the transpose of `patches`."""
    tile, _, channels, height, width, size = block_shape
    offsets = _offsets(tile, kernel_size)
    d_patches = d_patches.reshape(len(offsets), len(offsets), channels, height, width, size)
    if tile == 1:
        edge = -offsets[0][1]
        margin = [(edge + shift, edge - shift) for _, shift in offsets]
        padded: Any = sum(
            jnp.pad(d_patches[i, j], ((0, 0), margin[i], margin[j], (0, 0)))
            for i in range(kernel_size)
            for j in range(kernel_size)
        )
        return padded[None, None, :, edge : edge + height, edge : edge + width]
    rows: list[Any] = [0.0] * tile
    for i, (a, shift) in enumerate(offsets):
        rows[a] = rows[a] + _shift(d_patches[i], shift, axis=2)
    corners: list[Any] = []
    for row in rows:
        columns: list[Any] = [0.0] * tile
        for j, (b, shift) in enumerate(offsets):
            columns[b] = columns[b] + _shift(row[j], shift, axis=2)
        corners += columns
    return join(corners, tile)


def corners(x: jax.Array) -> list[jax.Array]:
    """Returns the four corners of all 2 x 2 squares, float[C, H/2, W/2, N] each."""
    if x.shape[0] == 2:
        return [x[a, b] for a in (0, 1) for b in (0, 1)]
    _, _, channels, height, width, size = x.shape
    squares = x.reshape(channels, height // 2, 2, width // 2, 2, size)
    return [squares[:, :, a, :, b] for a in (0, 1) for b in (0, 1)]


def join(corners: list[jax.Array], tile: int) -> jax.Array:
    """Puts four corners together to a block: the transpose of `corners`."""
    if tile == 2:
        return jnp.stack([jnp.stack(corners[:2]), jnp.stack(corners[2:])])
    channels, height, width, size = corners[0].shape
    rows = [jnp.stack(corners[:2], axis=3), jnp.stack(corners[2:], axis=3)]
    return jnp.stack(rows, axis=2).reshape(1, 1, channels, 2 * height, 2 * width, size)


def channels(x: jax.Array, like: jax.Array) -> jax.Array:
    """Shapes float[C] to be broadcast over an array of [..., C, H, W, N]."""
    return x.reshape((1,) * (like.ndim - 4) + (-1, 1, 1, 1))


def normalize(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """Scales and shifts the channels of a block, or of slices of them."""
    return x * channels(scale, x) + channels(shift, x)


def written(x: jax.Array) -> jax.Array:
    """Keeps the compiler from rewriting a value together with what uses it.

    Without, it turns the two steps of `patches` into one again.
    """
    return lax.optimization_barrier(x)


def _slice_size(batch: int) -> int:
    """Returns a divisor of the batch size that is not much larger or smaller than a slice."""
    if batch <= _SLICE:
        return batch
    divisors = [n for n in range(_SLICE, _SLICE // 4, -1) if batch % n == 0]
    return divisors[0] if divisors else batch


def _offsets(tile: int, kernel_size: int) -> list[tuple[int, int]]:
    """Returns the rows that a tile's outputs look at, as (row in its tile, tile counted from it).

    The same holds for columns.
    """
    reach = kernel_size // 2
    return [(offset % tile, offset // tile) for offset in range(-reach, tile + reach)]


def _shift(x: jax.Array, by: int, axis: int) -> jax.Array:
    """Moves an array along an axis and fills up with zeros."""
    size = x.shape[axis]
    margins = [(0, 0)] * x.ndim
    margins[axis] = (max(by, 0), max(-by, 0))
    kept = lax.slice_in_dim(x, max(-by, 0), size - max(by, 0), axis=axis)
    return jnp.pad(kept, margins)
