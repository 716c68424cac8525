"""The page in a browser, with a network that knows digits."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from jaxcnn.data import formats, synthetic
from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.deploy import demo, own_images, server
from jaxcnn.recipes import named
from jaxcnn.storage import checkpoint
from jaxcnn.train.fit import fit
from jaxcnn.train.trained import Trained, load_trained
from tests.conftest import REAL_DATA
from tests.deploy.test_demo import png
from tests.serving import serving
from tests.strokes import strokes

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

# AdamW of optax mixes dtypes.
pytestmark = pytest.mark.loose_promotion

NONE = "\N{EN DASH}"  # where a number is to be


@pytest.fixture(scope="module")
def digits() -> Dataset:
    """Some of MNIST, or of the synthetic data set where it is not."""
    splits = []
    for split, name, size in (("train", "train", 6_000), ("test", "t10k", 300)):
        folder = REAL_DATA / "archives"
        if folder.is_dir():
            images = formats.read_idx(folder / f"{name}-images-idx3-ubyte.gz")[:size, ..., None]
            labels = formats.read_idx(folder / f"{name}-labels-idx1-ubyte.gz")[:size]
        else:
            images, labels = synthetic.generate_split("mnist", split, size=size)
        splits.append(Split(images, labels.astype(np.int32)))
    return Dataset("mnist", "some", *splits, tuple("0123456789"))


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, digits: Dataset) -> Trained:
    folder = tmp_path_factory.mktemp("learned")
    recipe = named.recipe("mnist", "fast").replace(epochs=3, batch_size=128)
    policy = checkpoint.Policy(folder / "checkpoints", keep=1)
    fit(recipe, digits, checkpoints=policy)
    return load_trained(folder)


@pytest.fixture(scope="module")
def url(learned: Trained) -> Iterator[str]:
    with serving(server.Server(demo.Demo(learned))) as listening:
        yield listening.url


@pytest.fixture
def page(browser: "Browser", url: str) -> "Iterator[Tab]":
    """The page on a mobile screen, without an error on its console."""
    yield from opened(browser, url, width=360, has_touch=True)


def opened(browser: "Browser", url: str, width: int, **options: Any) -> "Iterator[Tab]":
    viewport = {"width": width, "height": 740}
    context = browser.new_context(viewport=viewport, **options)  # type: ignore[arg-type]
    context.set_default_timeout(600_000)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(url)
    yield page
    assert [line for line in wrong if "status of 422" not in line] == []
    context.close()


def draw(page: "Tab", image: np.ndarray) -> None:
    box = page.locator("#pad").bounding_box()
    assert box is not None
    for stroke in strokes(image[..., 0]):
        places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in stroke]
        page.mouse.move(*places[0])
        page.mouse.down()
        for place in [*places[1::6], places[-1]]:
            page.mouse.move(*place)
        page.mouse.up()
    settle(page)


def settle(page: "Tab") -> None:
    """Waits until the last response has arrived."""
    page.locator("#results[aria-busy=false]").wait_for()


def table(page: "Tab") -> list[str]:
    return page.locator("#rows td:last-child").all_inner_texts()


def on_the_pad(page: "Tab") -> bytes:
    """Returns the PNG file of what is drawn."""
    text = page.evaluate("document.getElementById('pad').toDataURL()")
    return base64.b64decode(text.split(",")[1])


@pytest.mark.slow
def test_strokes_are_classified_as_by_the_model(
    page: "Tab", learned: Trained, digits: Dataset
) -> None:
    correct, total = 0, 15
    for image, label in zip(digits.test.images[:total], digits.test.labels, strict=False):
        draw(page, image)
        prediction = page.locator("#prediction").inner_text()
        drawn = own_images.prepare_image(io.BytesIO(on_the_pad(page)), "mnist")
        (row,) = learned.probabilities(drawn.image[None])
        assert prediction == str(row.argmax())
        assert table(page) == [f"{value:.1%}" for value in row]
        correct += prediction == str(label)
        page.get_by_role("button", name="Clear").click()
        assert page.locator("#prediction").inner_text() == NONE
    assert correct >= total - 2


LIGHT = """selector => [...document.querySelectorAll(selector)].map(canvas => {
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.filter((_, i) => i % 4 < 3).reduce((a, b) => a + b) / data.length;
})"""


def light(page: "Tab", selector: str) -> list[float]:
    """Returns the mean brightness of canvases."""
    return page.evaluate(LIGHT, selector)


@pytest.mark.slow
def test_the_maps_light_up_while_drawing(page: "Tab", digits: Dataset) -> None:
    assert light(page, ".maps canvas, #seen") == 13 * [0]
    box = page.locator("#pad").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 150, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 200, steps=10)
    settle(page)  # the pen is still down
    before = light(page, ".maps canvas")
    assert max(before[:4]) > 0
    assert max(before[4:]) > 0
    assert light(page, "#seen")[0] > 0
    page.mouse.move(box["x"] + 250, box["y"] + 200, steps=10)
    page.mouse.up()
    settle(page)
    assert light(page, ".maps canvas") != before


@pytest.mark.slow
def test_undo_takes_one_stroke_back(page: "Tab") -> None:
    drawings = [on_the_pad(page)]
    for place in ((100, 100), (180, 120)):
        page.locator("#pad").click(position={"x": place[0], "y": place[1]})
        drawings.append(on_the_pad(page))
    assert len(set(drawings)) == 3
    page.get_by_role("button", name="Undo").click()
    assert on_the_pad(page) == drawings[1]
    page.keyboard.press("Control+z")
    assert on_the_pad(page) == drawings[0]
    settle(page)
    assert table(page) == 10 * [NONE]


@pytest.mark.slow
def test_a_finger_draws(page: "Tab") -> None:
    page.locator("#pad").tap(position={"x": 150, "y": 150})
    settle(page)
    assert light(page, "#pad")[0] > 0
    assert page.locator("#prediction").inner_text() in "0123456789"


@pytest.mark.slow
def test_the_keyboard_draws(page: "Tab", learned: Trained) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "pad"
    page.keyboard.press("Space")
    for _ in range(14):
        page.keyboard.press("ArrowDown")
    settle(page)
    spoken = page.get_by_role("status")
    spoken.filter(has_text="Prediction: 1, ").wait_for(state="attached")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")  # with the pen up
    text = "Pen up, 54 percent across, 75 percent down."
    spoken.filter(has_text=text).wait_for(state="attached")
    (row,) = learned.probabilities(
        own_images.prepare_image(io.BytesIO(on_the_pad(page)), "mnist").image[None]
    )
    assert page.locator("#prediction").inner_text() == str(row.argmax()) == "1"
    names = []
    for _ in range(3):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.textContent"))
    assert names == ["Undo", "Clear", "Open image"]
    page.locator("#pad").focus()
    page.keyboard.press("Delete")
    assert table(page) == 10 * [NONE]


@pytest.mark.slow
def test_an_image_file_is_opened(
    page: "Tab", learned: Trained, digits: Dataset, tmp_path: Path
) -> None:
    for name, image in (("x.png", digits.test.images[1]), ("x.ppm", digits.test.images[2])):
        path = tmp_path / name
        Image.fromarray(image[..., 0]).convert("RGB").save(path)
        page.locator("#file").set_input_files(path)
        settle(page)
        (row,) = learned.probabilities(own_images.prepare_image(path, "mnist").image[None])
        assert table(page) == [f"{value:.1%}" for value in row], name
        # The browser decodes the file by itself; the prediction may arrive earlier.
        page.wait_for_function(f"({LIGHT})('#pad')[0] > 0")
    (tmp_path / "x.png").write_text("no image")
    page.locator("#file").set_input_files(tmp_path / "x.png")
    problem = page.get_by_role("alert").filter(has_text="cannot be read as an image")
    problem.wait_for()
    assert table(page) == 10 * [NONE]
    page.locator("#pad").click()
    assert not problem.is_visible()


@pytest.mark.slow
def test_a_photograph_is_dropped(
    browser: "Browser", photographs: Trained, tiny_cifar10: Dataset
) -> None:
    content = png(tiny_cifar10.test.images[3])
    with serving(server.Server(demo.Demo(photographs))) as listening:
        for page in opened(browser, listening.url, width=360):
            assert page.locator("#undo").count() == 0
            page.evaluate(
                """text => {
                    const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
                    const dataTransfer = new DataTransfer();
                    dataTransfer.items.add(new File([bytes], "x.png", {type: "image/png"}));
                    dispatchEvent(new DragEvent("drop", {dataTransfer}));
                }""",
                base64.b64encode(content).decode(),
            )
            settle(page)
            (row,) = photographs.probabilities(tiny_cifar10.test.images[3][None])
            assert (
                page.locator("#prediction").inner_text()
                == named.recipe("cifar10", "fast").class_names[row.argmax()]
            )
            assert table(page) == [f"{value:.1%}" for value in row]
            assert fits(page)


def fits(page: "Tab") -> bool:
    return page.evaluate(
        "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )


@pytest.mark.slow
def test_a_mobile_screen_is_wide_enough(page: "Tab", digits: Dataset) -> None:
    assert fits(page)
    draw(page, digits.test.images[0])
    assert fits(page)


@pytest.mark.slow
def test_what_a_screen_reader_finds(page: "Tab") -> None:
    for role, name in (
        ("application", "Draw a digit"),
        ("table", "Probabilities"),
        ("region", "Prediction"),
        ("region", "Feature maps"),
        ("rowheader", "7"),
        ("img", "conv1: nothing to see yet"),
    ):
        assert page.get_by_role(role, name=name, exact=True).count() == 1, name  # type: ignore[arg-type]
