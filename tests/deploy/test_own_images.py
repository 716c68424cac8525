from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from jaxcnn.data import synthetic
from jaxcnn.deploy import own_images
from jaxcnn.errors import UserError


def drawn(size: tuple[int, int] = (200, 300), ink: object = 255, ground: object = 0) -> Image.Image:
    """A seven."""
    image = Image.new("RGB", size, ground)  # type: ignore[arg-type]
    width, height = size
    points = [(0.25, 0.2), (0.75, 0.2), (0.4, 0.8)]
    ImageDraw.Draw(image).line(
        [(x * width, y * height) for x, y in points],
        fill=ink,  # type: ignore[arg-type]
        width=max(size) // 12,
        joint="curve",
    )
    return image


def prepare(path: Path, image: Image.Image, network: str = "mnist") -> own_images.PreparedImage:
    image.save(path)
    return own_images.prepare_image(path, network)


def centre(image: np.ndarray) -> np.ndarray:
    """Returns the centre of mass, float[2], in pixels from 0."""
    return np.array([(image.sum(1 - axis) * np.arange(28)).sum() / image.sum() for axis in (0, 1)])


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Returns the mean difference of pixels, in levels.

    A centre of mass in the middle between two pixels is in the middle of the image as well with the
    digit in one place as a pixel beside it.
    """
    shifts = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1)]
    moved = [np.roll(one.astype(float), shift, (0, 1)) for shift in shifts]
    return float(min(np.abs(image - other).mean() for image in moved))


WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def test_a_digit_fills_the_box_with_its_mass_in_the_middle(tmp_path: Path) -> None:
    found = prepare(tmp_path / "x.png", drawn(ink=WHITE, ground=BLACK))
    assert found.image.shape == (28, 28, 1)
    assert found.image.dtype == np.uint8
    image = found.image[..., 0].astype(float)
    assert image.max() == 255
    rows, columns = np.nonzero(image)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    assert np.abs(centre(image) - 14).max() <= 0.5


@pytest.mark.parametrize(
    "change",
    [
        lambda: drawn(ink=BLACK, ground=WHITE),
        lambda: drawn(ink=(20, 30, 120), ground=(240, 235, 220)),
        lambda: drawn(ink=(250, 250, 90), ground=(40, 20, 60)),
        lambda: drawn((2000, 3000), WHITE, BLACK),
        lambda: drawn(ink=WHITE, ground=BLACK).convert("L"),
        lambda: drawn(ink=BLACK, ground=WHITE).convert("P"),
        lambda: drawn(ink=BLACK, ground=WHITE).convert("1"),
        lambda: Image.fromarray(np.asarray(drawn(ink=WHITE).convert("L")).astype(np.int32) * 200),
    ],
    ids=["paper", "pen", "chalk", "large", "grey", "palette", "bits", "sixteen"],
)
def test_the_same_digit_however_it_comes(tmp_path: Path, change: Callable[[], Image.Image]) -> None:
    plain = prepare(tmp_path / "x.png", drawn(ink=WHITE, ground=BLACK)).image.astype(float)
    image = change()
    other = prepare(tmp_path / ("y.tiff" if image.mode == "I" else "y.png"), image).image
    assert difference(other, plain) < 7  # edges, a tenth of the pixels, may lie half a pixel apart


@pytest.mark.parametrize("ink", [WHITE, BLACK])
def test_what_is_see_through_is_ground(tmp_path: Path, ink: tuple[int, int, int]) -> None:
    mask = drawn(ink=WHITE, ground=BLACK).convert("L")
    image = Image.new("RGBA", mask.size, (*ink, 0))
    image.putalpha(mask)
    plain = prepare(tmp_path / "x.png", drawn(ink=WHITE, ground=BLACK)).image
    found = prepare(tmp_path / "y.png", image).image
    np.testing.assert_array_equal(found, plain)


def placed(ink: np.ndarray, size: int, corner: tuple[int, int]) -> Image.Image:
    """Puts light ink on a dark square."""
    image = np.zeros((size, size), np.uint8)
    image[corner[0] : corner[0] + ink.shape[0], corner[1] : corner[1] + ink.shape[1]] = ink
    return Image.fromarray(image)


def scaled(image: Image.Image, times: float, how: Image.Resampling) -> Image.Image:
    return image.resize((round(times * image.width), round(times * image.height)), how)


@pytest.mark.parametrize("label", range(10))
def test_the_same_digit_at_any_size_place_and_polarity(tmp_path: Path, label: int) -> None:
    images, labels = synthetic.generate_split("mnist", "test", size=100)
    image = images[labels == label][0, ..., 0]
    # Noise would not be the same at another size; such as is drawn, in three levels.
    image = (image > 60).astype(np.uint8) * 100 + (image > 120).astype(np.uint8) * 155
    digit = prepare(tmp_path / "x.png", Image.fromarray(image)).image[..., 0]
    rows, columns = (np.flatnonzero(digit.any(axis)) for axis in (1, 0))
    box = digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    whole = Image.fromarray(digit)
    box_filter, nearest = Image.Resampling.BOX, Image.Resampling.NEAREST
    bicubic = Image.Resampling.BICUBIC
    # And how far from the digit each may be, in levels on average. Those that hold the same pixels
    # lose none but the faintest; where pixels lie otherwise, edges are other by half a pixel.
    others = {
        "as prepared": (whole, 2),
        "larger canvas": (placed(box, 30, (1, 9)), 2),
        "corner": (placed(box, 28, (0, 28 - box.shape[1])), 2),
        "other corner of a large one": (placed(box, 70, (70 - box.shape[0], 0)), 2),
        "tight": (Image.fromarray(box), 10),
        "twice": (scaled(whole, 2, nearest), 2),
        "ten times": (scaled(whole, 10, nearest), 2),
        "smooth": (scaled(whole, 12, bicubic), 10),
        "half": (placed(np.asarray(scaled(Image.fromarray(box), 0.5, box_filter)), 28, (3, 5)), 25),
    }
    for name, (other, most) in others.items():
        for light in (True, False):
            changed = other if light else other.point(lambda level: 255 - level)
            found = prepare(tmp_path / "y.png", changed)
            assert ("dark on light, so inverted" in found.steps) == (not light), name
            assert difference(found.image[..., 0], digit) <= most, name


def test_an_image_of_cifar10_is_unchanged(tmp_path: Path) -> None:
    photograph = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    found = prepare(tmp_path / "y.png", Image.fromarray(photograph), "cifar10")
    np.testing.assert_array_equal(found.image, photograph)
    assert found.steps == ("32 x 32: unchanged",)


def on_black(tmp_path: Path, ink: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Prepares ink on a black ground of 140 x 140, where it is looked for as it is."""
    image = np.zeros((140, 140), np.uint8)
    image[30 : 30 + ink.shape[0], 20 : 20 + ink.shape[1]] = ink
    found = prepare(tmp_path / "x.png", Image.fromarray(image))
    return found.image[..., 0].astype(int), found.steps


def test_levels_and_place_of_what_need_not_be_scaled(tmp_path: Path) -> None:
    ink = np.zeros((20, 12), int)
    ink[:, 4:8] = 240
    ink[0, 3] = 120  # half of the brightest
    ink[10, 8] = 48  # a fifth
    ink[12, 9] = 240 // 11  # less than a tenth: has no place of its own
    found, steps = on_black(tmp_path, ink)
    assert steps == (
        "140 x 140 pixels to grey",
        "the digit scaled to 6 x 20",
        "centre of mass in the middle of 28 x 28",
    )
    expected = np.zeros((28, 28), int)
    # Of rows 0 to 19 the middle is 9.49, of columns 0 to 5 it is 2.49.
    expected[5:25, 13:17] = 255
    expected[5, 12] = 128
    expected[15, 17] = 51
    np.testing.assert_array_equal(found, expected)


def test_flecks_are_no_part_of_the_digit(tmp_path: Path) -> None:
    ink = np.zeros((20, 30), int)
    ink[:, 8:12] = 255
    ink[5, 0] = 255  # a hundredth of it
    found, steps = on_black(tmp_path, ink)
    assert "the digit scaled to 4 x 20" in steps
    assert set(np.unique(found)) == {0, 255}
    ink[5:8, 28:30] = 255  # a dot that belongs to it
    _, steps = on_black(tmp_path, ink)
    assert "the digit scaled to 20 x 18" in steps


def test_the_centre_of_mass_is_in_the_middle_as_far_as_there_is_room(tmp_path: Path) -> None:
    ink = np.full((20, 20), 0)
    ink[-2:, :] = 255
    ink[:, 16:] = 255
    found, _ = on_black(tmp_path, ink)
    rows, columns = np.nonzero(found)
    # Columns: 80 of 112 dots at 17.5 on average, 32 at 7.5; 14 - 14.6 would be outside.
    assert (columns.min(), columns.max()) == (0, 19)
    # Rows: the middle of the upright at 9.5, of the foot at 18.5: 14 - 12.1 is 1.9.
    assert (rows.min(), rows.max()) == (2, 21)
    found, _ = on_black(tmp_path, ink[::-1, ::-1])
    rows, columns = np.nonzero(found)
    assert (columns.min(), columns.max()) == (8, 27)
    assert (rows.min(), rows.max()) == (7, 26)


def test_what_is_large_is_averaged_and_what_is_small_repeated(tmp_path: Path) -> None:
    ink = np.full((40, 16), 255)
    ink[1::4, :] = 0  # every other pair of rows is half empty
    found, steps = on_black(tmp_path, ink)
    assert "the digit scaled to 8 x 20" in steps
    shown = found[found.any(1)][:, found.any(0)]
    np.testing.assert_array_equal(shown, np.tile([[128], [255]], (10, 8)))
    ink = np.array([[255, 0], [0, 255]])
    found, steps = on_black(tmp_path, ink.repeat(4, 0).repeat(2, 1))
    assert "the digit scaled to 10 x 20" in steps
    shown = found[found.any(1)][:, found.any(0)]
    np.testing.assert_array_equal(shown, ink.repeat(10, 0).repeat(5, 1))


def test_a_thin_line_stays(tmp_path: Path) -> None:
    found, steps = on_black(tmp_path, np.full((100, 1), 255))
    assert "the digit scaled to 1 x 20" in steps
    assert found.sum() == 20 * 255
    found, steps = on_black(tmp_path, np.full((1, 100), 255))
    assert "the digit scaled to 20 x 1" in steps


@pytest.mark.parametrize("sign", [1, -1])
def test_what_stands_out(tmp_path: Path, sign: int) -> None:
    """By sixteen levels, above the ground or below it."""
    for levels, said in ((15, "shows nothing that stands out"), (16, "")):
        image = np.full((50, 50), 100, np.uint8)
        image[20:30, 20:30] = 100 + sign * levels
        if said:
            with pytest.raises(UserError, match=said):
                prepare(tmp_path / "x.png", Image.fromarray(image))
        else:
            found = prepare(tmp_path / "x.png", Image.fromarray(image))
            assert ("dark on light, so inverted" in found.steps) == (sign < 0)


def test_half_bright_ink_that_shines_through(tmp_path: Path) -> None:
    """Dark ink lies on white, bright ink on black."""
    for level, inverted in ((127, True), (128, False)):
        image = np.zeros((40, 40, 4), np.uint8)
        image[..., :3] = level
        image[10:30, 15:25, 3] = 255
        found = prepare(tmp_path / "x.png", Image.fromarray(image))
        assert ("dark on light, so inverted" in found.steps) == inverted


def test_a_photograph_is_cut_to_its_middle(tmp_path: Path) -> None:
    image = Image.new("RGB", (300, 100), (255, 0, 0))
    image.paste((0, 255, 0), (100, 0, 200, 100))
    found = prepare(tmp_path / "x.png", image, "cifar10")
    assert found.image.shape == (32, 32, 3)
    assert (np.abs(found.image[:, 2:-2].astype(int) - (0, 255, 0)) <= 5).all()
    assert found.steps == ("the middle 100 x 100 of 300 x 100 pixels", "scaled to 32 x 32")
    assert prepare(tmp_path / "y.png", image.convert("L"), "cifar10").image.shape == (32, 32, 3)


def test_what_is_see_through_in_a_photograph_is_white(tmp_path: Path) -> None:
    image = np.zeros((32, 32, 4), np.uint8)
    image[:16] = (10, 20, 30, 255)
    found = prepare(tmp_path / "x.png", Image.fromarray(image), "cifar10").image
    assert (found[:16] == (10, 20, 30)).all()
    assert (found[16:] == 255).all()
    palette = Image.new("P", (32, 32))
    palette.putpalette([0, 0, 0, 9, 9, 9])
    palette.info["transparency"] = 0
    palette.save(tmp_path / "x.png", transparency=0)
    assert (own_images.prepare_image(tmp_path / "x.png", "cifar10").image == 255).all()


@given(st.integers(1, 60), st.integers(1, 60), st.sampled_from(["mnist", "cifar10"]), st.data())
def test_any_size_and_content(
    tmp_path_factory: pytest.TempPathFactory,
    width: int,
    height: int,
    network: str,
    data: st.DataObject,
) -> None:
    seed = data.draw(st.integers(0, 2**32 - 1))
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)
    path = tmp_path_factory.mktemp("images") / "x.png"
    Image.fromarray(pixels).save(path)
    try:
        found = own_images.prepare_image(path, network)
    except UserError:
        assert network == "mnist"  # nothing stood out
        return
    assert found.image.shape == {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}[network]


def test_lines_show_it() -> None:
    image = np.zeros((28, 28, 1), np.uint8)
    image[3, 5] = 255
    image[5, :10, 0] = np.arange(10) * 255 / 9
    lines = own_images.PreparedImage(image, ()).lines()
    assert len(lines) == 28
    assert lines[3] == 10 * " " + "@@"
    assert lines[4] == ""
    assert lines[5] == "  ..::--==++**##%%@@"
    colours = np.zeros((1, 2, 3), np.uint8)
    colours[0, 1] = (0, 127, 255)  # 127 on average: the fifth of ten shades
    assert own_images.PreparedImage(colours, ()).lines() == ["  =="]


def test_for_a_network_of_other_images(tmp_path: Path) -> None:
    """The middle of the image in the network's height, width and channels."""
    image = Image.new("RGB", (100, 60), (255, 0, 0))
    image.paste((0, 0, 255), (0, 0, 10, 60))
    image.save(tmp_path / "x.png")

    def network(shape: tuple[int, int, int], names: tuple[str, ...] = ("a", "b")) -> Any:
        digits = names == tuple("0123456789")
        return SimpleNamespace(image_shape=shape, class_names=names, reads_digits=digits)

    found = own_images.prepare_for(network((24, 24, 3)), tmp_path / "x.png")
    assert found.steps == ("the middle 60 x 60 of 100 x 60 pixels", "scaled to 24 x 24")
    assert (found.image == (255, 0, 0)).all()
    wide = own_images.prepare_for(network((24, 40, 1)), tmp_path / "x.png")
    assert wide.image.shape == (24, 40, 1)
    assert wide.steps[0] == "the middle 100 x 60 of 100 x 60 pixels"
    with pytest.raises(UserError, match="takes images of 2 channels: prepare them in code"):
        own_images.prepare_for(network((24, 40, 2)), tmp_path / "x.png")
    drawn().save(tmp_path / "seven.png")
    digit = own_images.prepare_for(
        network((28, 28, 1), tuple("0123456789")), tmp_path / "seven.png"
    )
    expected = own_images.prepare_image(tmp_path / "seven.png", "mnist")
    np.testing.assert_array_equal(digit.image, expected.image)
