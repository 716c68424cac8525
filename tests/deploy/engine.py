"""The scripts of the page in a browser, without the page."""

import base64
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcnn.deploy import page

if TYPE_CHECKING:
    from playwright.sync_api import Page as Tab

# What is sent to the browser, and back.
_PIXELS = "const pixels = (text) => decodeBase64(text);"
_VALUES = """const values = (array) => {
    const bytes = new Uint8Array(new Float32Array(array).buffer);
    let text = "";
    for (let i = 0; i < bytes.length; i++) text += String.fromCharCode(bytes[i]);
    return btoa(text);
};"""
_FLOATS = "const floats = (text) => new Float32Array(decodeBase64(text).buffer);"


class Engine:
    """Runs JavaScript in a file that holds the page's scripts and no more."""

    def __init__(self, tab: "Tab", folder: Path) -> None:
        """Opens the file from disk, as users do.

        Args:
            tab: of a browser.
            folder: where the file is written.
        """
        file = folder / "engine.html"
        engine, training = page.SCRIPTS["engine"], page.SCRIPTS["training"]
        worker = page.read_scripts(engine + training)
        scripts = "\n".join((page.read_scripts(engine), _PIXELS, _VALUES, _FLOATS))
        file.write_text("<!DOCTYPE html><meta charset=utf-8>")
        self._tab = tab
        tab.goto(file.as_uri())
        tab.add_script_tag(content=scripts)
        tab.add_script_tag(content=f"const WORKER = {json.dumps(worker)};")

    def run(self, body: str, **given: Any) -> Any:
        """Runs the body of an async function.

        Args:
            body: of the function, in JavaScript. `pixels` and `floats` decode arrays that are
                given, `values` encodes those that are returned, for `floats`.
            **given: its variables; arrays as Base64.
        """
        texts = {
            name: base64.b64encode(np.ascontiguousarray(value).tobytes()).decode()
            if isinstance(value, np.ndarray)
            else value
            for name, value in given.items()
        }
        names = ", ".join(texts)
        return self._tab.evaluate(f"async ({{{names}}}) => {{ {body} }}", texts)


def floats(text: str, *shape: int) -> np.ndarray:
    """Decodes a float32 array that JavaScript's `values` encoded."""
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(shape or -1)
