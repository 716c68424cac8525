import base64
import dataclasses
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from jaxcnn.data.dataset import Dataset
from jaxcnn.deploy import page
from jaxcnn.errors import UserError
from jaxcnn.train.trained import Trained
from tests.page import Page, fetched

# AdamW of optax mixes dtypes.
pytestmark = pytest.mark.loose_promotion


@pytest.fixture(scope="module")
def text(networks: dict[str, Trained], tiny_mnist: Dataset) -> str:
    return page.render_page(networks["mnist"], tiny_mnist)


def data(text: str) -> Any:
    return json.loads(Page(text).by_id("data").text)


def test_the_page_needs_no_other_file(text: str) -> None:
    parsed = Page(text)
    assert parsed.open == []
    assert fetched(text.replace(scripts(text), "")) == []
    for word in ("fetch(", "XMLHttpRequest", "importScripts", "WebSocket", "http:", "https:"):
        assert word not in scripts(text).replace("http://www.w3.org/2000/svg", ""), word
    assert not [one for one in parsed.elements if "style" in one.attributes]
    assert not [name for one in parsed.elements for name in one.attributes if name[:2] == "on"]
    viewport = {"name": "viewport", "content": "width=device-width, initial-scale=1"}
    assert viewport in [one.attributes for one in parsed.all("meta")]


def scripts(text: str) -> str:
    """Returns the page's scripts."""
    (found,) = re.findall(r'<script type="text/plain".*</script>', text, re.DOTALL)
    return str(found)


def test_the_policy_forbids_everything_from_elsewhere(text: str) -> None:
    parsed = Page(text)
    (policy,) = (
        one.attributes["content"]
        for one in parsed.all("meta")
        if one.attributes.get("http-equiv") == "Content-Security-Policy"
    )
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    code = [one for one in parsed.all("script") if "type" not in one.attributes]
    assert directives == {
        "default-src": "'none'",
        "script-src": " ".join(digest(one.text) for one in code),
        "style-src": digest(parsed.all("style")[0].text),
        "img-src": "blob: data:",
        "worker-src": "blob:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert len(code) == 2


def digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_what_the_page_says(
    networks: dict[str, Trained], name: str, tiny_mnist: Dataset, tiny_cifar10: Dataset
) -> None:
    dataset = {"mnist": tiny_mnist, "cifar10": tiny_cifar10}[name]
    parsed = Page(page.render_page(networks[name], dataset))
    title = {"mnist": "MNIST: draw a digit", "cifar10": "CIFAR-10: show it a photograph"}[name]
    assert [one.text for one in parsed.all("h1")] == [title]
    subtitle = "recipe fast with sgd, seed 0, step 21; test accuracy 60.00%; "
    assert subtitle in parsed.all("header")[0].text
    names = {one.attributes.get("id") for one in parsed.elements}
    assert ("undo" in names) == (name == "mnist")
    rows = [one.text for one in parsed.by_id("rows").inside if one.tag == "th"]
    assert rows == list(dataset.class_names)
    assert {("button", "Open image"), ("button", "Camera"), ("region", "Prediction")} <= (
        parsed.roles()
    )
    images = parsed.by_id("file").attributes["accept"].split(",")
    assert images == list(page.MEDIA_TYPES)


def test_what_a_screen_reader_finds(text: str) -> None:
    parsed = Page(text)
    assert {
        ("application", "Draw a digit"),
        ("table", "Probabilities"),
        ("region", "Prediction"),
        ("region", "Feature maps"),
        ("region", "Drawing"),
        ("rowheader", "7"),
        ("columnheader", "probability"),
        ("img", "The image as the network sees it"),
        ("img", "Grad-CAM map"),
        ("img", "Loss and accuracy over epochs"),
        ("button", "Undo"),
        ("button", "Clear"),
        ("button", "Train"),
        ("alert", ""),
        ("status", ""),
    } <= parsed.roles()
    assert parsed.all("html")[0].attributes["lang"] == "en"
    names = [one.attributes["id"] for one in parsed.elements if "id" in one.attributes]
    assert len(names) == len(set(names))
    for one in parsed.elements:
        for reference in ("aria-labelledby", "aria-describedby", "for"):
            if reference in one.attributes:
                parsed.by_id(one.attributes[reference])
    for key in ("arrows", "Space", "Backspace", "Delete"):
        assert key in parsed.by_id("keys").text


def test_every_element_that_the_scripts_take_is_there(text: str) -> None:
    names = {one.attributes.get("id") for one in Page(text).elements}
    taken = set(re.findall(r'\$\("([\w-]+)"\)', scripts(text)))
    assert len(taken) > 40
    assert taken <= names


def test_a_character_is_drawn(networks: dict[str, Trained]) -> None:
    network = networks["mnist"]
    letters = {**network.run, "dataset": "emnist/letters"}
    other = dataclasses.replace(network, class_names=tuple("abcdefghij"), run=letters)
    assert "emnist/letters: draw a character" in page.render_page(other, None)


def test_names_are_no_markup(networks: dict[str, Trained]) -> None:
    network = networks["mnist"]
    name = "</script><b>x"
    recipe = network.recipe.replace(name=name)
    classes = (name, *network.class_names[1:])
    text = page.render_page(dataclasses.replace(network, recipe=recipe, class_names=classes), None)
    parsed = Page(text)
    assert f"recipe {name} with sgd" in parsed.all("header")[0].text
    assert data(text)["classes"][0] == data(text)["facts"]["recipe"] == name
    assert [one.text for one in parsed.all("th")][1] != ""
    assert name in [one.text for one in parsed.by_id("rows").inside]
    assert not [one for one in parsed.all("b") if one.text == "x"]


def test_synthetic_data_is_marked(text: str, networks: dict[str, Trained]) -> None:
    assert "synthetic data set" not in text
    run = {**networks["mnist"].run, "dataset": "synthetic-mnist"}
    marked = Page(page.render_page(dataclasses.replace(networks["mnist"], run=run), None))
    first, _ = (one.text for one in marked.elements if one.attributes.get("role") == "note")
    assert "synthetic-mnist, a synthetic data set" in first


def test_sections_need_images(text: str, networks: dict[str, Trained], tiny_mnist: Dataset) -> None:
    def sections(text: str) -> list[str]:
        return [one.attributes["id"] for one in Page(text).all("details")]

    always = ["why", "training-pass", "damage"]
    assert sections(text) == [*always, "training", "confused"]
    without = page.render_page(networks["mnist"], tiny_mnist, trainable=False)
    assert sections(without) == [*always, "confused"]
    assert sections(page.render_page(networks["mnist"], None)) == always


def test_the_file(networks: dict[str, Trained], text: str, tmp_path: Path) -> None:
    path = page.write_page(networks["mnist"], None, tmp_path / "x.html", trainable=False)
    assert path == tmp_path / "x.html"
    assert path.read_text() == page.render_page(networks["mnist"], None)
    for name, message in (
        ("x.htm", "does not end in .html"),
        ("no/x.html", "is not there"),
        ("folder.html", "is a folder"),
    ):
        (tmp_path / "folder.html").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=message):
            page.write_page(networks["mnist"], None, tmp_path / name)


def test_the_scripts_are_all_that_there_are() -> None:
    names = {name for files in page.SCRIPTS.values() for name in files}
    folder = Path(page.__file__).with_name("page")
    assert names == {path.name for path in folder.glob("*.js")}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "most"), [("mnist", 1.5e6), ("cifar10", 4e6)])
def test_sizes(name: Any, most: float, networks: dict[str, Trained], real_data: Path) -> None:
    """Without training images, of networks whose weights are as random as trained ones."""
    from jaxcnn.data.dataset import load_data

    folders = {"mnist": {"archive_dir": real_data / "archives"}}
    dataset = load_data(name, **folders.get(name, {"data_dir": real_data / "tfds"}))
    text = page.render_page(networks[name], dataset, trainable=False)
    assert len(text.encode()) <= most
