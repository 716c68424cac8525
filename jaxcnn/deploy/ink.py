"""The ink of a digit in a drawing or a photograph: where it is, and whether it is dark or light.

The method is mathematical morphology (Serra, Image analysis and mathematical morphology, 1982). An
opening by a square removes light structures that are narrower than the square; what it removes is
the top-hat. Wider structures remain, however uneven: shadows, a sheet on a table. The same
operations on the inverted image find dark strokes.
"""

import numpy as np
from scipy import ndimage

MIN_CONTRAST = 16
"""The smallest contrast of ink, in levels of 0..255: less is the grain of paper."""

# Widths of the squares in pixels, and the widest as a share of the longer side: a stroke of a bold
# digit that fills the image is a third of it wide.
_WIDTHS = (3, 5, 7, 9, 13, 19, 27, 37, 53)
_WIDEST = 0.4
_BLUR = 3  # pixels between a frame and a sheet
_NEIGHBOURS = np.ones((3, 3), np.bool_)


def find_ink(grey: np.ndarray) -> tuple[np.ndarray, bool] | None:
    """Finds the ink.

    Args:
        grey: float[H, W] in 0..255, neither side above 140.

    Returns:
        ink: float[H', W'] in 0..1, 0 where there is none; without the image's frame, if any.
        dark: whether the ink is darker than its ground.
        None instead of both if nothing stands out.
    """
    grey = _without_frame(grey)
    widths = [width for width in _WIDTHS if width <= max(_WIDEST * max(grey.shape), _WIDTHS[0])]
    light = {False: grey, True: -grey}
    hats = {dark: [_top_hat(light[dark], width, beyond=True) for width in widths] for dark in light}
    contrast = max(hats[dark][-1].max() for dark in light)
    if contrast < MIN_CONTRAST:
        return None
    found = {dark: [hat > contrast / 2 for hat in hats[dark]] for dark in light}
    dark = max(found, key=lambda dark: _strokes(found[dark], widths))
    return _strength(light[dark], found[dark][-1], widths[-1], contrast / 2), dark


def _without_frame(grey: np.ndarray) -> np.ndarray:
    """Crops a frame on all sides that differs from the sheet as much as the ink does."""
    height, width = grey.shape
    middle = grey[height // 6 : height - height // 6, width // 6 : width - width // 6]
    away = np.abs(grey - np.median(middle))
    other = away > away.max() / 2
    rows, columns = (np.flatnonzero(other.mean(axis) < 0.95) for axis in (1, 0))
    if not rows.size or not columns.size or _edge(other).mean() < 0.95:
        return grey
    top, bottom = rows[0] + _BLUR, rows[-1] + 1 - _BLUR
    left, right = columns[0] + _BLUR, columns[-1] + 1 - _BLUR
    sheet = other[top:bottom, left:right]
    # A bold digit may fill the middle as well, but not the edge of its own bounding box.
    if not sheet.any() or _edge(sheet).mean() > 0.2:
        return grey
    return grey[top:bottom, left:right]


def _edge(values: np.ndarray) -> np.ndarray:
    return np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])


def _top_hat(light: np.ndarray, width: int, *, beyond: bool) -> np.ndarray:
    """Returns how far structures that are light and narrower than a square rise above the rest.

    Args:
        light: float[H, W].
        width: of the square, in pixels.
        beyond: whether structures at the edge of the image continue beyond it or end there.

    Returns:
        float[H, W], non-negative.
    """
    if beyond:
        wide = np.pad(light, width, "edge")
    else:
        wide = np.pad(light, width, constant_values=light.min())
    rest = ndimage.grey_opening(wide, (width, width))
    return light - rest[width:-width, width:-width]


def _strokes(found: list[np.ndarray], widths: list[int]) -> float:
    """Scores how much of the area that squares of increasing width find consists of pen strokes.

    Area divided by width is the length of strokes, the pattern spectrum of Maragos (Pattern
    spectrum and multiscale shape representation, 1989); divided by the squared width it is the
    number of dots. The wide paper between a digit and a line at the edge may be longer than the
    digit's strokes, and flecks may be more dots than a bold digit's strokes. Hence the power 1.5.

    Args:
        found: bool[H, W] for each width, what a square of that width finds.
        widths: in pixels, increasing.
    """
    areas = [mask.sum() for mask in found]
    return float((np.diff(areas, prepend=0) / np.power(widths, 1.5)).sum())


def _strength(light: np.ndarray, strokes: np.ndarray, width: int, least: float) -> np.ndarray:
    """Returns the ink of those connected components that contain strokes.

    Args:
        light: float[H, W].
        strokes: bool[H, W], the ink except where it touches the edge.
        width: of the square that found the strokes, in pixels.
        least: how far ink rises above the ground at least, in levels.

    Returns:
        float[H, W] in 0..1, 0 where there is no ink.
    """
    hat = _top_hat(light, width, beyond=False)
    parts, count = ndimage.label(hat > least, _NEIGHBOURS)
    areas = np.bincount(parts.ravel(), minlength=count + 1)
    areas[0] = 0
    # A line along the edge and the rest of a frame contain no strokes, and flecks are small.
    shares = np.bincount(parts.ravel(), strokes.ravel(), count + 1) / np.maximum(areas, 1)
    if (shares > 0.25).any():
        areas[shares <= 0.25] = 0
    kept = (areas > 0.03 * areas.max())[parts]
    # Pixels that rise no further above the ground than its own lines and grain are not ink.
    reach = width // 2
    ground = hat[~ndimage.binary_dilation(parts > 0, _NEIGHBOURS, iterations=reach)]
    noise = min(max(np.percentile(ground, 99), 0.0), least) if ground.size else 0.0
    edges = kept | (hat > noise) & (parts == 0)
    ink = ndimage.binary_dilation(kept, _NEIGHBOURS, iterations=reach, mask=edges)
    full = np.percentile(hat[kept], 90)
    return np.clip((hat - noise) / (full - noise), 0, 1) * ink
