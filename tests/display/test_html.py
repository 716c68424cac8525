import re
from xml.etree import ElementTree

import numpy as np
import pytest

from jaxcnn.display import html
from jaxcnn.display.series import TEST, TRAIN


def curves(epochs: int, runs: int = 1) -> dict[str, np.ndarray]:
    falling = np.linspace(2.0, 0.5, epochs)[:, None] * np.ones(runs)
    names = ("train_loss", "train_accuracy", "test_loss", "test_accuracy")
    return {name: falling if "loss" in name else 1 - falling / 2 for name in names}


def paths(text: str, colour: str) -> list[str]:
    root = ElementTree.fromstring(text)
    return [path.get("d", "") for path in root.iter("path") if path.get("stroke") == colour]


def test_the_curves_are_well_formed_and_within_their_axes() -> None:
    text = html.render([("accuracy", "99 %")], curves(4))
    assert len(re.findall("<svg", text)) == 2
    for colour in (TRAIN, TEST):
        found = paths(text, colour)
        assert len(found) == 2  # loss and accuracy
        for path in found:
            points = re.findall(r"[ML]([\d.]+) ([\d.]+)", path)
            assert len(points) == 4
            assert all(50 <= float(x) <= 290 and 20 <= float(y) <= 130 for x, y in points)
    # The loss falls from the upper end to the lower.
    (left, _, _, right) = re.findall(r" ([\d.]+)", paths(text, TEST)[0])
    assert (float(left), float(right)) == (25, 130)


def test_every_run_has_a_line() -> None:
    assert len(paths(html.render([], curves(3, runs=5)), TEST)) == 2 * 5
    assert len(paths(html.render([], curves(3, runs=1000)), TEST)) == 2 * 64


def test_gaps_and_single_epochs() -> None:
    with_gaps = curves(5)
    with_gaps["test_loss"] = np.array([[2.0], [np.nan], [1.0], [np.inf], [np.nan]])
    path = paths(html.render([], with_gaps), TEST)[0]
    assert re.sub(r"[\d. ]+", "", path) == "MM"
    never = {name: np.full((2, 1), np.nan) for name in curves(1)}
    assert paths(html.render([], never), TEST) == ["", ""]
    assert paths(html.render([], curves(1)), TEST)[0].endswith("h0")  # a dot
    assert "<svg" not in html.render([], curves(0))


def test_texts_are_escaped() -> None:
    text = html.render([("<script>", "a & b")], head=("<b>", '"'))
    assert "<script>" not in text
    assert "<b>" not in text
    root = ElementTree.fromstring(text)
    assert [cell.text for cell in root.iter("td")] == ["<script>", "a & b"]


@pytest.mark.parametrize("page", ["#ffffff", "#1e1e1e"])
@pytest.mark.parametrize("colour", [TRAIN, TEST])
def test_lines_are_visible_on_light_and_on_dark_pages(page: str, colour: str) -> None:
    """A contrast of 3, which WCAG 2.2 asks of graphics (1.4.11), by its formula."""

    def luminance(code: str) -> float:
        parts = np.array([int(code[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(page), luminance(colour)))
    assert (high + 0.05) / (low + 0.05) >= 3


def test_text_and_axes_have_the_colour_of_the_page() -> None:
    root = ElementTree.fromstring(html.render([("a",)], curves(2)))
    colours = {name for node in root.iter() for name in (node.get("fill"), node.get("stroke"))}
    assert colours <= {None, "none", "currentColor", TRAIN, TEST}
    assert not any("color" in (node.get("style") or "") for node in root.iter())
