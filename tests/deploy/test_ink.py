import io

import numpy as np
import pytest

from benchmarks import photographs
from jaxcnn.deploy import ink, own_images

# Each of ten digits with each polarity, drawn at random among pens, papers, lights, grounds and
# margins. Of 3,000 in the benchmark two have another polarity than they should.
COUNT = 60


def test_photographs() -> None:
    wrong = []
    for content, _, traits in photographs.photographs(COUNT, seed=7):
        prepared = own_images.prepare_image(io.BytesIO(content), "mnist")
        if ("dark on light, so inverted" in prepared.steps) != (
            traits["polarity"] == "dark on light"
        ):
            wrong.append(traits)
        # A digit alone: no part of a frame, of lines or of the paper.
        inside = prepared.image[..., 0] > 100
        assert 0.02 < inside.mean() < 0.35, traits
    assert len(wrong) <= 1, wrong


def seven(level: float, ground: np.ndarray, width: int = 6) -> np.ndarray:
    """Draws a seven with a pen on a ground, float[140, 140]."""
    grey = ground.astype(float).copy()
    grey[30 : 30 + width, 40:100] = level
    for row in range(30, 110):
        column = 94 - (row - 30) // 2
        grey[row, column : column + width] = level
    return grey


FLAT = np.full((140, 140), 128.0)
Y, X = np.mgrid[-1:1:140j, -1:1:140j]


def found(grey: np.ndarray) -> tuple[np.ndarray, bool]:
    result = ink.find_ink(grey)
    assert result is not None
    return result


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("loss", [0.0, 0.05, 0.1, 0.2, 0.3])
@pytest.mark.parametrize("width", [3, 6, 12])
def test_darker_corners(sign: int, loss: float, width: int) -> None:
    """Of the paper, or lighter ones of a board: less than the ink they may be in each pixel."""
    shade = 1 - loss * (X**2 + Y**2) / 2
    paper = seven(0.2, np.ones((140, 140)), width) * shade * 220
    grey = paper if sign < 0 else 255 - paper
    strength, dark = found(grey)
    assert dark == (sign < 0)
    expected = seven(1.0, np.zeros((140, 140)), width) > 0
    assert (strength > 0.5).sum() == expected.sum()
    np.testing.assert_array_equal(strength > 0.5, expected)


@pytest.mark.parametrize("level", [0.0, 255.0])
@pytest.mark.parametrize("thick", [2, 8, 20])
def test_a_frame_is_cut_off(level: float, thick: int) -> None:
    grey = np.pad(seven(20.0, FLAT + 80), thick, constant_values=level)
    strength, dark = found(grey)
    plain, _ = found(seven(20.0, FLAT + 80))
    assert dark
    rows, columns = (np.flatnonzero(strength.any(axis)) for axis in (1, 0))
    shown = strength[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    rows, columns = (np.flatnonzero(plain.any(axis)) for axis in (1, 0))
    np.testing.assert_allclose(shown, plain[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


@pytest.mark.parametrize("level", [0.0, 60.0, 255.0])
@pytest.mark.parametrize("side", [0, 1, 2, 3])
def test_a_line_along_an_edge_is_no_ink(level: float, side: int) -> None:
    grey = np.rot90(seven(20.0, FLAT + 80), side).copy()
    plain, _ = found(grey)
    grey[:2] = level
    strength, dark = found(grey)
    assert dark
    np.testing.assert_allclose(strength[5:], plain[5:], atol=0.02)
    assert not strength[:2].any()


def test_what_touches_the_edge_is_ink_if_it_is_a_stroke() -> None:
    grey = seven(255.0, np.zeros((140, 140)))
    rows, columns = (np.flatnonzero(grey.any(axis)) for axis in (1, 0))
    tight = grey[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    for light in (True, False):
        strength, dark = found(tight if light else 255 - tight)
        assert dark != light
        np.testing.assert_array_equal(strength, tight / 255)


@pytest.mark.parametrize("every", [8, 15, 30])
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_squared_paper(every: int, share: float) -> None:
    """Its lines are a part of the ground as far as they are fainter than the ink."""
    ground = np.full((140, 140), 220.0)
    ground[::every] = ground[:, ::every] = 220 * (1 - share)
    strength, dark = found(seven(20.0, ground))
    assert dark
    np.testing.assert_array_equal(strength > 0.5, seven(1.0, np.zeros((140, 140))) > 0)


def test_levels() -> None:
    assert ink.find_ink(FLAT) is None
    assert ink.find_ink(seven(128.0 + ink.MIN_CONTRAST - 0.1, FLAT)) is None
    strength, dark = found(seven(128.0 + ink.MIN_CONTRAST, FLAT))
    assert not dark
    assert set(np.unique(strength)) == {0, 1}
    half = seven(255.0, np.zeros((140, 140)))
    half[70:] *= 0.75
    assert set(np.unique(found(half)[0])) == {0, 0.75, 1}


@pytest.mark.parametrize("shape", [(1, 1), (1, 140), (140, 1), (2, 2), (5, 140)])
def test_the_smallest(shape: tuple[int, int]) -> None:
    assert ink.find_ink(np.zeros(shape)) is None
    grey = np.zeros(shape)
    grey[0, 0] = 255
    result = ink.find_ink(grey)
    assert result is None or result[0].shape == shape
