"""Image files of any size, colour or grey: read, and scaled to the form of a data set."""

import os
import warnings
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from jaxcnn.errors import UserError

MEDIA_TYPES = {
    "PNG": ("image/png",),
    "JPEG": ("image/jpeg",),
    "BMP": ("image/bmp", "image/x-ms-bmp"),
    "GIF": ("image/gif",),
    "WEBP": ("image/webp",),
    "TIFF": ("image/tiff",),
    "PPM": ("image/x-portable-pixmap", "image/x-portable-graymap", "image/x-portable-anymap"),
}
"""The media types of each file format that can be read, by Pillow's name of the format."""

# Pillow reads these itself; for some other formats it starts external programs.
FORMATS = tuple(MEDIA_TYPES)
"""The file formats that can be read, by Pillow's names."""

FORMATS_TEXT = f"{', '.join(FORMATS[:-1])} or {FORMATS[-1]}"
"""The file formats that can be read, as text."""

_MAX_PIXELS = 50_000_000


def read_image(source: str | os.PathLike[str] | BinaryIO, name: str) -> Image.Image:
    """Reads an image as RGB or, if parts are transparent, as RGBA, upright.

    Args:
        source: of the formats above: its path, or the open file.
        name: what error messages call it.

    Raises:
        UserError: it is not an image, damaged or too large.
    """
    try:
        with warnings.catch_warnings():
            # Pillow warns of damage that does not matter, for example in the camera's settings.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=FORMATS) as image:
                if image.width * image.height > _MAX_PIXELS:
                    raise UserError(
                        f"{name} has {image.width} x {image.height} pixels: give an image of at "
                        f"most {_MAX_PIXELS // 10**6} million"
                    )
                image.load()
                upright: Image.Image = ImageOps.exif_transpose(image)
                return _eight_bit(upright)
    except UserError:
        raise
    except Exception as error:  # Pillow raises errors of many kinds for a damaged file
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"{name} cannot be read as an image ({reason}): give a complete {FORMATS_TEXT} file"
        ) from error


def scale_image(image: Image.Image, shape: tuple[int, int, int]) -> np.ndarray:
    """Crops the middle of an image and scales it; one of that size keeps its pixels.

    Args:
        image: RGB or RGBA; transparent parts become white.
        shape: (H, W, C), with 1 or 3 channels.

    Returns:
        uint8[H, W, C].
    """
    height, width, channels = shape
    if image.mode == "RGBA":
        pixels = np.asarray(image.convert("RGBa"))  # colours in proportion to their opacity
        image = Image.fromarray(pixels[..., :3] + (255 - pixels[..., 3:]))
    image = image.convert("RGB" if channels == 3 else "L")
    if image.size != (width, height):
        across = min(image.width, image.height * (width / height))
        down = min(image.height, image.width / (width / height))
        left, top = (image.width - across) / 2, (image.height - down) / 2
        box = (left, top, left + across, top + down)
        image = resize(image, (width, height), Image.Resampling.LANCZOS, box)
    return np.asarray(image).reshape(shape)


def resize(
    image: Image.Image,
    size: tuple[int, int],
    resample: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """Resizes an image, first its rows and then its columns.

    Pillow 13 begins with the columns of a tall image, which rounds other levels; this is the same
    with every version, and in the page of `jaxcnn demo`.

    Args:
        image: of any mode that can be resized.
        size: width and height.
        resample: the filter.
        box: the part that is taken: left, top, right and bottom; all if None.
    """
    left, top, right, bottom = box or (0, 0, *image.size)
    rows = image.resize((size[0], image.height), resample, (left, 0, right, image.height))
    return rows.resize(size, resample, (0, top, size[0], bottom))


def _eight_bit(image: Image.Image) -> Image.Image:
    """Returns an image of any mode as RGB, or as RGBA if parts are transparent."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        values = np.asarray(image, np.float64)
        low, high = np.nanmin(values), np.nanmax(values)
        if not np.isfinite([low, high]).all():
            raise ValueError("not all of its pixels are numbers")
        values = (values - low) * 255 / max(high - low, 1e-12)
        image = Image.fromarray(values.round().astype(np.uint8))
    transparent = "A" in image.getbands() or "transparency" in image.info
    return image.convert("RGBA" if transparent else "RGB")
