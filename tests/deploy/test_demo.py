import base64
import dataclasses
import http.client
import io
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from jaxcnn.cli import tools
from jaxcnn.data import formats, synthetic
from jaxcnn.data.dataset import Dataset, Split
from jaxcnn.deploy import demo, picture, server
from jaxcnn.recipes import named
from jaxcnn.storage import checkpoint
from jaxcnn.train.fit import fit
from jaxcnn.train.trained import Trained, load_trained
from tests import saved
from tests.conftest import REAL_DATA
from tests.deploy.test_server import serving
from tests.page import Page, fetched
from tests.strokes import strokes

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

# AdamW of optax mixes dtypes.
pytestmark = pytest.mark.loose_promotion

NONE = "\N{EN DASH}"  # where a number is to be


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory, tiny_mnist: Dataset) -> Path:
    return saved.save(tmp_path_factory.mktemp("digits"), tiny_mnist)


@pytest.fixture(scope="module")
def network(workdir: Path) -> Trained:
    return load_trained(workdir)


@pytest.fixture(scope="module")
def offered(network: Trained) -> demo.Demo:
    return demo.Demo(network)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory, tiny_cifar10: Dataset) -> Trained:
    folder = tmp_path_factory.mktemp("photographs")
    return load_trained(saved.save(folder, tiny_cifar10, saves=[3]))  # before an epoch has ended


def png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image.squeeze()).save(content, "PNG")
    return content.getvalue()


def decoded(text: str, *shape: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape)


def test_an_answer_is_the_networks(
    network: Trained, offered: demo.Demo, tiny_mnist: Dataset
) -> None:
    content = png(np.pad(tiny_mnist.test.images[0], ((3, 9), (5, 1), (0, 0))))
    found = offered.answer(content)
    prepared = picture.prepare(io.BytesIO(content), "mnist")
    np.testing.assert_array_equal(decoded(found["image"], 28, 28, 1), prepared.image)
    assert found["steps"] == prepared.steps
    (row,) = network.probabilities(prepared.image[None])
    assert found["probabilities"] == [
        {"class": str(digit), "probability": float(row[digit])} for digit in range(10)
    ]
    maps = network.feature_maps(prepared.image[None])
    assert [(layer["layer"], layer["shape"]) for layer in found["maps"]] == [
        ("conv1", (4, 28, 28)),
        ("conv2", (8, 14, 14)),
    ]
    for layer in found["maps"]:
        values = maps[layer["layer"]][0].transpose(2, 0, 1)
        assert values.min() >= 0  # after relu
        levels = decoded(layer["data"], *layer["shape"])
        assert (levels.min(), levels.max()) == (0, 255)
        # Half a level is 1 / 510 of what they span.
        shown = levels / 255 * np.ptp(values) + values.min()
        np.testing.assert_allclose(shown, values, atol=np.ptp(values) / 500)


def test_maps_of_one_value_are_dark(network: Trained) -> None:
    shapes: list[tuple[int, ...]] = []

    class Flat:
        recipe = network.recipe

        def probabilities(self, images: np.ndarray) -> np.ndarray:
            shapes.append(images.shape)
            return np.full((len(images), 10), 0.1, np.float32)

        def feature_maps(self, images: np.ndarray) -> dict[str, np.ndarray]:
            shapes.append(images.shape)
            return {"conv1": np.full((len(images), 3, 5, 2), 7, np.float16)}

    flat: Any = Flat()
    (layer,) = demo.Demo(flat).answer(png(np.eye(28, dtype=np.uint8) * 255))["maps"]
    assert layer["shape"] == (2, 3, 5)
    assert not decoded(layer["data"], 2, 3, 5).any()
    assert shapes == 4 * [(1, 28, 28, 1)]  # compiled before the first question comes


def test_an_answer_to_a_photograph(photographs: Trained, tiny_cifar10: Dataset) -> None:
    image = tiny_cifar10.test.images[0]
    offered = demo.Demo(photographs)
    found = offered.answer(png(image))
    np.testing.assert_array_equal(decoded(found["image"], 32, 32, 3), image)
    assert found["probabilities"][0]["class"] == "airplane"
    assert [layer["shape"][0] for layer in found["maps"]] == [4, 8, 16, 32, 64]
    text = offered.page("x")
    page = Page(text)
    assert [one.text for one in page.all("h1")] == ["CIFAR-10: show it a photograph"]
    # No epoch has ended, so no accuracy is known.
    assert "recipe fast with sgd, seed 0, step 3" in page.all("header")[0].text
    assert "of the test images right" not in text
    assert "undo" not in {one.attributes.get("id") for one in page.elements}
    assert ("img", "The picture") in page.roles()
    assert ("rowheader", "truck") in page.roles()
    many = [one for one in page.elements if "many" in one.attributes.get("class", "").split()]
    assert [one.attributes["id"] for one in many] == ["conv3", "conv4", "conv5"]


def test_the_page(offered: demo.Demo) -> None:
    text = offered.page("the-nonce")
    page = Page(text)
    assert page.open == []
    assert fetched(text) == []  # it needs no network
    assert re.findall(r"fetch\((.*?),", text) == ['"predict"']
    for tag in ("script", "style"):
        assert [one.attributes for one in page.all(tag)] == [{"nonce": "the-nonce"}]
    assert not [one for one in page.elements if "style" in one.attributes]
    assert not [name for one in page.elements for name in one.attributes if name[:2] == "on"]
    assert [one.text for one in page.all("h1")] == ["MNIST: draw a digit"]
    subtitle = "recipe fast with sgd, seed 0, step 21; 60.00% of the test images right"
    assert subtitle in page.all("header")[0].text
    viewport = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    assert viewport in [one.attributes for one in page.all("meta")]
    kinds = page.by_id("file").attributes["accept"].split(",")
    assert kinds == sorted(kind for kinds in picture.MEDIA_TYPES.values() for kind in kinds)
    facts = {"classes": list("0123456789"), "draws": True, "width": 28, "height": 28}
    (found,) = re.findall(r"const facts = (.*);", text)
    assert json.loads(found) == {**facts, "largest": demo.LARGEST}
    assert demo.LARGEST == 16 * 2**20
    canvases = {
        name: [
            (int(one.attributes["width"]), int(one.attributes["height"]))
            for one in page.by_id(name).inside
        ]
        for name in ("conv1", "conv2")
    }
    assert canvases == {"conv1": 4 * [(28, 28)], "conv2": 8 * [(14, 14)]}


def test_what_a_screen_reader_finds_on_the_page(offered: demo.Demo) -> None:
    page = Page(offered.page("x"))
    assert {
        ("application", "Draw a digit"),
        ("table", "Probabilities"),
        ("region", "Answer"),
        ("region", "Feature maps"),
        ("region", "Drawing"),
        ("rowheader", "7"),
        ("columnheader", "probability"),
        ("img", "conv1: nothing to see yet"),
        ("img", "conv2: nothing to see yet"),
        ("img", "The picture as the network sees it"),
        ("button", "Undo"),
        ("button", "Clear"),
        ("button", "Open picture"),
        ("alert", ""),
        ("status", ""),
    } <= page.roles()
    assert page.all("html")[0].attributes["lang"] == "en"
    names = [one.attributes["id"] for one in page.elements if "id" in one.attributes]
    assert len(names) == len(set(names))
    for one in page.elements:
        for reference in ("aria-labelledby", "aria-describedby"):
            if reference in one.attributes:
                page.by_id(one.attributes[reference])
    assert page.by_id("pad").attributes["tabindex"] == "0"  # the keyboard reaches it
    for key in ("arrows", "Space", "Backspace", "Delete"):
        assert key in page.by_id("keys").text


def test_names_are_no_markup(network: Trained) -> None:
    recipe = network.recipe.replace(name="<b>x")
    text = demo.Demo(dataclasses.replace(network, recipe=recipe)).page("x")
    assert "recipe <b>x with sgd" in Page(text).all("header")[0].text


def test_synthetic_data_is_marked(network: Trained, offered: demo.Demo) -> None:
    assert "drawn stand-in" not in offered.page("x")
    run = {**network.run, "dataset": "synthetic-mnist"}
    drawn = demo.Demo(dataclasses.replace(network, run=run))
    (warning,) = [
        one for one in Page(drawn.page("x")).elements if one.attributes.get("role") == "note"
    ]
    assert "synthetic-mnist, a drawn stand-in" in warning.text


def test_a_port_that_is_taken_ends_the_command(
    workdir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(SystemExit) as caught,
    ):
        tools.main(["demo", str(workdir), "--port", str(taken.getsockname()[1])])
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "Address already in use" in err


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [pytest.param(2, 130, "interrupted", marks=pytest.mark.slow), (15, 143, "term")],
)
def test_the_command_and_its_end(workdir: Path, number: int, status: int, said: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "jaxcnn", "demo", str(workdir)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            assert running.stdout is not None
            line = running.stdout.readline()
            address = line.split()[0].removeprefix("http://").rstrip("/")
            assert address.startswith("127.0.0.1:")
            connection = http.client.HTTPConnection(address, timeout=600)
            connection.request("GET", "/")
            assert connection.getresponse().status == 200
            connection.close()
            running.send_signal(number)
            out, err = running.communicate(timeout=600)
        finally:
            running.kill()  # where it has not ended by itself
    assert running.returncode == status
    assert out == ""
    assert len(err.splitlines()) == 1
    assert said in err


# What follows drives a browser, with a network that knows digits.


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
def browser() -> "Iterator[Browser]":
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install 'jaxcnn[slow]'"
    )
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here: install chromium or google-chrome")
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture(scope="module")
def url(learned: Trained) -> Iterator[str]:
    with serving(server.Server(demo.Demo(learned))) as listening:
        yield listening.url


@pytest.fixture
def page(browser: "Browser", url: str) -> "Iterator[Tab]":
    """The page on a telephone, without an error on its console."""
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
    """Waits until the last question is answered."""
    page.locator("#results[aria-busy=false]").wait_for()


def table(page: "Tab") -> list[str]:
    return page.locator("#rows td:last-child").all_inner_texts()


def on_the_pad(page: "Tab") -> bytes:
    """Returns the PNG file of what is drawn."""
    text = page.evaluate("document.getElementById('pad').toDataURL()")
    return base64.b64decode(text.split(",")[1])


@pytest.mark.slow
def test_strokes_are_answered_as_by_the_model(
    page: "Tab", learned: Trained, digits: Dataset
) -> None:
    right, total = 0, 15
    for image, label in zip(digits.test.images[:total], digits.test.labels, strict=False):
        draw(page, image)
        answer = page.locator("#answer").inner_text()
        drawn = picture.prepare(io.BytesIO(on_the_pad(page)), "mnist")
        (row,) = learned.probabilities(drawn.image[None])
        assert answer == str(row.argmax())
        assert table(page) == [f"{value:.1%}" for value in row]
        right += answer == str(label)
        page.get_by_role("button", name="Clear").click()
        assert page.locator("#answer").inner_text() == NONE
    assert right >= total - 2


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
    assert page.locator("#answer").inner_text() in "0123456789"


@pytest.mark.slow
def test_the_keyboard_draws(page: "Tab", learned: Trained) -> None:
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "pad"
    page.keyboard.press("Space")
    for _ in range(14):
        page.keyboard.press("ArrowDown")
    settle(page)
    spoken = page.get_by_role("status")
    spoken.filter(has_text="The network answers 1, ").wait_for(state="attached")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowRight")  # with the pen up
    text = "Pen up, 54 percent across, 75 percent down."
    spoken.filter(has_text=text).wait_for(state="attached")
    (row,) = learned.probabilities(
        picture.prepare(io.BytesIO(on_the_pad(page)), "mnist").image[None]
    )
    assert page.locator("#answer").inner_text() == str(row.argmax()) == "1"
    names = []
    for _ in range(3):
        page.keyboard.press("Tab")
        names.append(page.evaluate("document.activeElement.textContent"))
    assert names == ["Undo", "Clear", "Open picture"]
    page.locator("#pad").focus()
    page.keyboard.press("Delete")
    assert table(page) == 10 * [NONE]


@pytest.mark.slow
def test_a_picture_is_taken_as_a_file(
    page: "Tab", learned: Trained, digits: Dataset, tmp_path: Path
) -> None:
    for name, image in (("x.png", digits.test.images[1]), ("x.ppm", digits.test.images[2])):
        path = tmp_path / name
        Image.fromarray(image[..., 0]).convert("RGB").save(path)
        page.locator("#file").set_input_files(path)
        settle(page)
        (row,) = learned.probabilities(picture.prepare(path, "mnist").image[None])
        assert table(page) == [f"{value:.1%}" for value in row], name
        # The browser decodes the file by itself; the answer may be there before.
        page.wait_for_function(f"({LIGHT})('#pad')[0] > 0")
    (tmp_path / "x.png").write_text("no picture")
    page.locator("#file").set_input_files(tmp_path / "x.png")
    problem = page.get_by_role("alert").filter(has_text="cannot be read as a picture")
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
                page.locator("#answer").inner_text()
                == named.recipe("cifar10", "fast").class_names[row.argmax()]
            )
            assert table(page) == [f"{value:.1%}" for value in row]
            assert fits(page)


def fits(page: "Tab") -> bool:
    return page.evaluate(
        "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )


@pytest.mark.slow
def test_a_telephone_is_wide_enough(page: "Tab", digits: Dataset) -> None:
    assert fits(page)
    draw(page, digits.test.images[0])
    assert fits(page)


@pytest.mark.slow
def test_what_a_screen_reader_finds(page: "Tab") -> None:
    for role, name in (
        ("application", "Draw a digit"),
        ("table", "Probabilities"),
        ("region", "Answer"),
        ("region", "Feature maps"),
        ("rowheader", "7"),
        ("img", "conv1: nothing to see yet"),
    ):
        assert page.get_by_role(role, name=name, exact=True).count() == 1, name  # type: ignore[arg-type]
