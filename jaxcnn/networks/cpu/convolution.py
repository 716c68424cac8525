"""Convolution as is fastest on each platform, to be passed to `nn.Conv(conv_general_dilated=...)`.

On GPU and TPU it is XLA's own convolution. On CPU it is a kernel of the folder `native` where that
can be compiled, or else a matrix product over patches: inside a loop, XLA's convolution falls back
to a single-threaded kernel there and takes about twenty times as long as the product.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxcnn.networks.cpu import library
from jaxcnn.networks.cpu.stages import Stage

# What `nn.Conv` passes for a plain two-dimensional convolution.
_NHWC = lax.ConvDimensionNumbers((0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2))


def conv_general_dilated(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    dimension_numbers: lax.ConvDimensionNumbers = _NHWC,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    kernels: bool = True,
) -> jax.Array:
    """Convolves images with a kernel; its signature is that of `jax.lax.conv_general_dilated`.

    Dilated or grouped convolutions go to XLA on all platforms. The kernels take float32 and square
    windows: of odd size with stride 1 and padding that keeps the size, or with stride 2 that halves
    it.

    Args:
        lhs: float[B, H, W, Cin], the images.
        rhs: float[KH, KW, Cin, Cout], the kernel.
        window_strides: of the window along H and W.
        padding: number of zeros before and after H and W.
        lhs_dilation: of the images.
        rhs_dilation: of the kernel.
        dimension_numbers: which axis is which.
        feature_group_count: number of groups of channels.
        batch_group_count: number of groups of images.
        precision: of the products, see `jax.lax.Precision`.
        preferred_element_type: dtype of the result.
        kernels: on CPU, use a kernel, which has a reverse-mode derivative only; set False for
            `jax.jvp`, `functools.partial(conv_general_dilated, kernels=False)`.

    Returns:
        float[B, H', W', Cout].
    """

    def by_xla(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return lax.conv_general_dilated(
            lhs,
            rhs,
            window_strides,
            padding,
            lhs_dilation,
            rhs_dilation,
            dimension_numbers,
            feature_group_count,
            batch_group_count,
            precision=precision,
            preferred_element_type=preferred_element_type,
        )

    def by_kernel(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        assert stage is not None
        out, _ = stage(lhs, rhs, jnp.zeros(rhs.shape[-1], jnp.float32))
        return out

    def by_product(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return _as_matrix_product(
            lhs, rhs, window_strides, padding, precision, preferred_element_type
        )

    groups = feature_group_count, batch_group_count
    rest = lhs_dilation, rhs_dilation, dimension_numbers, *groups
    if not _is_plain(padding, *rest):
        return by_xla(lhs, rhs)
    stage = stage_of(lhs, rhs, window_strides, padding, *rest, precision, preferred_element_type)
    on_cpu = by_kernel if kernels and stage and library.in_use() else by_product
    return lax.platform_dependent(lhs, rhs, cpu=on_cpu, default=by_xla)


def stage_of(
    lhs: jax.Array,
    rhs: jax.Array,
    window_strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: lax.ConvDimensionNumbers,
    feature_group_count: int,
    batch_group_count: int,
    precision: Any,
    preferred_element_type: Any,
) -> Stage | None:
    """Returns the stage that computes a convolution, or None; see `conv_general_dilated`.

    Its precision is that of float32, whatever `precision` says.
    """
    groups = feature_group_count, batch_group_count
    fits = (
        _is_plain(padding, lhs_dilation, rhs_dilation, dimension_numbers, *groups)
        and _keeps_or_halves(lhs.shape, rhs.shape, window_strides, padding)
        and lhs.dtype == rhs.dtype == jnp.float32
        and preferred_element_type in (None, jnp.float32)
        and all(isinstance(axis, int) and axis > 0 for axis in lhs.shape)
    )
    return Stage(stride=window_strides[0], padding=padding[0][0]) if fits else None


def _is_plain(
    padding: Any,
    lhs_dilation: Sequence[int],
    rhs_dilation: Sequence[int],
    dimension_numbers: lax.ConvDimensionNumbers,
    feature_group_count: int,
    batch_group_count: int,
) -> bool:
    """Returns whether it is a two-dimensional convolution without dilation and groups."""
    return (
        dimension_numbers == _NHWC
        and feature_group_count == batch_group_count == 1
        and all(n == 1 for n in (*lhs_dilation, *rhs_dilation))
        and not isinstance(padding, str)
    )


def _keeps_or_halves(
    images: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
) -> bool:
    """Returns whether a square window keeps the size of images, or with stride 2 halves it."""
    size, (before, after), stride = kernel[0], padding[0], strides[0]
    alike = kernel[1] == size and strides[1] == stride and tuple(padding[1]) == (before, after)
    if stride == 1:
        return alike and size % 2 == 1 and before == after == size // 2
    # Each output is a window of its own, as is each square of 2 x 2 pixels.
    halved = all((n + before + after - size) // 2 + 1 == n / 2 for n in images[1:3])
    return alike and stride == 2 and 0 <= before < size and halved


def _as_matrix_product(
    lhs: jax.Array,
    rhs: jax.Array,
    strides: Sequence[int],
    padding: Sequence[tuple[int, int]],
    precision: Any,
    preferred_element_type: Any,
) -> jax.Array:
    """Convolves by a product of patches, float[B, H', W', KH KW Cin], and the flattened kernel."""
    kernel_height, kernel_width, _, features = rhs.shape
    padded = jnp.pad(lhs, ((0, 0), *padding, (0, 0)))
    height = padded.shape[1] - kernel_height + 1  # before strides
    width = padded.shape[2] - kernel_width + 1
    patches = jnp.concatenate(
        [
            padded[:, row : row + height : strides[0], column : column + width : strides[1], :]
            for row in range(kernel_height)
            for column in range(kernel_width)
        ],
        axis=-1,
    )
    kernel = rhs.reshape(math.prod(rhs.shape[:-1]), features)
    return jnp.matmul(
        patches, kernel, precision=precision, preferred_element_type=preferred_element_type
    )
