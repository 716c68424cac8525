"""A picture of the user's own, made into one that a network knows."""

import os
import warnings
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from scipy import ndimage

from jaxcnn.deploy import ink
from jaxcnn.errors import UserError, as_path

MEDIA_TYPES = {
    "PNG": ("image/png",),
    "JPEG": ("image/jpeg",),
    "BMP": ("image/bmp", "image/x-ms-bmp"),
    "GIF": ("image/gif",),
    "WEBP": ("image/webp",),
    "TIFF": ("image/tiff",),
    "PPM": ("image/x-portable-pixmap", "image/x-portable-graymap", "image/x-portable-anymap"),
}
"""The kinds of file that are read, and what programs call them."""

# Pillow's readers of these are its own code; some others start foreign programs.
_FORMATS = tuple(MEDIA_TYPES)
_LARGEST = 50_000_000  # pixels
_DIGIT = 28
# MNIST's digits fill a box of 20 x 20 pixels, their centre of mass in the middle of 28 x 28 (LeCun
# et al., http://yann.lecun.com/exdb/mnist/): in its files within half a pixel of pixel 14, from 0.
_BOX = 20
_MIDDLE = 14
# Longer side of the picture in which the digit is looked for. A multiple of 28: an image of the
# data set becomes larger and smaller again without a change.
_SEEN = 140
_SHADES = " .:-=+*#%@"


@dataclass(frozen=True)
class Picture:
    """A picture, prepared.

    Attributes:
        image: uint8[28, 28, 1] or uint8[32, 32, 3].
        steps: what was done to it, in words.
    """

    image: np.ndarray
    steps: tuple[str, ...]

    def lines(self) -> list[str]:
        """Returns it in characters, the brighter the denser; two a pixel, for they are narrow."""
        grey = self.image.mean(-1)
        shades = (grey * (len(_SHADES) - 1) / 255).round().astype(int)
        return ["".join(2 * _SHADES[shade] for shade in row).rstrip() for row in shades]


def prepare(source: str | os.PathLike[str] | BinaryIO, network: str) -> Picture:
    """Reads a picture and makes it such as those that a network was trained on.

    A digit becomes light on dark, as large and in the place that MNIST's have; of a photograph the
    middle square is taken.

    Args:
        source: a PNG, JPEG, BMP, GIF, WebP, TIFF or PPM file of any size, colour or grey: its path,
            or the open file.
        network: "mnist" or "cifar10".

    Raises:
        UserError: it is no picture, too large, or nothing is drawn on it.
    """
    name = "the picture"
    if isinstance(source, str | os.PathLike):
        name = str(source)
        source = as_path(source)
        if not os.path.isfile(source):  # noqa: PTH113 - false for a name that is too long, too
            raise UserError(f"{name} is not there: give the path of a picture")
    picture = _read(source, name)
    size = f"{picture.width} x {picture.height}"
    return _digit(picture, size, name) if network == "mnist" else _photograph(picture, size)


def _read(source: str | os.PathLike[str] | BinaryIO, name: str) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Of damage that does not matter, to the list of a camera's settings say, it warns, too.
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source, formats=_FORMATS) as picture:
                if picture.width * picture.height > _LARGEST:
                    raise UserError(
                        f"{name} has {picture.width} x {picture.height} pixels: give a picture of "
                        f"at most {_LARGEST // 10**6} million"
                    )
                picture.load()
                upright: Image.Image = ImageOps.exif_transpose(picture)
                return _eight_bit(upright)
    except UserError:
        raise
    except Exception as error:  # Pillow's readers raise whatever the damage leads to
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UserError(
            f"{name} cannot be read as a picture ({reason}): give a whole "
            f"{', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} file"
        ) from error


def _eight_bit(picture: Image.Image) -> Image.Image:
    """Returns it as RGB or, with what is see-through, as RGBA."""
    if picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        values = np.asarray(picture, np.float64)
        low, high = np.nanmin(values), np.nanmax(values)
        if not np.isfinite([low, high]).all():
            raise ValueError("not all of its pixels are numbers")
        values = (values - low) * 255 / max(high - low, 1e-12)
        picture = Image.fromarray(values.round().astype(np.uint8))
    clear = "A" in picture.getbands() or "transparency" in picture.info
    return picture.convert("RGBA" if clear else "RGB")


def _digit(picture: Image.Image, size: str, name: str) -> Picture:
    steps = [f"{size} pixels to grey"]
    found = ink.find(_grey(picture))
    if found is None:
        raise UserError(f"{name} shows nothing that stands out: give a picture of one digit")
    strokes, dark = found
    if dark:
        steps.append("dark on light, so inverted")
    rows, columns = (np.flatnonzero((strokes > 0.1).any(axis)) for axis in (1, 0))
    strokes = strokes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = strokes.shape
    scale = _BOX / max(height, width)
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(
        Image.fromarray(strokes.astype(np.float32)).resize(target, Image.Resampling.BOX)
    )
    small = small / small.max()
    steps.append(f"the digit scaled to {target[0]} x {target[1]}")
    total = small.sum()
    corner = [
        round(_MIDDLE - float((small.sum(1 - axis) * np.arange(side)).sum() / total))
        for axis, side in enumerate(small.shape)
    ]
    top, left = (
        min(max(start, 0), _DIGIT - side) for start, side in zip(corner, small.shape, strict=True)
    )
    image = np.zeros((_DIGIT, _DIGIT, 1), np.uint8)
    image[top : top + small.shape[0], left : left + small.shape[1], 0] = (small * 255).round()
    steps.append("centre of mass in the middle of 28 x 28")
    return Picture(image, tuple(steps))


def _grey(picture: Image.Image) -> np.ndarray:
    """Returns luminance, float64[H, W] in 0..255, the longer side about `_SEEN`.

    Where it is see-through, a sheet with something on it goes on as it ends; all else is ink, on a
    ground that differs from it.
    """
    picture.thumbnail((_SEEN, _SEEN), Image.Resampling.BOX)
    times = max(1, _SEEN // max(picture.size))
    picture = picture.resize(
        (times * picture.width, times * picture.height), Image.Resampling.NEAREST
    )
    grey = np.asarray(picture.convert("L"), np.float64)
    if picture.mode != "RGBA":
        return grey
    alpha = np.asarray(picture.getchannel("A"), np.float64) / 255
    solid = alpha > 0.99
    if solid.any():
        rows, columns = (np.flatnonzero(solid.any(axis)) for axis in (1, 0))
        sheet = solid[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.8
        if sheet and np.ptp(grey[solid]) >= ink.FAINTEST:
            nearest = ndimage.distance_transform_edt(
                ~solid, return_distances=False, return_indices=True
            )
            return grey[tuple(nearest)]
    shown = (grey * alpha).sum() / max(alpha.sum(), 1e-9)
    return grey * alpha + (0.0 if shown > 127 else 255.0) * (1 - alpha)


def _photograph(picture: Image.Image, size: str) -> Picture:
    if picture.mode == "RGBA":
        ground = Image.new("RGBA", picture.size, (255, 255, 255, 255))
        picture = Image.alpha_composite(ground, picture)
    picture = picture.convert("RGB")
    if picture.size == (32, 32):
        return Picture(np.asarray(picture), ("32 x 32: as it is",))
    side = min(picture.size)
    image = ImageOps.fit(picture, (32, 32), Image.Resampling.LANCZOS)
    return Picture(
        np.asarray(image), (f"the middle {side} x {side} of {size} pixels", "scaled to 32 x 32")
    )
