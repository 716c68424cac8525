"""A page on which one draws a digit, or drops a picture, and watches a trained network answer."""

import base64
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.deploy import picture
from jaxcnn.train.trained import Trained

LARGEST = 16 * 2**20
"""Bytes of a picture's file; a telephone's photographs have fewer."""

MEDIA_TYPES = frozenset(kind for kinds in picture.MEDIA_TYPES.values() for kind in kinds)
"""What the file of a picture may be called."""

_INVITATIONS = {"mnist": "draw a digit", "cifar10": "show it a photograph"}


class Demo:
    """The page of a network, and its answers. `jaxcnn.deploy.server` gives them to a browser."""

    def __init__(self, network: Trained) -> None:
        """Compiles what the network needs to answer.

        Args:
            network: as trained.
        """
        self._network = network
        self._lock = threading.Lock()
        self._layers = self._maps(np.zeros(network.recipe.image_shape, np.uint8))
        network.probabilities(np.zeros((1, *network.recipe.image_shape), np.uint8))

    def page(self, nonce: str) -> str:
        """Returns the page.

        Args:
            nonce: that the browser is told to take the page's own script and style by.
        """
        # Imported here, so that a mistake is answered at once.
        import jinja2

        recipe, run = self._network.recipe, self._network.run
        history = self._network.progress.history
        score = ""
        if history:
            score = f"; {history[-1].test_accuracy:.2%} of the test images right"
        height, width, _ = recipe.image_shape
        template = jinja2.Template(
            Path(__file__).with_suffix(".html").read_text(), autoescape=True, trim_blocks=True
        )
        return template.render(
            nonce=nonce,
            title=f"{recipe.title}: {_INVITATIONS[recipe.network]}",
            subtitle=(
                f"recipe {recipe.name} with {recipe.optimizer}, seed {run['seed']}, "
                f"step {self._network.checkpoint.step:,}{score}"
            ),
            warning=(
                f"Trained on {run['dataset']}, a drawn stand-in: its answers say nothing about "
                f"{recipe.title}."
                if str(run["dataset"]).startswith("synthetic-")
                else ""
            ),
            draws=recipe.network == "mnist",
            size=f"{height} x {width}",
            classes=recipe.class_names,
            layers=self._layers,
            accept=",".join(sorted(MEDIA_TYPES)),
            facts={
                "classes": recipe.class_names,
                "draws": recipe.network == "mnist",
                "width": width,
                "height": height,
                "largest": LARGEST,
            },
        )

    def answer(self, content: bytes) -> dict[str, Any]:
        """Returns what the network says of a picture, and what it sees of it.

        Args:
            content: the picture's file.

        Returns:
            `image`, the prepared pixels, and each of `maps` as Base64 of uint8[H, W, C] and
            uint8[C, H, W]; `steps`, what was done to the picture; `probabilities` by class. Each
            layer's maps go from its smallest value, 0, to its largest, 255.

        Raises:
            UserError: it is no picture, too large, or nothing is drawn on it.
        """
        with self._lock:  # one at a time: a large picture takes memory
            prepared = picture.prepare(io.BytesIO(content), self._network.recipe.network)
            (row,) = self._network.probabilities(prepared.image[None])
            maps = self._maps(prepared.image)
        classes = self._network.recipe.class_names
        return {
            "image": _base64(prepared.image),
            "steps": prepared.steps,
            "probabilities": [
                {"class": name, "probability": float(value)}
                for name, value in zip(classes, row, strict=True)
            ],
            "maps": [
                {"layer": layer, "shape": values.shape, "data": _base64(values)}
                for layer, values in maps.items()
            ],
        }

    def _maps(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Returns uint8[C, H, W] for each convolution."""
        maps = {}
        for layer, (values,) in self._network.feature_maps(image[None]).items():
            values = values.astype(np.float32)
            spread = max(float(np.ptp(values)), 1e-9)
            scaled = (values - values.min()) * (255 / spread)
            maps[layer] = scaled.round().astype(np.uint8).transpose(2, 0, 1)
        return maps


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()
