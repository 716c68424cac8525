"""The page in a browser: opening it, drawing on it, and what it shows."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from tests.strokes import strokes

if TYPE_CHECKING:
    from playwright.sync_api import Browser
    from playwright.sync_api import Page as Tab

NONE = "\N{EN DASH}"  # where a number is to be

LIGHT = """selector => [...document.querySelectorAll(selector)].map(canvas => {
    const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return data.filter((_, i) => i % 4 < 3).reduce((a, b) => a + b) / data.length;
})"""


def opened(browser: "Browser", path: Path, width: int, **options: Any) -> "Iterator[Tab]":
    """Opens a page from disk, offline; nothing may be wrong on its console."""
    viewport = {"width": width, "height": 740}
    context = browser.new_context(viewport=viewport, offline=True, **options)  # type: ignore[arg-type]
    context.set_default_timeout(600_000)
    page = context.new_page()
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.goto(path.as_uri())
    page.locator("html[data-complete]").wait_for(state="attached")
    yield page
    assert wrong == [], wrong
    context.close()


def draw(page: "Tab", image: np.ndarray) -> None:
    """Draws an image's strokes with the mouse."""
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
    """Waits until what is shown is classified."""
    page.locator("#results[aria-busy=false]").wait_for()


def table(page: "Tab") -> list[str]:
    """Returns the probabilities that the page shows."""
    return page.locator("#rows td:last-child").all_inner_texts()


def show_test_image(page: "Tab") -> None:
    """Shows a random test image, and waits for its prediction."""
    page.get_by_role("button", name="Test image").click()
    page.locator("#steps").filter(has_text="test image of").wait_for()
    settle(page)


def seen(page: "Tab") -> np.ndarray:
    """Returns what the network sees, uint8[H, W, 3]."""
    return np.asarray(Image.open(io.BytesIO(_file(page, "seen"))).convert("RGB"))


def on_the_pad(page: "Tab") -> bytes:
    """Returns the PNG file of what is drawn."""
    return _file(page, "pad")


def _file(page: "Tab", canvas: str) -> bytes:
    text = page.evaluate(f"document.getElementById({json.dumps(canvas)}).toDataURL()")
    return base64.b64decode(text.split(",")[1])


def light(page: "Tab", selector: str) -> list[float]:
    """Returns the mean brightness of canvases."""
    return page.evaluate(LIGHT, selector)


def give(page: "Tab", event: str, content: bytes) -> None:
    """Drops or pastes a file."""
    page.evaluate(
        """([event, text]) => {
            const bytes = Uint8Array.from(atob(text), letter => letter.charCodeAt(0));
            const files = new DataTransfer();
            files.items.add(new File([bytes], "x.png", {type: "image/png"}));
            dispatchEvent(event === "drop"
                ? new DragEvent("drop", {dataTransfer: files})
                : new ClipboardEvent("paste", {clipboardData: files}));
        }""",
        [event, base64.b64encode(content).decode()],
    )


def png(image: np.ndarray) -> bytes:
    """Returns an image as a PNG file."""
    content = io.BytesIO()
    Image.fromarray(image.squeeze()).save(content, "PNG")
    return content.getvalue()


def fits(page: "Tab") -> bool:
    """Whether nothing is wider than the screen."""
    return page.evaluate(
        "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    )


def open_sections(page: "Tab") -> None:
    """Opens all sections of the page."""
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")


def open_section(page: "Tab", name: str) -> None:
    """Opens a section of the page."""
    page.evaluate(f"document.getElementById({json.dumps(name)}).open = true")
