import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxcnn.data.image_files import read_image, scale_image
from jaxcnn.errors import UserError


def test_an_image_of_the_size_keeps_its_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png", "x")
    np.testing.assert_array_equal(scale_image(image, (12, 20, 3)), pixels)
    assert scale_image(image, (8, 8, 1)).shape == (8, 8, 1)


def test_transparent_parts_become_white() -> None:
    image = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    assert (scale_image(image, (4, 4, 3)) == 255).all()


def test_a_file_that_is_no_image() -> None:
    with pytest.raises(UserError, match="this one cannot be read as an image"):
        read_image(io.BytesIO(b"text"), "this one")
