import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.data import augment


@pytest.fixture
def images() -> jax.Array:
    return jnp.asarray(np.random.RandomState(0).randint(1, 256, (64, 12, 12, 3)).astype(np.uint8))


def test_flip_gives_each_image_or_its_flip(images: jax.Array) -> None:
    result = np.array(jax.jit(augment.random_flip)(jax.random.key(1), images))
    images = np.array(images)
    same = (result == images).all((1, 2, 3))
    flipped = (result == images[:, :, ::-1]).all((1, 2, 3))
    assert (same ^ flipped).all()
    assert 15 < same.sum() < 49  # four standard deviations; a key gives the same bits everywhere


@pytest.mark.parametrize("mode", ["constant", "reflect"])
def test_shift_gives_windows_of_the_padded_image(images: jax.Array, mode: str) -> None:
    shift = jax.jit(augment.random_shift, static_argnums=(2, 3))
    shifted = np.array(shift(jax.random.key(1), images, 3, mode))
    assert shifted.dtype == np.uint8
    seen = []
    for original, image in zip(np.array(images), shifted, strict=True):
        padded = np.pad(original, ((3, 3), (3, 3), (0, 0)), mode=mode)
        matches = [
            (row, column)
            for row in range(7)
            for column in range(7)
            if (padded[row : row + 12, column : column + 12] == image).all()
        ]
        assert len(matches) == 1
        seen += matches
    # Each of seven shifts is sampled for nine of the 64 images, give or take four times 2.8.
    for shifts in np.transpose(seen):
        counts = np.bincount(shifts, minlength=7)
        assert len(counts) == 7
        assert counts.min() > 0
        assert counts.max() <= 20
    assert any(row != column for row, column in seen)  # sampled independently


def test_every_shift_is_equally_likely() -> None:
    dot = np.zeros((9, 9, 1), np.uint8)
    dot[4, 4] = 1
    images = jnp.asarray(np.broadcast_to(dot, (4900, 9, 9, 1)))
    shifted = augment.random_shift(jax.random.key(1), images, 3, "constant")
    for places in np.nonzero(shifted)[1:3]:
        counts = np.bincount(places - 1, minlength=7)
        # 700 each; four standard deviations are 98.
        np.testing.assert_allclose(counts, 7 * [700], atol=98)


distort = jax.jit(augment.random_distortion)
STILL = {"rotation": 0.0, "scale": 0.0, "shear": 0.0, "pixels": 0.0, "elastic": 0.0}


def test_a_distortion_of_size_zero_changes_nothing() -> None:
    random = np.random.RandomState(0)
    images = jnp.asarray(random.randint(0, 256, (200, 29, 29, 1)).astype(np.uint8))
    same = distort(jax.random.key(1), images, **STILL)
    assert same.dtype == images.dtype
    np.testing.assert_array_equal(same, images)


# A disc of radius 3 around a point 6 pixels to the right of the centre, and where it may end.
@pytest.mark.parametrize(
    ("change", "check"),
    [
        # On a circle around the centre, up to 30 degrees from its place.
        ({"rotation": 30.0}, lambda y, x: (abs(np.hypot(y, x) - 6) < 0.2) & (abs(y) < 3.2)),
        ({"scale": 0.3}, lambda y, x: (abs(y) < 0.2) & (x > 4.3) & (x < 8.2)),
        ({"pixels": 2.0}, lambda y, x: (abs(y) < 2.1) & (abs(x - 6) < 2.1)),
        ({"elastic": 0.5}, lambda y, x: (abs(y) < 2.5) & (abs(x - 6) < 2.5)),
    ],
)
def test_each_distortion_has_its_size(
    change: dict[str, float], check: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> None:
    y, x = np.mgrid[-14:15, -14:15].astype(np.float32)
    disc = (255 * (np.hypot(y, x - 6) < 3.2)).astype(np.uint8)
    images = jnp.array(np.broadcast_to(disc[..., None], (200, 29, 29, 1)))
    key = jax.random.key(2)
    moved = np.array(distort(key, images, **STILL | change))[..., 0]
    weight = moved.sum((1, 2), dtype=np.float64)
    rows, columns = ((moved * axis).sum((1, 2)) / weight for axis in (y, x))
    assert check(rows, columns).all()
    # And not all in the same way.
    assert np.hypot(rows - rows.mean(), columns - columns.mean()).max() > 0.5
    if change.keys() & {"pixels", "elastic"}:  # along one axis as it may be along the other
        # Of 200 independent pairs, 1 / sqrt(200) is typical.
        assert abs(np.corrcoef(rows, columns)[0, 1]) < 5 / np.sqrt(200)


def test_a_rotation_is_in_degrees() -> None:
    y, x = np.mgrid[-14:15, -14:15].astype(np.float32)
    disc = (255 * (np.hypot(y, x - 9) < 3.2)).astype(np.uint8)
    images = jnp.array(np.broadcast_to(disc[..., None], (200, 29, 29, 1)))
    key = jax.random.key(2)
    turned = np.array(distort(key, images, **STILL | {"rotation": 90.0}))[..., 0]
    rows, columns = ((turned * axis).sum((1, 2)) / turned.sum((1, 2)) for axis in (y, x))
    angles = jax.random.uniform(jax.random.split(key)[0], (6, 200), minval=-1, maxval=1)[0]
    # The pixels locate a disc to a twentieth of a pixel: 0.3 degrees at 9 pixels.
    np.testing.assert_allclose(np.degrees(np.arctan2(-rows, columns)), 90 * angles, atol=0.3)


def test_a_shear_shifts_rows_in_proportion_to_their_height() -> None:
    line = np.zeros((200, 29, 29, 1), np.uint8)
    line[:, :, 14] = 255
    slanted = np.array(distort(jax.random.key(3), jnp.array(line), **STILL | {"shear": 0.5}))[
        ..., 0
    ]
    columns = (slanted * np.arange(29.0)).sum(-1) / slanted.sum(-1) - 14
    slope = columns / np.where(np.arange(29) == 14, 1, np.arange(29) - 14)
    np.testing.assert_allclose(slope[:, :14], slope[:, :1].repeat(14, 1), atol=0.02)
    np.testing.assert_allclose(slope[:, 15:], slope[:, :1].repeat(14, 1), atol=0.02)
    assert 0.4 < abs(slope).max() <= 0.5


@pytest.mark.parametrize("name", ["shift", "distort", "flip-shift", "flip-shift-2"])
def test_augmentation_is_a_function_of_its_key(images: jax.Array, name: str) -> None:
    change = augment.make_augment(name)
    assert change is not None
    change = jax.jit(change)
    once, twice = (change(jax.random.key(3), images) for _ in range(2))
    np.testing.assert_array_equal(once, twice)
    assert once.shape == images.shape
    assert once.dtype == images.dtype
    assert (change(jax.random.key(4), images) != once).any()


def test_sizes_of_the_augmentations(images: jax.Array) -> None:
    def flip_shift(key: jax.Array, images: jax.Array, pixels: int) -> jax.Array:
        flip_key, shift_key = jax.random.split(key)
        flipped = augment.random_flip(flip_key, images)
        return augment.random_shift(shift_key, flipped, pixels, "reflect")

    expected = {
        "shift": functools.partial(augment.random_shift, pixels=2, mode="constant"),
        "flip-shift": functools.partial(flip_shift, pixels=4),
        "flip-shift-2": functools.partial(flip_shift, pixels=2),
        "distort": functools.partial(
            augment.random_distortion, rotation=8.0, scale=0.08, shear=0.08, pixels=1.5, elastic=0.4
        ),
    }
    key = jax.random.key(5)
    for name, change in expected.items():
        found = jax.jit(augment.make_augment(name))(key, images)
        np.testing.assert_array_equal(found, jax.jit(change)(key, images))  # of the same operations


def test_none() -> None:
    assert augment.make_augment("none") is None


def test_normalize_with_one_value_and_with_one_per_channel(images: jax.Array) -> None:
    x = np.array(images) / 255
    # A few roundings of 6e-8 each, of numbers up to 1.
    one = jax.jit(augment.make_normalize((0.1307,), (0.3081,)))(images)
    assert one.dtype == jnp.float32
    np.testing.assert_allclose(one, (x - 0.1307) / 0.3081, rtol=1e-5, atol=1e-6)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    each = jax.jit(augment.make_normalize(mean, std))(images)
    np.testing.assert_allclose(each, (x - np.array(mean)) / np.array(std), rtol=1e-5, atol=1e-6)
