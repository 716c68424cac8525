"""Integers throughout: they are exact in float32, in whatever order they are added."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcnn.networks.cpu import blocks


def integers(seed: int, *shape: int) -> np.ndarray:
    return np.random.RandomState(seed).randint(-9, 10, shape).astype(np.float32)


def block(tile: int) -> np.ndarray:
    return integers(0, tile, tile, 3, 8 // tile, 12 // tile, 5)


@pytest.mark.parametrize(
    ("batch", "size"),
    [
        (4, 4),
        (64, 64),
        (65, 65),
        (66, 33),
        (96, 48),
        (127, 127),
        (512, 64),
        (17 * 67, 17),
        (16 * 67, 16 * 67),  # no divisor above 16
    ],
)
def test_slices_divide_the_batch(batch: int, size: int) -> None:
    images = jax.ShapeDtypeStruct((batch, 4, 4, 1), jnp.float32)
    shape = jax.eval_shape(lambda x: blocks.to_slices(x, 2), images).shape
    assert shape == (batch // size, 2, 2, 1, 2, 2, size)


def test_slices_come_back_in_order() -> None:
    images = np.arange(130 * 2 * 2 * 3, dtype=np.float32).reshape(130, 2, 2, 3)
    features = jax.jit(lambda x: blocks.to_features(blocks.to_slices(x, 1)))(images)
    np.testing.assert_array_equal(features, images.reshape(130, -1))


@pytest.mark.parametrize("tile", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_a_product_of_tiled_kernel_and_patches_is_the_convolution(
    tile: int, kernel_size: int
) -> None:
    kernel = integers(1, kernel_size, kernel_size, 3, 4)

    @jax.jit
    def both(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array]:
        product = blocks.tile_kernel(kernel, tile).T @ blocks.patches(x, kernel_size)
        product = blocks.retile(product.reshape(tile, tile, 4, *x.shape[3:]), 1)[0, 0]
        images = blocks.retile(x, 1)[0, 0].transpose(3, 1, 2, 0)
        expected = lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return product.transpose(3, 1, 2, 0), expected

    np.testing.assert_array_equal(*both(block(tile), kernel))


@pytest.mark.parametrize("tile", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_patches_transpose(tile: int, kernel_size: int) -> None:
    x = block(tile)
    shape = jax.eval_shape(lambda x: blocks.patches(x, kernel_size), x).shape

    @jax.jit
    def both(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, transpose = jax.vjp(lambda x: blocks.patches(x, kernel_size), x)
        ours = blocks.patches_transpose(cotangent, x.shape, kernel_size)
        return ours, transpose(cotangent)[0]

    np.testing.assert_array_equal(*both(x, integers(2, *shape)))


@pytest.mark.parametrize("tile", [1, 2])
def test_corners_come_together_again(tile: int) -> None:
    x = block(tile)

    @jax.jit
    def run(x: jax.Array) -> tuple[list[jax.Array], jax.Array, jax.Array]:
        corners = blocks.corners(x)
        return corners, blocks.join(corners, tile), blocks.retile(x, 1)[0, 0]

    corners, joined, image = run(x)
    assert [corner.shape for corner in corners] == [(3, 4, 6, 5)] * 4
    np.testing.assert_array_equal(joined, x)
    for place, corner in enumerate(corners):
        np.testing.assert_array_equal(corner, np.asarray(image)[:, place // 2 :: 2, place % 2 :: 2])


def test_retile_there_and_back() -> None:
    x = block(1)
    tiled, again = jax.jit(lambda x: (blocks.retile(x, 2), blocks.retile(blocks.retile(x, 2), 1)))(
        x
    )
    np.testing.assert_array_equal(again, x)
    np.testing.assert_array_equal(tiled[1, 0], x[0, 0, :, 1::2, ::2])


def test_normalize_scales_and_shifts_the_channels() -> None:
    scale, shift = np.array([1, 2, -3], np.float32), np.array([0, 1, 0.5], np.float32)
    arrays = block(2), block(2)[None], block(2)[0, 0]
    found = jax.jit(lambda xs: [blocks.normalize(x, scale, shift) for x in xs])(arrays)
    for x, y in zip(arrays, found, strict=True):
        expected = np.moveaxis(x, -4, -1) * scale + shift
        np.testing.assert_array_equal(np.moveaxis(np.asarray(y), -4, -1), expected)
