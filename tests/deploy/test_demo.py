import base64
import dataclasses
import http.client
import io
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from jaxcnn.cli import tools
from jaxcnn.data import image_files
from jaxcnn.data.dataset import Dataset
from jaxcnn.deploy import demo, own_images
from jaxcnn.train.trained import Trained, load_trained
from tests import saved
from tests.page import Page, fetched

if TYPE_CHECKING:
    pass

# AdamW of optax mixes dtypes.
pytestmark = pytest.mark.loose_promotion


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory, tiny_mnist: Dataset) -> Path:
    return saved.save(tmp_path_factory.mktemp("digits"), tiny_mnist)


@pytest.fixture(scope="module")
def network(workdir: Path) -> Trained:
    return load_trained(workdir)


@pytest.fixture(scope="module")
def offered(network: Trained) -> demo.Demo:
    return demo.Demo(network)


def png(image: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image.squeeze()).save(content, "PNG")
    return content.getvalue()


def decoded(text: str, *shape: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8).reshape(shape)


def test_a_prediction_is_the_networks(
    network: Trained, offered: demo.Demo, tiny_mnist: Dataset
) -> None:
    content = png(np.pad(tiny_mnist.test.images[0], ((3, 9), (5, 1), (0, 0))))
    found = offered.predict(content)
    prepared = own_images.prepare_image(io.BytesIO(content), "mnist")
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


def test_what_to_draw(
    network: Trained, offered: demo.Demo, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "MNIST: draw a digit" in offered.page("")
    letters = {**network.run, "dataset": "emnist/letters"}
    other = dataclasses.replace(network, class_names=tuple("abc"), run=letters)
    monkeypatch.setattr(offered, "_network", other)
    assert "emnist/letters: draw a character" in offered.page("")


def test_maps_of_one_value_are_dark(network: Trained) -> None:
    shapes: list[tuple[int, ...]] = []

    class Flat:
        recipe, class_names = network.recipe, network.class_names
        image_shape, reads_digits = network.image_shape, True

        def probabilities(self, images: np.ndarray) -> np.ndarray:
            shapes.append(images.shape)
            return np.full((len(images), 10), 0.1, np.float32)

        def feature_maps(self, images: np.ndarray) -> dict[str, np.ndarray]:
            shapes.append(images.shape)
            return {"conv1": np.full((len(images), 3, 5, 2), 7, np.float16)}

    flat: Any = Flat()
    (layer,) = demo.Demo(flat).predict(png(np.eye(28, dtype=np.uint8) * 255))["maps"]
    assert layer["shape"] == (2, 3, 5)
    assert not decoded(layer["data"], 2, 3, 5).any()
    assert shapes == 4 * [(1, 28, 28, 1)]  # compiled before the first request


def test_the_prediction_for_a_photograph(photographs: Trained, tiny_cifar10: Dataset) -> None:
    image = tiny_cifar10.test.images[0]
    offered = demo.Demo(photographs)
    found = offered.predict(png(image))
    np.testing.assert_array_equal(decoded(found["image"], 32, 32, 3), image)
    assert found["probabilities"][0]["class"] == "airplane"
    assert [layer["shape"][0] for layer in found["maps"]] == [4, 8, 16, 32, 64]
    text = offered.page("x")
    page = Page(text)
    assert [one.text for one in page.all("h1")] == ["CIFAR-10: show it a photograph"]
    # No epoch has ended, so no accuracy is known.
    assert "recipe fast with sgd, seed 0, step 3" in page.all("header")[0].text
    assert "test accuracy" not in text
    assert "undo" not in {one.attributes.get("id") for one in page.elements}
    assert ("img", "The image") in page.roles()
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
    subtitle = "recipe fast with sgd, seed 0, step 21; test accuracy 60.00%"
    assert subtitle in page.all("header")[0].text
    viewport = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    assert viewport in [one.attributes for one in page.all("meta")]
    kinds = page.by_id("file").attributes["accept"].split(",")
    assert kinds == sorted(kind for kinds in image_files.MEDIA_TYPES.values() for kind in kinds)
    facts = {"classes": list("0123456789"), "draws": True, "width": 28, "height": 28}
    (found,) = re.findall(r"const facts = (.*);", text)
    assert json.loads(found) == {**facts, "largest": demo.MAX_FILE_BYTES}
    assert demo.MAX_FILE_BYTES == 16 * 2**20
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
        ("region", "Prediction"),
        ("region", "Feature maps"),
        ("region", "Drawing"),
        ("rowheader", "7"),
        ("columnheader", "probability"),
        ("img", "conv1: nothing to see yet"),
        ("img", "conv2: nothing to see yet"),
        ("img", "The image as the network sees it"),
        ("button", "Undo"),
        ("button", "Clear"),
        ("button", "Open image"),
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
    assert "synthetic data set" not in offered.page("x")
    run = {**network.run, "dataset": "synthetic-mnist"}
    drawn = demo.Demo(dataclasses.replace(network, run=run))
    (warning,) = [
        one for one in Page(drawn.page("x")).elements if one.attributes.get("role") == "note"
    ]
    assert "synthetic-mnist, a synthetic data set" in warning.text


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
    (line,) = (line for line in err.splitlines() if not line.startswith("compiling kernels"))
    assert said in line
