"""Blocks: images as the last axis, cut into tiles; `jaxcnn.networks.cpu.stages` works on them.

A block is float[T, T, C, H/T, W/T, N]: N images of H x W pixels, cut into tiles of T x T pixels.
The first two axes are a pixel's row and column in its tile. A batch that is cut into S slices is an
array of S blocks.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

# Images per slice. Half and twice as many are slower for one of the networks or both.
_SLICE = 64


def to_slices(images: jax.Array, tile: int) -> jax.Array:
    """Cuts a batch of images into slices, and each slice into a block.

    Args:
        images: float[B, H, W, C].
        tile: T, which divides H and W.

    Returns:
        float[S, T, T, C, H/T, W/T, N] with S N = B.
    """
    batch, height, width, channels = images.shape
    size = _slice_size(batch)
    tiled = images.reshape(batch // size, size, height // tile, tile, width // tile, tile, channels)
    return materialize(tiled.transpose(0, 3, 5, 6, 2, 4, 1))


def to_features(x: jax.Array) -> jax.Array:
    """Flattens float[S, 1, 1, C, H, W, N] to float[S N, H W C], in the order of NHWC images."""
    slices, _, _, _, _, _, size = x.shape
    return x[:, 0, 0].transpose(0, 4, 2, 3, 1).reshape(slices * size, -1)


def retile(x: jax.Array, tile: int) -> jax.Array:
    """Changes the size of a block's tiles.

    Args:
        x: float[T', T', C, H/T', W/T', N].
        tile: T, where one of T and T' is 1.

    Returns:
        float[T, T, C, H/T, W/T, N].
    """
    old, _, channels, height, width, size = x.shape
    if old == tile:
        return x
    if old == 1:
        squares = x.reshape(channels, height // tile, tile, width // tile, tile, size)
        return squares.transpose(2, 4, 0, 1, 3, 5)
    return x.transpose(2, 3, 0, 4, 1, 5).reshape(1, 1, channels, height * old, width * old, size)


def tile_kernel(kernel: jax.Array, tile: int) -> jax.Array:
    """Returns the matrix that maps the patch of a tile to all its outputs.

    Column (a, b, o) holds the kernel of feature o where output (a, b) of the tile reads the patch,
    and zeros elsewhere.

    Args:
        kernel: float[K, K, Cin, Cout].
        tile: T.

    Returns:
        float[(T + K - 1)^2 Cin, T^2 Cout].
    """
    size, _, features_in, features_out = kernel.shape

    def at(row: int, column: int) -> jax.Array:
        rows, columns = (row, tile - 1 - row), (column, tile - 1 - column)
        return jnp.pad(kernel, (rows, columns, (0, 0), (0, 0)))

    spread = [at(row, column) for row in range(tile) for column in range(tile)]
    side = tile + size - 1
    return jnp.stack(spread, axis=-2).reshape(side * side * features_in, tile**2 * features_out)


def patches(x: jax.Array, kernel_size: int) -> jax.Array:
    """Returns the patch of each tile: all inputs that its outputs depend on.

    Columns are gathered first, then rows of the result, which writes memory in long runs.

    Args:
        x: float[T, T, C, H/T, W/T, N], padded with zeros here.
        kernel_size: K, odd.

    Returns:
        float[(T + K - 1)^2 C, H/T W/T N].
    """
    tile, _, channels, height, width, size = x.shape
    offsets = _offsets(tile, kernel_size)
    edge = -offsets[0][1]
    margins = ((0, 0), (0, 0), (0, 0), (edge, edge), (edge, edge), (0, 0))
    padded = materialize(jnp.pad(x, margins))
    columns = jnp.stack(
        [padded[:, b, :, :, edge + shift : edge + shift + width] for b, shift in offsets]
    )
    columns = materialize(columns)
    rows = jnp.stack(
        [columns[:, a, :, edge + shift : edge + shift + height] for a, shift in offsets]
    )
    return rows.reshape(len(offsets) ** 2 * channels, height * width * size)


def patches_transpose(
    d_patches: jax.Array, block_shape: Sequence[int], kernel_size: int
) -> jax.Array:
    """Adds up the cotangents of patches where they overlap: the transpose of `patches`.

    Args:
        d_patches: float[(T + K - 1)^2 C, H/T W/T N].
        block_shape: (T, T, C, H/T, W/T, N).
        kernel_size: K, odd.

    Returns:
        float[T, T, C, H/T, W/T, N].
    """
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
    """Returns the four corners of all 2 x 2 squares, from left to right and top to bottom.

    Args:
        x: float[T, T, C, H/T, W/T, N], T = 1 or 2.

    Returns:
        Four arrays, float[C, H/2, W/2, N].
    """
    if x.shape[0] == 2:
        return [x[a, b] for a in (0, 1) for b in (0, 1)]
    _, _, channels, height, width, size = x.shape
    squares = x.reshape(channels, height // 2, 2, width // 2, 2, size)
    return [squares[:, :, a, :, b] for a in (0, 1) for b in (0, 1)]


def join(corners: list[jax.Array], tile: int) -> jax.Array:
    """Joins four corners to a block: the inverse and the transpose of `corners`.

    Args:
        corners: four arrays, float[C, H/2, W/2, N].
        tile: T, 1 or 2.

    Returns:
        float[T, T, C, H/T, W/T, N].
    """
    if tile == 2:
        return jnp.stack([jnp.stack(corners[:2]), jnp.stack(corners[2:])])
    channels, height, width, size = corners[0].shape
    rows = [jnp.stack(corners[:2], axis=3), jnp.stack(corners[2:], axis=3)]
    return jnp.stack(rows, axis=2).reshape(1, 1, channels, 2 * height, 2 * width, size)


def channels(x: jax.Array, like: jax.Array) -> jax.Array:
    """Shapes one value per channel so that it broadcasts.

    Args:
        x: float[C].
        like: float[..., C, H, W, N].

    Returns:
        float[..., C, 1, 1, 1], with as many axes as `like`.
    """
    return x.reshape((1,) * (like.ndim - 4) + (-1, 1, 1, 1))


def normalize(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """Scales and shifts each channel.

    Args:
        x: float[..., C, H, W, N].
        scale: float[C].
        shift: float[C].

    Returns:
        float[..., C, H, W, N].
    """
    return x * channels(scale, x) + channels(shift, x)


def materialize(x: jax.Array) -> jax.Array:
    """Has an array written to memory: a barrier that keeps XLA from fusing it into its consumers.

    Without it, XLA fuses the two steps of `patches` into one.
    """
    return lax.optimization_barrier(x)


def _slice_size(batch: int) -> int:
    """Returns a divisor of the batch size near `_SLICE`, or the batch size if there is none."""
    if batch <= _SLICE:
        return batch
    divisors = [n for n in range(_SLICE, _SLICE // 4, -1) if batch % n == 0]
    return divisors[0] if divisors else batch


def _offsets(tile: int, kernel_size: int) -> list[tuple[int, int]]:
    """Returns the rows that a tile's outputs depend on, as (row in its tile, tiles further down).

    The same holds for columns.
    """
    reach = kernel_size // 2
    return [(offset % tile, offset // tile) for offset in range(-reach, tile + reach)]


def _shift(x: jax.Array, by: int, axis: int) -> jax.Array:
    """Moves an array along an axis, filling with zeros."""
    size = x.shape[axis]
    margins = [(0, 0)] * x.ndim
    margins[axis] = (max(by, 0), max(-by, 0))
    kept = lax.slice_in_dim(x, max(-by, 0), size - max(by, 0), axis=axis)
    return jnp.pad(kept, margins)
