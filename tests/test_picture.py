import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from jaxcnn import picture
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


def prepare(path: Path, image: Image.Image, network: str = "mnist") -> picture.Picture:
    image.save(path)
    return picture.prepare(path, network)


WHITE, BLACK = (255, 255, 255), (0, 0, 0)


def test_a_digit_fills_the_box_with_its_mass_in_the_middle(tmp_path: Path) -> None:
    found = prepare(tmp_path / "x.png", drawn(ink=WHITE, ground=BLACK))
    assert found.image.shape == (28, 28, 1)
    assert found.image.dtype == np.uint8
    image = found.image[..., 0].astype(float)
    assert image.max() == 255
    rows, columns = np.nonzero(image)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    centre = [(image.sum(1 - axis) * np.arange(28)).sum() / image.sum() for axis in (0, 1)]
    assert np.abs(np.array(centre) - 13.5).max() <= 0.75


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
    if image.size == (200, 300):  # two values, that of the ground and that of the ink
        np.testing.assert_array_equal(other, plain)
    # Edges, a tenth of the pixels, may lie half a pixel elsewhere.
    assert np.abs(other - plain).mean() < 6
    assert np.corrcoef(other.ravel(), plain.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("ink", [WHITE, BLACK])
def test_what_is_see_through_is_ground(tmp_path: Path, ink: tuple[int, int, int]) -> None:
    mask = drawn(ink=WHITE, ground=BLACK).convert("L")
    image = Image.new("RGBA", mask.size, (*ink, 0))
    image.putalpha(mask)
    plain = prepare(tmp_path / "x.png", drawn(ink=WHITE, ground=BLACK)).image
    found = prepare(tmp_path / "y.png", image).image
    np.testing.assert_array_equal(found, plain)


def test_an_image_of_the_data_set_is_left_as_it_is(tmp_path: Path) -> None:
    digit = np.zeros((28, 28), np.uint8)
    digit[4:20, 10:14] = 200
    found = prepare(tmp_path / "x.png", Image.fromarray(digit))
    np.testing.assert_array_equal(found.image[..., 0], digit)
    assert found.steps == ("28 x 28, light on dark: as it is",)
    digit[digit == 0] = 1  # the data set's ground is black
    found = prepare(tmp_path / "x.png", Image.fromarray(digit))
    assert found.steps[0] == "28 x 28 pixels to grey"
    assert found.image.max() == 255
    photograph = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    found = prepare(tmp_path / "y.png", Image.fromarray(photograph), "cifar10")
    np.testing.assert_array_equal(found.image, photograph)
    assert found.steps == ("32 x 32: as it is",)


def placed(tmp_path: Path, ink: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Prepares ink on a black ground with a wide margin."""
    image = np.pad(ink, 30).astype(np.uint8)
    found = prepare(tmp_path / "x.png", Image.fromarray(image))
    return found.image[..., 0].astype(int), found.steps


def test_levels_and_place_of_what_need_not_be_scaled(tmp_path: Path) -> None:
    ink = np.zeros((20, 12), int)
    ink[:, 4:8] = 255
    ink[0, 0] = 204  # (0.8 - 0.2) / 0.8 = 0.75 of the brightest
    ink[10, 11] = 102  # (0.4 - 0.2) / 0.8 = 0.25: still a part of the digit
    found, steps = placed(tmp_path, ink)
    assert steps == (
        "72 x 80 pixels to grey",
        "cut to 12 x 20, scaled to 12 x 20",
        "centre of mass in the middle of 28 x 28",
    )
    expected = np.zeros((28, 28), int)
    expected[4:24, 8 + 4 : 8 + 8] = 255  # its middle column, 6, lies at 14
    expected[4, 8] = 191
    expected[14, 19] = 64
    np.testing.assert_array_equal(found, expected)


def test_flecks_are_no_part_of_the_digit(tmp_path: Path) -> None:
    ink = np.zeros((20, 30), int)
    ink[:, 8:12] = 255
    ink[5, 0] = 84  # (0.33 - 0.2) / 0.8 = 0.16
    ink[6, 29] = 48  # below 0.2
    found, steps = placed(tmp_path, ink)
    assert "cut to 4 x 20, scaled to 4 x 20" in steps
    assert set(np.unique(found)) == {0, 255}


def test_the_centre_of_mass_is_in_the_middle_as_far_as_there_is_room(tmp_path: Path) -> None:
    ink = np.full((20, 20), 0)
    ink[-1:, :] = 255
    ink[:, 16:] = 255
    found, _ = placed(tmp_path, ink)
    rows, columns = np.nonzero(found)
    # Columns: 80 of 96 dots at 18 on average, 16 at 8; 14 - 16.3 would be outside.
    assert (columns.min(), columns.max()) == (0, 19)
    # Rows: the middle of the upright at 10, of the foot at 19.5: 14 - 11.6 is 2.4.
    assert (rows.min(), rows.max()) == (2, 21)
    found, _ = placed(tmp_path, ink[::-1, ::-1])
    rows, columns = np.nonzero(found)
    assert (columns.min(), columns.max()) == (8, 27)
    assert (rows.min(), rows.max()) == (6, 25)


def test_what_is_large_is_averaged_and_what_is_small_interpolated(tmp_path: Path) -> None:
    ink = np.full((40, 16), 255)
    ink[1::4, :] = 0  # every other pair of rows is half empty
    found, steps = placed(tmp_path, ink)
    assert "cut to 16 x 40, scaled to 8 x 20" in steps
    shown = found[found.any(1)][:, found.any(0)]
    np.testing.assert_array_equal(shown, np.tile([[128], [255]], (10, 8)))
    ink = np.zeros((40, 16), int)
    ink[:, [0, 2, 4, 6, 9, 11, 13, 15]] = 255  # half of each two columns
    found, _ = placed(tmp_path, ink)
    assert set(np.unique(found)) == {0, 255}  # the brightest is white
    ink = np.array([[255, 0], [0, 255]])
    found, steps = placed(tmp_path, ink.repeat(4, 0).repeat(2, 1))
    assert "cut to 4 x 8, scaled to 10 x 20" in steps
    assert len(np.unique(found)) > 5


def test_a_thin_line_stays(tmp_path: Path) -> None:
    found, steps = placed(tmp_path, np.full((200, 1), 255))
    assert "cut to 1 x 200, scaled to 1 x 20" in steps
    assert found.sum() == 20 * 255
    found, steps = placed(tmp_path, np.full((1, 200), 255))
    assert "cut to 200 x 1, scaled to 20 x 1" in steps


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


def test_more_than_eight_bits(tmp_path: Path) -> None:
    """Of what has other numbers, the least is black and the greatest white."""
    mask = np.asarray(drawn(ink=WHITE, ground=BLACK).convert("L"))
    plain = prepare(tmp_path / "x.png", Image.fromarray(mask)).image
    for number, values in enumerate(
        (
            mask.astype(np.uint16) * 100 + 7,
            mask.astype(np.float32) * 1e-6 - 1e-3,
            mask.astype(np.int32) * 3,
        )
    ):
        found = prepare(tmp_path / f"{number}.tiff", Image.fromarray(values)).image
        np.testing.assert_array_equal(found, plain)
    values = np.ones((40, 40), np.float32)
    values[3, 3] = np.inf
    with pytest.raises(UserError, match="not all of its pixels are numbers"):
        prepare(tmp_path / "x.tiff", Image.fromarray(values))
    with pytest.raises(UserError, match="shows nothing that stands out"):
        prepare(tmp_path / "x.tiff", Image.fromarray(np.ones((40, 40), np.float32)))


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
    assert (picture.prepare(tmp_path / "x.png", "cifar10").image == 255).all()


def test_a_turned_photograph_is_set_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    image = drawn((300, 300), WHITE, BLACK)
    image.rotate(90).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    plain = prepare(tmp_path / "x.png", image).image.astype(float)
    found = picture.prepare(tmp_path / "turned.jpg", "mnist").image
    assert np.corrcoef(found.ravel(), plain.ravel())[0, 1] > 0.95


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read as a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read as a picture"),
        (None, "shows nothing that stands out"),
    ],
    ids=["empty", "postscript", "blank"],
)
def test_no_picture(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "x.png"
    if content is None:
        Image.new("L", (50, 50), 90).save(path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        picture.prepare(path, "mnist")
    with pytest.raises(UserError, match="is not there"):
        picture.prepare(tmp_path / "none.png", "mnist")
    with pytest.raises(UserError, match="is not there"):
        picture.prepare(tmp_path, "mnist")


def test_an_open_file_is_read_as_its_path_is(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    plain = prepare(path, drawn())
    found = picture.prepare(io.BytesIO(path.read_bytes()), "mnist")
    np.testing.assert_array_equal(found.image, plain.image)
    assert found.steps == plain.steps
    with pytest.raises(UserError, match=r"^the picture cannot be read as a picture"):
        picture.prepare(io.BytesIO(b"text"), "mnist")


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("1", (9000, 9000)).save(path)
    with pytest.raises(UserError, match="9000 x 9000 pixels: give a picture of at most 50 million"):
        picture.prepare(path, "mnist")


def test_the_largest_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "_LARGEST", 1600)
    path = tmp_path / "x.png"
    assert prepare(path, Image.new("RGB", (40, 40)), "cifar10").image.shape == (32, 32, 3)
    with pytest.raises(UserError, match="41 x 40 pixels: give a picture of at most"):
        prepare(path, Image.new("RGB", (41, 40)), "cifar10")


def test_what_pillow_warns_of_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"cannot be read as a picture .*decompression bomb"):
        prepare(tmp_path / "x.png", Image.new("RGB", (40, 40)), "cifar10")


def test_a_long_reason_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError(200 * "x \n")

    monkeypatch.setattr(Image, "open", fail)
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        picture.prepare(tmp_path / "x.png", "mnist")
    assert str(caught.value).count("x ") == 60
    assert "\n" not in str(caught.value)
    kinds = "PNG, JPEG, BMP, GIF, WEBP, TIFF or PPM"
    assert str(caught.value).endswith(f"give a whole {kinds} file")


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
    path = tmp_path_factory.mktemp("pictures") / "x.png"
    Image.fromarray(pixels).save(path)
    try:
        found = picture.prepare(path, network)
    except UserError:
        assert network == "mnist"  # nothing stood out
        return
    assert found.image.shape == {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}[network]


def test_lines_show_it() -> None:
    image = np.zeros((28, 28, 1), np.uint8)
    image[3, 5] = 255
    image[5, :10, 0] = np.arange(10) * 255 / 9
    lines = picture.Picture(image, ()).lines()
    assert len(lines) == 28
    assert lines[3] == 10 * " " + "@@"
    assert lines[4] == ""
    assert lines[5] == "  ..::--==++**##%%@@"
    colours = np.zeros((1, 2, 3), np.uint8)
    colours[0, 1] = (0, 127, 255)  # 127 on average: the fifth of ten shades
    assert picture.Picture(colours, ()).lines() == ["  =="]
