import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxcnn import blocks


def block(tile: int, seed: int = 0) -> jax.Array:
    shape = (tile, tile, 3, 8 // tile, 12 // tile, 5)
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(("batch", "size"), [(4, 4), (64, 64), (512, 64), (96, 48), (127, 127)])
def test_slices_divide_the_batch(batch: int, size: int) -> None:
    shape = jax.eval_shape(lambda x: blocks.to_slices(x, 2), jnp.zeros((batch, 4, 4, 1))).shape
    assert shape == (batch // size, 2, 2, 1, 2, 2, size)


def test_slices_come_back_in_order() -> None:
    images = jnp.arange(130 * 2 * 2 * 3, dtype=jnp.float32).reshape(130, 2, 2, 3)
    features = blocks.to_features(blocks.to_slices(images, 1))
    np.testing.assert_array_equal(features, images.reshape(130, -1))


@pytest.mark.parametrize("tile", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_a_product_of_tiled_kernel_and_patches_is_the_convolution(
    tile: int, kernel_size: int
) -> None:
    x = block(tile)
    kernel = jax.random.normal(jax.random.key(1), (kernel_size, kernel_size, 3, 4))
    tiles = blocks.tile_kernel(kernel, tile)
    product = tiles.T @ blocks.patches(x, kernel_size)
    product = blocks.retile(product.reshape(tile, tile, 4, *x.shape[3:]), 1)[0, 0]
    images = blocks.retile(x, 1)[0, 0].transpose(3, 1, 2, 0)
    expected = lax.conv_general_dilated(
        images, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    np.testing.assert_allclose(product.transpose(3, 1, 2, 0), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile", [1, 2])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_patches_transpose(tile: int, kernel_size: int) -> None:
    x = block(tile)
    patches, transpose = jax.vjp(lambda x: blocks.patches(x, kernel_size), x)
    cotangent = jax.random.normal(jax.random.key(2), patches.shape)
    ours = blocks.patches_transpose(cotangent, x.shape, kernel_size)
    np.testing.assert_allclose(ours, transpose(cotangent)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tile", [1, 2])
def test_corners_come_together_again(tile: int) -> None:
    x = block(tile)
    corners = blocks.corners(x)
    assert [corner.shape for corner in corners] == [(3, 4, 6, 5)] * 4
    np.testing.assert_array_equal(blocks.join(corners, tile), x)
    image = blocks.retile(x, 1)[0, 0]
    np.testing.assert_array_equal(corners[1], image[:, ::2, 1::2])


def test_retile_there_and_back() -> None:
    x = block(1)
    np.testing.assert_array_equal(blocks.retile(blocks.retile(x, 2), 1), x)
    np.testing.assert_array_equal(blocks.retile(x, 2)[1, 0], x[0, 0, :, 1::2, ::2])


def test_normalize_scales_and_shifts_the_channels() -> None:
    scale, shift = jnp.array([1.0, 2.0, -3.0]), jnp.array([0.0, 1.0, 0.5])
    for x in (block(2), block(2)[None], block(2)[0, 0]):
        moved = jnp.moveaxis(blocks.normalize(x, scale, shift), -4, -1)
        np.testing.assert_allclose(
            moved,
            jnp.moveaxis(x, -4, -1) * scale.reshape((1,) * (x.ndim - 1) + (3,))
            + shift.reshape((1,) * (x.ndim - 1) + (3,)),
            rtol=1e-6,
        )
