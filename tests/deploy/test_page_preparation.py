"""The page's own preparation of images in a browser, against Python's, pixel for pixel."""

import base64
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from benchmarks import photographs
from jaxcnn.data import formats
from jaxcnn.data.dataset import load_data
from jaxcnn.deploy import own_images
from jaxcnn.deploy.page import read_scripts
from jaxcnn.errors import UserError
from tests.deploy.test_own_images import BLACK, WHITE, drawn

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

Shape = tuple[int, int, int]
Case = tuple[bytes, Shape | None]  # a file, and the network's image shape; None reads digits

SCRIPTS = ("resampling.js", "ink.js", "preparation.js", "image_file.js")
CIFAR10: Shape = (32, 32, 3)

PREPARE = """async ({file, facts}) => {
    const bytes = Uint8Array.from(atob(file), letter => letter.charCodeAt(0));
    try {
        const {image, steps} = prepare(await readImage(new Blob([bytes])), facts);
        return {image: Array.from(image), steps};
    } catch (error) {
        return {error: error.message};
    }
}"""


@pytest.fixture(scope="module")
def tab(browser: "Browser") -> "Iterator[Tab]":
    page = browser.new_page()
    page.set_default_timeout(600_000)
    page.add_script_tag(content=read_scripts(SCRIPTS))
    yield page
    page.close()


def in_browser(tab: "Tab", content: bytes, shape: Shape | None) -> dict[str, Any]:
    height, width, channels = shape or (28, 28, 1)
    facts = {"draws": shape is None, "height": height, "width": width, "channels": channels}
    return tab.evaluate(PREPARE, {"file": base64.b64encode(content).decode(), "facts": facts})


def in_python(content: bytes, shape: Shape | None) -> dict[str, Any]:
    try:
        prepared = own_images._prepare(io.BytesIO(content), shape)
    except UserError as error:
        return {"error": str(error)}
    return {"image": prepared.image.ravel().tolist(), "steps": list(prepared.steps)}


def differences(tab: "Tab", cases: Iterable[Case]) -> tuple[list[str], int]:
    """Returns in which cases the browser's results are not Python's, and the number of cases."""
    wrong, count = [], 0
    for count, (content, shape) in enumerate(cases, 1):
        found, expected = in_browser(tab, content, shape), in_python(content, shape)
        if found == expected:
            continue
        said = [result.get("steps") or result["error"] for result in (found, expected)]
        if "image" in found and "image" in expected and said[0] == said[1]:
            away = np.abs(np.subtract(found["image"], expected["image"]))
            said = [f"{np.count_nonzero(away)} pixels, by {away.max()} at most"]
        wrong.append(f"case {count}: {said}")
    return wrong, count


def png(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


def veiled(image: Image.Image, alpha: np.ndarray) -> Image.Image:
    image = image.convert("RGBA")
    image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    return image


def shaded(image: Image.Image) -> Image.Image:
    """Paper beside a lamp, with grain."""
    pixels = np.asarray(image.convert("L"), float)
    y, x = np.mgrid[0 : 1 : image.height * 1j, 0 : 1 : image.width * 1j]
    grain = np.random.default_rng(0).normal(0, 4, pixels.shape)
    return Image.fromarray((pixels * (1 - 0.3 * (x + y) / 2) + grain).clip(0, 255).astype(np.uint8))


def drawings() -> Iterator[Image.Image]:
    paper, board = drawn(ink=BLACK, ground=WHITE), drawn(ink=WHITE, ground=BLACK)
    yield paper
    yield board
    yield board.resize((560, 560))
    yield drawn((90, 700), (20, 30, 120), (240, 235, 220))
    yield drawn((700, 90), (250, 250, 90), (40, 20, 60))
    yield drawn((2000, 1500), WHITE, BLACK)
    yield shaded(paper)
    yield paper.convert("P")
    yield paper.convert("1")
    framed = Image.new("L", (260, 360), 30)
    framed.paste(paper.convert("L"), (30, 30))
    yield framed
    alpha = np.asarray(board.convert("L"))
    yield veiled(Image.new("RGB", board.size, (200, 90, 30)), alpha)
    yield veiled(Image.new("RGB", board.size, (20, 9, 30)), alpha // 2)
    yield shaded(paper).convert("RGBA").rotate(9, Image.Resampling.BICUBIC, expand=True)
    yield Image.fromarray(np.eye(7, dtype=np.uint8) * 200)
    yield Image.new("L", (1, 1), 9)
    yield Image.new("L", (50, 50), 90)


def coloured(rng: np.random.Generator, height: int, width: int, channels: int = 3) -> Image.Image:
    small = rng.integers(0, 256, (9, 9, channels)).astype(np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def test_drawings_are_prepared_as_in_python(tab: "Tab") -> None:
    wrong, count = differences(tab, ((png(image), None) for image in drawings()))
    assert count == 16
    assert not wrong


def test_photographs_are_prepared_as_in_python(tab: "Tab") -> None:
    rng = np.random.default_rng(0)
    sizes = [(32, 32), (1, 1), (5, 90), (300, 40), (33, 31), (240, 320), (501, 333)]
    images = [coloured(rng, *size, channels) for size in sizes for channels in (3, 4)]
    images += [image.convert("L") for image in images[:6]]
    cases = [(png(image), shape) for image in images for shape in (CIFAR10, (20, 48, 1))]
    wrong, _ = differences(tab, cases)
    assert not wrong
    assert in_browser(tab, cases[0][0], (32, 32, 2)) == in_python(cases[0][0], (32, 32, 2))


def test_every_opacity_of_every_level(tab: "Tab") -> None:
    """A browser keeps colours in proportion to their opacity, and Python begins with the same."""
    level, alpha = np.mgrid[0:256, 0:256].astype(np.uint8)
    every = png(veiled(Image.fromarray(level), alpha))
    wrong, _ = differences(tab, [(every, (256, 256, 3)), (every, CIFAR10), (every, None)])
    assert not wrong


def test_turned_upright_and_without_a_colour_profile(tab: "Tab") -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    image = coloured(np.random.default_rng(0), 70, 100)
    turned = png(image, exif=exif)
    wrong, _ = differences(tab, [(turned, CIFAR10)])
    assert not wrong
    linear = PngInfo()
    linear.add(b"gAMA", (100_000).to_bytes(4))
    wrong, _ = differences(tab, [(png(image, pnginfo=linear), CIFAR10)])
    assert not wrong


def test_files_that_are_no_images(tab: "Tab") -> None:
    whole = png(coloured(np.random.default_rng(0), 200, 200))
    contents = [b"", b"text", b"%!PS-Adobe-3.0 EPSF-3.0\n", whole[:50], whole[: len(whole) // 2]]
    for content in contents:
        said = in_browser(tab, content, CIFAR10)["error"]
        assert said.startswith("the image cannot be read as an image"), content[:9]
        assert in_python(content, CIFAR10)["error"].startswith(said.split(":")[0])


def test_huge_images(tab: "Tab") -> None:
    huge = png(Image.new("1", (9000, 9000)))
    assert in_browser(tab, huge, None) == in_python(huge, None)
    large = "readImage(new Blob([new Uint8Array(16 * 2 ** 20 + 1)])).catch(error => error.message)"
    assert tab.evaluate(large) == "the image is too large: at most 16 MiB"


@pytest.mark.slow
def test_a_thousand_photographs_of_digits(tab: "Tab", real_data: Path) -> None:
    """As in the benchmark, and MNIST's own, turned and scaled, on paper."""

    def cases() -> Iterator[Case]:
        for content, _, _ in photographs.photographs(500, seed=11):
            with Image.open(io.BytesIO(content)) as image:
                yield png(image), None
        rng = np.random.default_rng(0)
        path = real_data / "archives" / "t10k-images-idx3-ubyte.gz"
        for digit in formats.read_idx(path)[:500]:
            yield png(on_paper(rng, digit)), None

    wrong, count = differences(tab, cases())
    assert not wrong, f"{len(wrong)} of {count}: {wrong[:5]}"


def on_paper(rng: np.random.Generator, digit: np.ndarray) -> Image.Image:
    """Pastes uint8[28, 28] larger, turned, on a sheet of any size with noise, or inverted."""
    side = int(rng.integers(28, 400))
    ink = Image.fromarray(digit).resize((side, side), Image.Resampling.BICUBIC)
    ink = ink.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC)
    width, height = (int(side + more) for more in rng.integers(0, 300, 2))
    sheet = np.zeros((height, width))
    top, left = rng.integers(0, height - side + 1), rng.integers(0, width - side + 1)
    sheet[top : top + side, left : left + side] = np.asarray(ink)
    sheet = sheet * rng.uniform(0.5, 0.9) + rng.normal(0, rng.uniform(0, 6), sheet.shape) + 15
    if rng.random() < 0.5:
        sheet = 255 - sheet
    tint = rng.uniform(0.8, 1, 3)
    return Image.fromarray((sheet[..., None] * tint).clip(0, 255).astype(np.uint8))


@pytest.mark.slow
def test_a_thousand_photographs(tab: "Tab", real_data: Path, tmp_path: Path) -> None:
    """CIFAR-10's, scaled, with borders."""
    cifar10 = load_data("cifar10", data_dir=real_data / "tfds", cache_dir=tmp_path)

    def cases() -> Iterator[Case]:
        rng = np.random.default_rng(0)
        for pixels in cifar10.test.images[:1000]:
            width, height = (int(side) for side in rng.integers(10, 500, 2))
            image = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
            borders = [int(side) for side in rng.integers(0, 60, 4)]
            whole = Image.new(
                "RGB", (width + borders[0] + borders[2], height + borders[1] + borders[3]), WHITE
            )
            whole.paste(image, (borders[0], borders[1]))
            yield png(whole), CIFAR10

    wrong, count = differences(tab, cases())
    assert not wrong, f"{len(wrong)} of {count}: {wrong[:5]}"
