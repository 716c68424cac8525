import io
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcnn.deploy import own_images
from jaxcnn.errors import UserError
from tests.deploy.test_own_images import BLACK, WHITE, difference, drawn, prepare


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


def test_a_turned_photograph_is_set_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    image = drawn((300, 300), WHITE, BLACK)
    image.rotate(90).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    plain = prepare(tmp_path / "x.png", image).image.astype(float)
    found = own_images.prepare_image(tmp_path / "turned.jpg", "mnist").image
    assert np.corrcoef(found.ravel(), plain.ravel())[0, 1] > 0.95


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read as an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read as an image"),
        (None, "shows nothing that stands out"),
    ],
    ids=["empty", "postscript", "blank"],
)
def test_no_image(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "x.png"
    if content is None:
        Image.new("L", (50, 50), 90).save(path)
    else:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        own_images.prepare_image(path, "mnist")
    with pytest.raises(UserError, match="is not there"):
        own_images.prepare_image(tmp_path / "none.png", "mnist")
    with pytest.raises(UserError, match="is not there"):
        own_images.prepare_image(tmp_path, "mnist")
    with pytest.raises(UserError, match="is not there"):
        own_images.prepare_image(300 * "n", "mnist")


def test_an_open_file_is_read_as_its_path_is(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    plain = prepare(path, drawn())
    found = own_images.prepare_image(io.BytesIO(path.read_bytes()), "mnist")
    np.testing.assert_array_equal(found.image, plain.image)
    assert found.steps == plain.steps
    with pytest.raises(UserError, match=r"^the image cannot be read as an image"):
        own_images.prepare_image(io.BytesIO(b"text"), "mnist")


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("1", (9000, 9000)).save(path)
    with pytest.raises(UserError, match="9000 x 9000 pixels: give an image of at most 50 million"):
        own_images.prepare_image(path, "mnist")


def test_the_largest_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jaxcnn.data.image_files._MAX_PIXELS", 1600)
    path = tmp_path / "x.png"
    assert prepare(path, Image.new("RGB", (40, 40)), "cifar10").image.shape == (32, 32, 3)
    with pytest.raises(UserError, match="41 x 40 pixels: give an image of at most"):
        prepare(path, Image.new("RGB", (41, 40)), "cifar10")


def test_a_smaller_bomb_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow warns of what is above its own limit."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match=r"cannot be read as an image .*decompression bomb"):
        prepare(tmp_path / "x.png", Image.new("RGB", (40, 40)), "cifar10")


def chunk(kind: bytes, content: bytes) -> bytes:
    """Returns a part of a PNG file."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def test_damage_that_does_not_matter(tmp_path: Path) -> None:
    """Pillow warns of it and reads the image."""
    image = drawn((200, 200), BLACK, WHITE)
    plain = prepare(tmp_path / "x.png", image).image
    png = (tmp_path / "x.png").read_bytes()
    header = 8 + 25
    files = {"animation.png": png[:header] + chunk(b"acTL", bytes(8)) + png[header:]}
    image.save(tmp_path / "x.jpg", quality=100, subsampling=0)
    jpeg = (tmp_path / "x.jpg").read_bytes()
    for name, entries in {
        "cut.jpg": struct.pack("<HHII", 0x010F, 2, 4, 0)[:5],
        "beyond.jpg": struct.pack("<HHII", 0x010F, 2, 64, 1 << 20),
        "none.jpg": b"",
    }.items():
        settings = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entries
        files[name] = (
            jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(settings) + 2) + settings + jpeg[2:]
        )
    for name, content in files.items():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with Image.open(io.BytesIO(content)) as opened:
                opened.load()
                opened.getexif()
        assert said, name  # else the damage is none
        (tmp_path / name).write_bytes(content)
        found = own_images.prepare_image(tmp_path / name, "mnist").image
        assert difference(found[..., 0], plain[..., 0]) < 3


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    plain = prepare(tmp_path / "x.png", drawn()).image
    np.testing.assert_array_equal(own_images.prepare_image("~/x.png", "mnist").image, plain)


def test_a_long_reason_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError(200 * "x \n")

    monkeypatch.setattr(Image, "open", fail)
    (tmp_path / "x.png").write_bytes(b"x")
    with pytest.raises(UserError) as caught:
        own_images.prepare_image(tmp_path / "x.png", "mnist")
    assert str(caught.value).count("x ") == 60
    assert "\n" not in str(caught.value)
    kinds = "PNG, JPEG, BMP, GIF, WEBP, TIFF or PPM"
    assert str(caught.value).endswith(f"give a complete {kinds} file")
