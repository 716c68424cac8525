import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.data import augment


@pytest.fixture
def images() -> jax.Array:
    return jax.random.randint(jax.random.key(0), (64, 12, 12, 3), 1, 256).astype(jnp.uint8)


def test_flip_gives_each_image_or_its_mirror(images: jax.Array) -> None:
    flipped = augment.random_flip(jax.random.key(1), images)
    same = np.array((flipped == images).all((1, 2, 3)))
    mirrored = np.array((flipped == images[:, :, ::-1]).all((1, 2, 3)))
    assert (same ^ mirrored).all()
    assert 15 < same.sum() < 49


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_shift_gives_windows_of_the_padded_image(images: jax.Array, mode: str) -> None:
    shifted = np.array(augment.random_shift(jax.random.key(1), images, 2, mode))
    assert shifted.dtype == np.uint8
    seen = set()
    for original, image in zip(np.array(images), shifted, strict=True):
        padded = np.pad(original, ((2, 2), (2, 2), (0, 0)), mode=mode)
        matches = [
            (row, column)
            for row in range(5)
            for column in range(5)
            if (padded[row : row + 12, column : column + 12] == image).all()
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert {row for row, _ in seen} == {column for _, column in seen} == set(range(5))


@pytest.mark.parametrize("name", ["shift", "flip-shift"])
def test_augmentation_is_a_function_of_its_key(images: jax.Array, name: str) -> None:
    change = augment.make_augment(name)
    assert change is not None
    once, twice = (change(jax.random.key(3), images) for _ in range(2))
    np.testing.assert_array_equal(once, twice)
    assert once.shape == images.shape
    assert once.dtype == images.dtype
    assert (change(jax.random.key(4), images) != once).any()


def test_none() -> None:
    assert augment.make_augment("none") is None


def test_normalize_with_one_number_and_with_one_a_channel(images: jax.Array) -> None:
    x = np.array(images) / 255
    one = augment.make_normalize((0.1307,), (0.3081,))(images)
    assert one.dtype == jnp.float32
    np.testing.assert_allclose(one, (x - 0.1307) / 0.3081, rtol=1e-5, atol=1e-6)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    each = augment.make_normalize(mean, std)(images)
    np.testing.assert_allclose(each, (x - np.array(mean)) / np.array(std), rtol=1e-5, atol=1e-6)
