"""What the page explains, and what can be done to its network, in a browser."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from jaxcnn.data.dataset import Dataset
from jaxcnn.deploy.page import write_page
from jaxcnn.train.trained import Trained
from tests.deploy.browsing import (
    give,
    light,
    open_section,
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

# The network's value for a unit, computed by the engine anew.
VALUE = """async ([name, unit]) => {
    const data = JSON.parse(document.getElementById("data").textContent);
    const network = new Network(data.network, await unpackWeights(data.weights));
    const pixels = document.getElementById("seen").getContext("2d")
        .getImageData(0, 0, data.network.image[1], data.network.image[0]).data;
    const channels = data.network.image[2];
    const image = new Uint8Array(pixels.length / 4 * channels);
    for (let i = 0; i < image.length; i++)
        image[i] = pixels[Math.floor(i / channels) * 4 + i % channels];
    return network.forward(image).activations[network.index(name)][unit];
}"""


@pytest.fixture
def page(browser: "Browser", paths: dict[str, Path]) -> "Iterator[Tab]":
    """The page, with a test image."""
    for page in opened(browser, paths["mnist"], width=1280):
        show_test_image(page)
        yield page


@pytest.fixture
def photographs(browser: "Browser", paths: dict[str, Path]) -> "Iterator[Tab]":
    for page in opened(browser, paths["cifar10"], width=1280):
        show_test_image(page)
        yield page


def choose(page: "Tab", block: str, layer: str, map_: int, row: float, column: float) -> None:
    """Clicks a unit; its row and column as shares of the map's height and width."""
    if page.locator(f"input[name={block}]").count():
        element = page.locator(f"#maps-{block}").locator("xpath=..")
        element.get_by_role("radio", name=layer, exact=True).check()
    canvas = page.locator(f"#maps-{block} canvas").nth(map_)
    box = canvas.bounding_box()
    assert box is not None
    canvas.click(position={"x": column * box["width"], "y": row * box["height"]})


def number(text: str) -> float:
    return float(text.replace("\N{MINUS SIGN}", "-"))


def explained(page: "Tab") -> tuple[str, float, float]:
    """Returns the title of the explanation, the sum, and the products and the bias, summed."""
    title = " ".join(page.locator("#explanation h3").inner_text().split())
    total = page.locator("#unit-sum")
    products, bias = re.findall(r"^(\S+) \+ bias (\S+) = ", total.inner_text())[0]
    return title, float(total.get_attribute("data-sum") or "nan"), number(products) + number(bias)


@pytest.mark.parametrize(
    ("block", "place", "title", "unit"),
    [
        ("conv1", (1, 0.01, 0.01), "conv1 map 2, row 1, column 1", 1),  # at the edge
        ("conv2", (2, 7.5 / 14, 5.5 / 14), "conv2 map 3, row 8, column 6", (7 * 14 + 5) * 8 + 2),
        ("fc1", (0, 1.5 / 8, 3.5 / 64), "fc1 unit 68", 67),
        ("fc2", (0, 0.5, 0.75), "fc2 the logit of 7", 7),
    ],
)
def test_the_sum_of_a_unit_is_its_activation(
    page: "Tab", block: str, place: tuple[int, float, float], title: str, unit: int
) -> None:
    layer = "convolution" if block.startswith("conv") else "weighted sum"
    choose(page, block, layer, *place)
    named, total, parts = explained(page)
    assert named == title
    expected = page.evaluate(VALUE, [block, unit])
    assert total == pytest.approx(expected, abs=1e-4)
    assert parts == pytest.approx(expected, abs=2e-3)
    # Every product is there, or belongs to the sum of the others.
    while page.get_by_role("button", name="Show all").count():
        page.get_by_role("button", name="Show all").click()
    products = [number(text) for text in page.locator(".term > b").all_text_contents()]
    bias = number(page.locator(".bias input").input_value())
    assert len(products) == {"conv1": 25, "conv2": 100, "fc1": 392, "fc2": 512}[block]
    assert sum(products) + bias == pytest.approx(expected, abs=5e-4 * (len(products) + 2))
    for term in page.locator(".term").all()[:25]:
        x = (term.locator("span").text_content() or "").removeprefix("edge ")
        weight = term.locator("input").input_value()
        product = term.locator("b").text_content() or ""
        bound = 0.005 * abs(number(weight)) + 0.0005 * abs(number(x)) + 0.001
        assert number(x) * number(weight) == pytest.approx(number(product), abs=bound)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "rule"),
    [("relu", r"max\(0, "), ("BatchNorm", "√"), ("average pooling", r"\) / 4 ")],
)
def test_units_without_kernels(photographs: "Tab", layer: str, rule: str) -> None:
    choose(photographs, "conv4", layer, 3, 0.5, 0.5)
    text = photographs.locator("#explanation .value").inner_text()
    assert re.search(rule, text)
    formula, value = text.split(" = ")
    python = (
        formula.replace("√", "np.sqrt")
        .replace("\N{MINUS SIGN}", "-")
        .replace("\N{MULTIPLICATION SIGN}", "*")
    )
    found = eval(python, {"np": np, "max": max})
    assert found == pytest.approx(number(value), abs=0.01 * max(1, abs(found)))


def test_the_keyboard_walks_over_units(page: "Tab") -> None:
    page.locator("#maps-conv2").focus()
    title = page.locator("#explanation h3")
    for key, words in (
        ("Enter", "relu2 map 1, row 1, column 1"),
        ("ArrowRight", "relu2 map 1, row 1, column 2"),
        ("ArrowDown", "relu2 map 1, row 2, column 2"),
        ("PageDown", "relu2 map 2, row 2, column 2"),
        ("ArrowLeft", "relu2 map 2, row 2, column 1"),
        ("ArrowLeft", "relu2 map 2, row 2, column 1"),
        ("PageUp", "relu2 map 1, row 2, column 1"),
    ):
        page.keyboard.press(key)
        assert " ".join(title.inner_text().split()) == words
    page.locator("#said").filter(has_text="max(0").wait_for(state="attached")


@pytest.mark.slow
def test_the_input_on_which_a_unit_depends_is_marked(page: "Tab") -> None:
    choose(page, "conv1", "convolution", 0, 14.5 / 28, 14.5 / 28)
    size = page.evaluate(
        "(({width, height, left, top}) => [width, height, left, top].map(parseFloat))"
        "(document.getElementById('field').style)"
    )
    assert size == pytest.approx(
        [100 * 5 / 28, 100 * 5 / 28, 100 * 12 / 28, 100 * 12 / 28], rel=1e-4
    )


def test_an_edited_weight_has_an_effect_until_it_is_reset(page: "Tab") -> None:
    choose(page, "fc2", "weighted sum", 0, 0.5, 0.35)
    before, (_, total, _) = table(page), explained(page)
    page.locator(".bias input").fill("30")
    page.keyboard.press("Tab")
    assert table(page)[3] == "100.0%"
    assert explained(page)[1] > total + 20
    open_section(page, "damage")
    assert "fc2/bias[3]" in page.locator("#changes").inner_text()
    weight = page.locator(".term input").first
    weight.fill("much")
    page.keyboard.press("Tab")
    assert weight.get_attribute("aria-invalid") == "true"
    weight.fill("0")
    page.keyboard.press("Tab")
    assert weight.get_attribute("aria-invalid") == "false"
    assert "fc2/kernel[" in page.locator("#changes").inner_text()
    page.locator("#reset").click()
    assert table(page) == before
    assert page.locator("#changes").inner_text() == "Nothing is changed."


def test_a_map_is_switched_off(page: "Tab", tiny_mnist: Dataset) -> None:
    before = table(page)
    open_section(page, "damage")
    accuracy = page.locator("#broken-accuracy")
    accuracy.filter(has_text="%").wait_for()
    intact = page.locator("#intact-accuracy").inner_text()
    assert accuracy.inner_text() == intact
    for number_ in range(8):
        page.get_by_role("button", name=f"conv2, map {number_ + 1}", exact=True).click()
    assert max(light(page, "#maps-conv2 canvas")) <= 2  # as dark as zero is
    assert table(page) != before
    assert page.locator("#changes").inner_text() == "relu2 1, 2, 3, 4, 5, 6, 7, 8 off"
    # Without a map every image has the same prediction.
    accuracy.filter(has_text="%").wait_for()
    shares = np.bincount(tiny_mnist.test.labels) / len(tiny_mnist.test)
    assert accuracy.inner_text() in [f"{share:.1%}" for share in shares]
    assert page.locator("#intact-accuracy").inner_text() == intact
    page.locator("#reset").click()
    assert table(page) == before


@pytest.mark.slow
def test_a_unit_is_switched_off_where_it_is_explained(page: "Tab") -> None:
    choose(page, "fc2", "weighted sum", 0, 0.5, 0.05)
    page.get_by_role("button", name="Switch unit 1 of fc2 off").click()
    assert "switched off" in page.locator("#unit-sum").inner_text()
    page.get_by_role("button", name="Switch unit 1 of fc2 on").click()
    assert "switched off" not in page.locator("#unit-sum").inner_text()


@pytest.mark.slow
def test_the_smallest_weights_are_zeroed(page: "Tab") -> None:
    open_section(page, "damage")
    page.locator("#weakest").click()
    text = page.locator("#changes").inner_text()
    edited = int(re.sub(r"\D", "", text))
    assert edited == pytest.approx(206_720 / 10, rel=0.01)  # the kernels


def test_evidence_and_nearest_images(page: "Tab", tiny_mnist: Dataset) -> None:
    page.locator("#nearest button").nth(11).wait_for()
    page.locator("#occlusion-note").filter(has_text="logit").wait_for()
    assert all(value > 0 for value in light(page, "#grad-cam, #occlusion"))
    labels = page.locator("#nearest button").all()
    distances = [number((one.get_attribute("aria-label") or "").split()[-1]) for one in labels]
    assert distances == sorted(distances)
    # A training image is the nearest to itself.
    labels[5].click()
    page.locator("#steps").filter(has_text="training image").wait_for()
    page.locator("#nearest button[aria-label$=' 0.0']").first.wait_for()
    image = seen(page)[..., :1]
    assert any((image == one).all() for one in tiny_mnist.train.images)


@pytest.mark.slow
def test_the_evidence_is_that_for_the_chosen_class(page: "Tab") -> None:
    page.locator("#occlusion-note").filter(has_text="logit").wait_for()
    before = light(page, "#occlusion")
    other = (int(page.locator("#prediction").inner_text()) + 5) % 10
    page.locator("#evidence").select_option(str(other))
    assert light(page, "#occlusion") != before


@pytest.mark.slow
def test_dropout_and_statistics(photographs: "Tab") -> None:
    open_section(photographs, "training-pass")
    dropped = photographs.locator("#dropped")
    dropped.filter(has_text="units are dropped").wait_for()
    first = dropped.inner_text()
    assert photographs.locator("#dropped-range").inner_text().startswith("Over 30 masks")
    photographs.locator("#redraw").click()
    photographs.locator("#dropped").filter(has_not_text=first).wait_for()
    kinds = {name: photographs.locator(f"#moments .{name}") for name in ("running", "batch", "own")}
    assert [one.count() for one in kinds.values()] == [4, 4, 4]
    photographs.locator("#normalized").select_option("2")
    kinds["own"].nth(15).wait_for(state="attached")


def test_confusion_shows_the_images_of_a_cell(
    page: "Tab", tiny_mnist: Dataset, networks: dict[str, Trained]
) -> None:
    open_section(page, "confused")
    predictions = networks["mnist"].probabilities(tiny_mnist.test.images).argmax(-1)
    label, prediction = tiny_mnist.test.labels[0], predictions[0]
    among = (tiny_mnist.test.labels == label) & (predictions == prediction)
    cell = page.locator("#confusion tbody tr").nth(label).locator("td").nth(prediction)
    assert cell.inner_text() == str(among.sum())
    cell.locator("button").click()
    assert page.locator("#cell-images button").count() == among.sum()
    page.locator("#cell-images button").first.click()
    settle(page)
    assert page.locator("#prediction").inner_text() == str(prediction)
    image = seen(page)[..., :1]
    assert any((image == one).all() for one in tiny_mnist.test.images[among])


def start(page: "Tab", **settings: Any) -> None:
    open_section(page, "training")
    for name, value in settings.items():
        page.locator(f"#{name}").fill(str(value))
    page.get_by_role("button", name="Train", exact=True).click()


def test_training_is_paused_and_stopped_and_its_weights_are_used(page: "Tab") -> None:
    before = table(page)
    start(page, epochs=200)
    note = page.locator("#train-note")
    note.filter(has_text="test accuracy").wait_for()
    assert page.locator("#kernels canvas").count() == 4
    page.locator("#pause").click()
    assert page.locator("#pause").inner_text() == "Go on"
    page.locator("#pause").click()
    page.locator("#stop").click()
    page.locator("#start:enabled").wait_for()
    assert page.locator("#curves polyline.loss").get_attribute("points")
    page.get_by_role("button", name="Use the trained weights").click()
    assert table(page) != before
    assert "trained in it" in page.locator("#whose").inner_text()
    page.get_by_role("button", name="Back to the run").click()
    assert table(page) == before


@pytest.mark.slow
def test_training_ends(page: "Tab") -> None:
    page.evaluate("document.getElementById('optimizer').value = 'sgd'")
    start(page, epochs=1, batch=110)
    page.locator("#train-note").filter(has_text="Step 3 of 3").wait_for()
    page.locator("#start:enabled").wait_for()
    assert page.locator("#train-problem").is_hidden()


@pytest.mark.slow
def test_a_failed_training_gets_a_sentence(page: "Tab") -> None:
    page.evaluate("document.getElementById('training-script').textContent = 'throw Error(\"no\")'")
    start(page)
    page.locator("#train-problem").filter(has_text="The training failed").wait_for()
    page.locator("#start:enabled").wait_for()


@pytest.mark.slow
def test_a_photograph_without_images_in_the_page(
    browser: "Browser", networks: dict[str, Trained], tiny_cifar10: Dataset, tmp_path: Path
) -> None:
    path = write_page(networks["cifar10"], None, tmp_path / "x.html")
    for page in opened(browser, path, width=1280):
        open_sections(page)
        give(page, "drop", png(tiny_cifar10.test.images[0]))
        page.locator("#occlusion-note").filter(has_text="logit").wait_for()
        page.locator("#dropped").filter(has_text="units are dropped").wait_for()
        assert page.locator("#moments .own").count() == 4
        assert page.locator("#random").is_hidden()
