"""What the page is shown, and the prediction, in a browser."""

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from jaxcnn.data import formats, synthetic
from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.deploy import own_images
from jaxcnn.deploy.page import write_page
from jaxcnn.recipes import named
from jaxcnn.storage import checkpoint
from jaxcnn.train.fit import fit
from jaxcnn.train.trained import Trained, load_trained
from tests.conftest import REAL_DATA
from tests.deploy.browsing import (
    LIGHT,
    NONE,
    draw,
    fits,
    give,
    light,
    on_the_pad,
    open_sections,
    opened,
    png,
    seen,
    settle,
    show_test_image,
    table,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

# AdamW of optax mixes dtypes.
pytestmark = pytest.mark.loose_promotion


@pytest.fixture
def page(browser: "Browser", paths: dict[str, Path]) -> "Iterator[Tab]":
    """The page on a mobile screen, without an error on its console."""
    yield from opened(browser, paths["mnist"], width=360, has_touch=True)


def expected(network: Trained, content: bytes) -> list[str]:
    """Returns the probabilities of `jaxcnn predict` for a file."""
    prepared = own_images.prepare_for(network, io.BytesIO(content))
    (row,) = network.probabilities(prepared.image[None])
    return [f"{value:.1%}" for value in row]


def agree(found: list[str], wanted: list[str]) -> bool:
    """Whether percentages agree but for the rounding of the last digit."""
    parts = zip(found, wanted, strict=True)
    return all(abs(float(one[:-1]) - float(other[:-1])) < 0.11 for one, other in parts)


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


@pytest.mark.slow
def test_strokes_are_classified_as_by_the_model(
    browser: "Browser", digits: Dataset, tmp_path: Path
) -> None:
    recipe = named.recipe("mnist", "fast").replace(epochs=3, batch_size=128)
    fit(recipe, digits, checkpoints=checkpoint.Policy(tmp_path / "checkpoints", keep=1))
    learned = load_trained(tmp_path)
    correct, total = 0, 15
    for page in opened(browser, write_page(learned, None, tmp_path / "x.html"), width=360):
        for image, label in zip(digits.test.images[:total], digits.test.labels, strict=False):
            draw(page, image)
            prediction = page.locator("#prediction").inner_text()
            drawn = own_images.prepare_image(io.BytesIO(on_the_pad(page)), "mnist")
            (row,) = learned.probabilities(drawn.image[None])
            assert prediction == str(row.argmax())
            assert agree(table(page), [f"{value:.1%}" for value in row])
            correct += prediction == str(label)
            page.get_by_role("button", name="Clear").click()
            settle(page)
            assert page.locator("#prediction").inner_text() == NONE
    assert correct >= total - 2


def test_the_maps_light_up_while_drawing(page: "Tab") -> None:
    assert not any(light(page, ".maps canvas, #seen"))
    box = page.locator("#pad").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 150, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 200, steps=10)
    settle(page)  # the pen is still down
    before = {name: light(page, f"#maps-{name} canvas") for name in ("conv1", "conv2")}
    assert all(max(maps) > 0 for maps in before.values())
    assert light(page, "#seen")[0] > 0
    page.mouse.move(box["x"] + 250, box["y"] + 200, steps=10)
    page.mouse.up()
    settle(page)
    assert light(page, "#maps-conv1 canvas") != before["conv1"]


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


def test_the_keyboard_draws(page: "Tab", networks: dict[str, Trained]) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "pad"
    page.keyboard.press("Space")
    for _ in range(14):
        page.keyboard.press("ArrowDown")
    settle(page)
    drawn = np.asarray(Image.open(io.BytesIO(on_the_pad(page))).convert("L"))
    assert (drawn.max(1) > 100).sum() > 280  # half of the pad's height
    spoken = page.locator("#said")
    spoken.filter(has_text="Prediction: ").wait_for(state="attached")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")  # with the pen up
    text = "Pen up, 54 percent across, 75 percent down."
    spoken.filter(has_text=text).wait_for(state="attached")
    assert agree(table(page), expected(networks["mnist"], on_the_pad(page)))
    names = []
    for _ in range(4):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.textContent"))
    assert names == ["Undo", "Clear", "Open image", "Camera"]
    page.locator("#pad").focus()
    page.keyboard.press("Delete")
    settle(page)
    assert table(page) == 10 * [NONE]


def test_an_image_file_is_opened(
    page: "Tab", networks: dict[str, Trained], tiny_mnist: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(np.pad(tiny_mnist.test.images[1], ((3, 9), (5, 1), (0, 0)))))
    page.locator("#file").set_input_files(path)
    page.wait_for_function(f"({LIGHT})('#pad')[0] > 0")
    settle(page)
    assert agree(table(page), expected(networks["mnist"], path.read_bytes()))
    assert "pixels to grey" in page.locator("#steps").inner_text()


def test_what_is_no_image_gets_a_sentence(page: "Tab", tmp_path: Path) -> None:
    problem = page.locator("#problem")
    whole = png(np.eye(100, dtype=np.uint8) * 255)
    for content, sentence in (
        (b"no image", "cannot be read as an image"),
        (whole[:60], "cannot be read as an image"),
        (png(np.full((50, 50), 7, np.uint8)), "shows nothing that stands out"),
        (bytes(17 * 2**20), "is too large"),
    ):
        (tmp_path / "x.png").write_bytes(content)
        page.locator("#file").set_input_files(tmp_path / "x.png")
        problem.filter(has_text=sentence).wait_for()
        assert table(page) == 10 * [NONE]
    assert problem.inner_text().startswith("The image ")
    page.locator("#pad").click()
    settle(page)
    assert not problem.is_visible()


@pytest.mark.slow
@pytest.mark.parametrize("event", ["drop", "paste"])
def test_a_photograph_is_given(
    event: str,
    browser: "Browser",
    networks: dict[str, Trained],
    tiny_cifar10: Dataset,
    tmp_path: Path,
) -> None:
    image = tiny_cifar10.test.images[3]
    path = write_page(networks["cifar10"], None, tmp_path / "x.html")
    for page in opened(browser, path, width=360):
        assert page.locator("#undo").count() == 0
        give(page, event, png(image))
        page.locator("#steps").filter(has_text="unchanged").wait_for()
        np.testing.assert_array_equal(seen(page), image)
        (row,) = networks["cifar10"].probabilities(image[None])
        name = networks["cifar10"].class_names[row.argmax()]
        assert page.locator("#prediction").inner_text() == name
        assert agree(table(page), [f"{value:.1%}" for value in row])
        assert fits(page)


@pytest.mark.slow
def test_a_photograph_of_the_camera(
    browser: "Browser", paths: dict[str, Path], tmp_path: Path
) -> None:
    """On mobile devices the camera's own app is opened; otherwise, the page shows what it sees."""
    for page in opened(browser, paths["mnist"], width=360, has_touch=True, is_mobile=True):
        with page.expect_file_chooser() as chosen:
            page.get_by_role("button", name="Camera").click()
        (tmp_path / "x.png").write_bytes(png(np.eye(60, dtype=np.uint8) * 255))
        chosen.value.set_files(tmp_path / "x.png")
        page.locator("#steps").filter(has_text="60 x 60").wait_for()
    for page in opened(browser, paths["mnist"], width=900):
        page.evaluate(
            """() => {
                const canvas = document.createElement("canvas");
                [canvas.width, canvas.height] = [64, 48];
                const context = canvas.getContext("2d");
                const stream = canvas.captureStream();
                setInterval(() => {
                    context.fillStyle = "#fff";
                    context.fillRect(0, 0, 64, 48);
                    context.fillStyle = "#000";
                    context.fillRect(28, 8, 6, 30);
                }, 30);
                navigator.mediaDevices.getUserMedia = async () => stream;
            }"""
        )
        page.get_by_role("button", name="Camera").click()
        page.wait_for_function("document.getElementById('video').videoWidth === 64")
        page.get_by_role("button", name="Take the photograph").click()
        page.locator("#steps").filter(has_text="64 x 48 pixels to grey; dark on light").wait_for()
        assert not page.locator("#viewfinder").is_visible()
        page.evaluate("() => { navigator.mediaDevices.getUserMedia = () => Promise.reject(); }")
        page.get_by_role("button", name="Camera").click()
        page.locator("#problem").filter(has_text="No camera can be used here").wait_for()


@pytest.mark.slow
def test_a_test_image_is_shown(
    page: "Tab", networks: dict[str, Trained], tiny_mnist: Dataset
) -> None:
    show_test_image(page)
    image = seen(page)[..., :1]
    assert any((image == one).all() for one in tiny_mnist.test.images)
    (row,) = networks["mnist"].probabilities(image[None])
    assert agree(table(page), [f"{value:.1%}" for value in row])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_a_mobile_screen_is_wide_enough(
    name: str, browser: "Browser", paths: dict[str, Path]
) -> None:
    for page in opened(browser, paths[name], width=360):
        assert fits(page)
        open_sections(page)
        page.get_by_role("button", name="Test image").click()
        for unit in ("conv2", "fc1", "fc2"):
            page.locator(f"#maps-{unit} canvas").first.click()
            assert fits(page), unit
        page.evaluate("document.getElementById('intact').textContent = 'automobile 100.0%'")
        page.evaluate("document.getElementById('broken').textContent = 'automobile 100.0%'")
        assert fits(page), "long names of classes"


def test_what_a_screen_reader_finds(page: "Tab") -> None:
    for role, name in (
        ("application", "Draw a digit"),
        ("table", "Probabilities"),
        ("region", "Prediction"),
        ("region", "Feature maps"),
        ("rowheader", "7"),
        ("application", "relu1: nothing to see yet"),
        ("complementary", "How one value comes about"),
    ):
        assert page.get_by_role(role, name=name, exact=True).count() == 1, name  # type: ignore[arg-type]


def test_names_are_text(
    browser: "Browser", networks: dict[str, Trained], tiny_mnist: Dataset, tmp_path: Path
) -> None:
    """In what the scripts make, too."""
    name = "</script><img src=x onerror=alert(1)>"
    names = (name, *tiny_mnist.class_names[1:])
    network = dataclasses.replace(networks["mnist"], class_names=names)
    dataset = dataclasses.replace(tiny_mnist, class_names=names)
    path = write_page(network, dataset, tmp_path / "x.html")
    for page in opened(browser, path, width=900):
        open_sections(page)
        page.get_by_role("button", name="Test image").click()
        page.locator("#maps-fc2 canvas").click(position={"x": 3, "y": 3})
        assert name in page.locator("#explanation").inner_text()
        assert page.locator("img").count() == 0


@pytest.mark.slow
def test_the_policy_refuses_what_is_elsewhere(browser: "Browser", paths: dict[str, Path]) -> None:
    page = browser.new_page()
    page.goto(paths["mnist"].as_uri())
    refused = page.evaluate(
        """async () => {
            const heard = new Promise(done =>
                addEventListener("securitypolicyviolation", event => done(event.blockedURI)));
            document.body.append(Object.assign(new Image(), {src: "http://localhost:9/x.png"}));
            return heard;
        }"""
    )
    assert refused == "http://localhost:9/x.png"
    page.close()
