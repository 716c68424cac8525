"""A page on which to draw a digit or drop an image, and to watch the network's predictions."""

import base64
import io
import threading
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.data import image_files
from jaxcnn.deploy import own_images
from jaxcnn.recipes.problems import MNIST
from jaxcnn.train.trained import Trained

MAX_FILE_BYTES = 16 * 2**20
"""The largest size of an image file; photographs of mobile phones are smaller."""

MEDIA_TYPES = frozenset(kind for kinds in image_files.MEDIA_TYPES.values() for kind in kinds)
"""The media types of the image files that are accepted."""


class Demo:
    """The page of a network, and its predictions, for `jaxcnn.deploy.server` to serve."""

    def __init__(self, network: Trained) -> None:
        """Compiles the network.

        Args:
            network: as trained.
        """
        self._network = network
        self._lock = threading.Lock()
        self._layers = self._maps(np.zeros(network.image_shape, np.uint8))
        network.probabilities(np.zeros((1, *network.image_shape), np.uint8))

    def page(self, nonce: str) -> str:
        """Returns the page, in HTML.

        Args:
            nonce: of the page's own script and style, by which the browser accepts them.
        """
        # Imported here, so that a mistake on the command line is reported at once.
        import jinja2

        recipe, run = self._network.recipe, self._network.run
        digits = self._network.reads_digits
        known = self._network.class_names == MNIST.class_names
        what = f"draw a {'digit' if known else 'character'}" if digits else "show it a photograph"
        history = self._network.progress.history
        accuracy = f"; test accuracy {history[-1].test_accuracy:.2%}" if history else ""
        warning = ""
        if str(run["dataset"]).startswith("synthetic-"):
            warning = (
                f"Trained on {run['dataset']}, a synthetic data set: its predictions say nothing "
                f"about {recipe.title}."
            )
        height, width, _ = self._network.image_shape
        template = jinja2.Template(
            Path(__file__).with_suffix(".html").read_text(), autoescape=True, trim_blocks=True
        )
        return template.render(
            nonce=nonce,
            title=f"{self._network.title}: {what}",
            subtitle=(
                f"recipe {recipe.name} with {recipe.optimizer}, seed {run['seed']}, "
                f"step {self._network.checkpoint.step:,}{accuracy}"
            ),
            warning=warning,
            layers=self._layers,
            accept=",".join(sorted(MEDIA_TYPES)),
            # For the script, too.
            facts={
                "classes": self._network.class_names,
                "draws": digits,
                "width": width,
                "height": height,
                "largest": MAX_FILE_BYTES,
            },
        )

    def predict(self, content: bytes) -> dict[str, Any]:
        """Returns the prediction for an image, and the feature maps.

        Args:
            content: of the image's file.

        Returns:
            `image`, the prepared pixels as Base64 of uint8[H, W, C]; `steps`, how it was prepared;
            `probabilities` by class; and `maps`, by convolution, as Base64 of uint8[C, H, W], from
            0 at the layer's smallest value to 255 at its largest.

        Raises:
            UserError: it is not an image or too large, or nothing stands out in it.
        """
        with self._lock:  # one at a time: a large image takes memory
            prepared = own_images.prepare_for(self._network, io.BytesIO(content))
            (row,) = self._network.probabilities(prepared.image[None])
            maps = self._maps(prepared.image)
        classes = self._network.class_names
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
        """Returns the feature maps of uint8[H, W, C], uint8[C, H, W] for each convolution."""
        maps = {}
        for layer, (values,) in self._network.feature_maps(image[None]).items():
            values = values.astype(np.float32)
            spread = max(float(np.ptp(values)), 1e-9)
            scaled = (values - values.min()) * (255 / spread)
            maps[layer] = scaled.round().astype(np.uint8).transpose(2, 0, 1)
        return maps


def _base64(values: np.ndarray) -> str:
    return base64.b64encode(values.tobytes()).decode()
