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
    assert np.abs(other - plain).mean() < 6
    assert np.corrcoef(other.ravel(), plain.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("ink", [WHITE, BLACK])
def test_what_is_see_through_is_ground(tmp_path: Path, ink: tuple[int, int, int]) -> None:
    mask = drawn(ink=WHITE, ground=BLACK).convert("L")
    image = Image.new("RGBA", mask.size, (*ink, 0))
    image.putalpha(mask)
    plain = prepare(tmp_path / "x.png", drawn(ink=WHITE, ground=BLACK)).image.astype(float)
    found = prepare(tmp_path / "y.png", image).image
    assert np.abs(found - plain).mean() < 6


def test_a_picture_of_the_data_set_is_left_as_it_is(tmp_path: Path) -> None:
    digit = np.zeros((28, 28), np.uint8)
    digit[4:20, 10:14] = 200
    found = prepare(tmp_path / "x.png", Image.fromarray(digit))
    np.testing.assert_array_equal(found.image[..., 0], digit)
    photograph = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    found = prepare(tmp_path / "y.png", Image.fromarray(photograph), "cifar10")
    np.testing.assert_array_equal(found.image, photograph)


def test_a_photograph_is_cut_to_its_middle(tmp_path: Path) -> None:
    image = Image.new("RGB", (300, 100), (255, 0, 0))
    image.paste((0, 255, 0), (100, 0, 200, 100))
    found = prepare(tmp_path / "x.png", image, "cifar10")
    assert found.image.shape == (32, 32, 3)
    assert (np.abs(found.image[:, 2:-2].astype(int) - (0, 255, 0)) <= 5).all()
    assert prepare(tmp_path / "y.png", image.convert("L"), "cifar10").image.shape == (32, 32, 3)


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
    lines = picture.Picture(image, ()).lines()
    assert len(lines) == 28
    assert lines[3] == 10 * " " + "@@"
    assert lines[4] == ""
    assert isinstance(io.StringIO("\n".join(lines)).read(), str)
