"""Images of the user's own, converted to such as a network was trained on."""

import os
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image
from scipy import ndimage

from jaxcnn.data.image_files import read_image, resize, scale_image
from jaxcnn.deploy import ink
from jaxcnn.errors import UserError, as_path
from jaxcnn.recipes.problems import PROBLEMS
from jaxcnn.train.trained import Trained

_DIGIT = 28
# MNIST's digits fill a box of 20 x 20 pixels, with their centre of mass in the middle of 28 x 28
# (LeCun et al., http://yann.lecun.com/exdb/mnist/): within half a pixel of pixel 14, counted from
# 0, in its files.
_BOX = 20
_MIDDLE = 14
# Longer side, in pixels, of the image in which the digit is located. It is a multiple of 28, so
# enlarging an image of MNIST to it and reducing it again changes nothing.
_WORKING_SIDE = 140
_SHADES = " .:-=+*#%@"


@dataclass(frozen=True)
class PreparedImage:
    """An image as a network takes it.

    Attributes:
        image: uint8[H, W, C], as the network takes it.
        steps: how it was converted, in words.
    """

    image: np.ndarray
    steps: tuple[str, ...]

    def lines(self) -> list[str]:
        """Returns the image as lines of text, two characters per pixel, denser where brighter."""
        grey = self.image.mean(-1)
        shades = (grey * (len(_SHADES) - 1) / 255).round().astype(int)
        return ["".join(2 * _SHADES[shade] for shade in row).rstrip() for row in shades]


def prepare_for(network: Trained, source: str | os.PathLike[str] | BinaryIO) -> PreparedImage:
    """Reads an image and converts it to the form of a network's training images.

    For a network that reads digits it becomes light on dark, with MNIST's size and position. For
    others it is cropped to its middle and scaled.

    Args:
        network: as trained.
        source: see `prepare_image`.

    Returns:
        The image and how it was converted.

    Raises:
        UserError: see `prepare_image`; or the network takes neither grey nor colour images.
    """
    return _prepare(source, None if network.reads_digits else network.image_shape)


def prepare_image(source: str | os.PathLike[str] | BinaryIO, network: str) -> PreparedImage:
    """Reads an image and converts it to the form of a network's training images.

    A digit becomes light on dark, with MNIST's size and position. A photograph is cropped to its
    central square and scaled.

    Args:
        source: a PNG, JPEG, BMP, GIF, WebP, TIFF or PPM file of any size, colour or grey: its path,
            or the open file.
        network: "mnist" or "cifar10".

    Returns:
        The image and how it was converted.

    Raises:
        UserError: the file is missing, not an image or too large, or nothing stands out in it.
    """
    return _prepare(source, None if network == "mnist" else PROBLEMS[network].image_shape)


def _prepare(
    source: str | os.PathLike[str] | BinaryIO, shape: tuple[int, int, int] | None
) -> PreparedImage:
    """Reads and converts an image: to a shape, or for None as a digit."""
    name = "the image"
    if isinstance(source, str | os.PathLike):
        name = str(source)
        source = as_path(source)
        if not os.path.isfile(source):  # noqa: PTH113 - false for a name that is too long, too
            raise UserError(f"{name} is not there: give the path of an image")
    image = read_image(source, name)
    size = f"{image.width} x {image.height}"
    return _photograph(image, size, shape) if shape else _digit(image, size, name)


def _digit(image: Image.Image, size: str, name: str) -> PreparedImage:
    """Converts an image of a digit to uint8[28, 28, 1], as MNIST's images were made."""
    steps = [f"{size} pixels to grey"]
    found = ink.find_ink(_grey(image))
    if found is None:
        raise UserError(f"{name} shows nothing that stands out: give an image of one digit")
    strokes, dark = found
    if dark:
        steps.append("dark on light, so inverted")
    rows, columns = (np.flatnonzero((strokes > 0.1).any(axis)) for axis in (1, 0))
    strokes = strokes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    height, width = strokes.shape
    scale = _BOX / max(height, width)
    target = (max(1, round(width * scale)), max(1, round(height * scale)))
    drawn = Image.fromarray(strokes.astype(np.float32))
    small = np.asarray(resize(drawn, target, Image.Resampling.BOX))
    small = (small / small.max() * 255).round().astype(np.uint8)
    steps.append(f"the digit scaled to {target[0]} x {target[1]}")
    steps.append("centre of mass in the middle of 28 x 28")
    return PreparedImage(_centred(small), tuple(steps))


def _centred(digit: np.ndarray) -> np.ndarray:
    """Puts a digit's centre of mass in the middle: uint8[h, w] -> uint8[28, 28, 1]."""
    total = int(digit.sum())  # whole numbers: exact, in whatever order they are added
    starts = [
        round(_MIDDLE - int((digit.sum(1 - axis) * np.arange(side)).sum()) / total)
        for axis, side in enumerate(digit.shape)
    ]
    top, left = (
        min(max(start, 0), _DIGIT - side) for start, side in zip(starts, digit.shape, strict=True)
    )
    image = np.zeros((_DIGIT, _DIGIT, 1), np.uint8)
    image[top : top + digit.shape[0], left : left + digit.shape[1], 0] = digit
    return image


def _grey(image: Image.Image) -> np.ndarray:
    """Returns luminance, float64[H, W] in 0..255, the longer side about `_WORKING_SIDE`.

    Transparent pixels around a sheet with something on it continue the sheet's edge. In other
    images the opaque pixels are the ink, and the transparent ones become a contrasting ground.
    """
    if image.mode != "RGBA":
        return _working(image.convert("L"))
    *colours, opacity = image.convert("RGBa").split()  # in proportion to their opacity
    grey = _working(Image.merge("RGB", colours).convert("L"))
    alpha = _working(opacity)
    solid = alpha / 255 > 0.99
    if solid.any():
        rows, columns = (np.flatnonzero(solid.any(axis)) for axis in (1, 0))
        sheet = solid[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.8
        if sheet and np.ptp(grey[solid]) >= ink.MIN_CONTRAST:
            nearest = ndimage.distance_transform_edt(
                ~solid, return_distances=False, return_indices=True
            )
            return grey[tuple(nearest)]
    bright = 255 * grey.sum() / max(alpha.sum(), 1) > 127
    return grey if bright else grey + 255 - alpha


def _working(image: Image.Image) -> np.ndarray:
    """Scales an image of one channel to about `_WORKING_SIDE` pixels, float64[H, W] in 0..255."""
    scale = min(1, _WORKING_SIDE / max(image.size))
    width, height = (max(1, round(side * scale)) for side in image.size)
    image = resize(image, (width, height), Image.Resampling.BOX)
    times = max(1, _WORKING_SIDE // max(width, height))
    image = image.resize((times * width, times * height), Image.Resampling.NEAREST)
    return np.asarray(image, np.float64)


def _photograph(image: Image.Image, size: str, shape: tuple[int, int, int]) -> PreparedImage:
    """Converts a photograph to uint8[H, W, C]; one of that size is left unchanged."""
    height, width, channels = shape
    if channels not in (1, 3):
        raise UserError(
            f"the network takes images of {channels} channels: prepare them in code, and call "
            "Trained.probabilities"
        )
    if image.size == (width, height):
        steps: tuple[str, ...] = (f"{width} x {height}: unchanged",)
    else:
        scale = min(image.width / width, image.height / height)
        middle = f"{round(width * scale)} x {round(height * scale)}"
        steps = (f"the middle {middle} of {size} pixels", f"scaled to {width} x {height}")
    return PreparedImage(scale_image(image, shape), steps)
