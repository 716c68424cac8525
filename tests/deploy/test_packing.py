import base64
import io
import zlib

import numpy as np
from PIL import Image

from jaxcnn.data.dataset import Dataset
from jaxcnn.deploy import packing
from jaxcnn.train.trained import Trained


def test_weights_are_exact(networks: dict[str, Trained]) -> None:
    variables = networks["cifar10"].variables
    packed = packing.pack_weights(variables)
    planes = np.frombuffer(zlib.decompress(base64.b64decode(packed["data"])), np.uint8)
    values = np.ascontiguousarray(planes.reshape(4, -1).T).view("<f4").ravel()
    for entry in packed["layout"]:
        layer, leaf = entry["name"].split("/")
        collection = "batch_stats" if leaf in ("mean", "var") else "params"
        expected = np.asarray(variables[collection][layer][leaf])
        assert expected.shape == entry["shape"]
        assert np.array_equal(values[: expected.size], expected.ravel()), entry["name"]
        values = values[expected.size :]
    assert not len(values)


def grid(packed: dict[str, object]) -> np.ndarray:
    """The images of a WebP file."""
    count, height, width, channels = packed["shape"]  # type: ignore[misc]
    columns = packed["columns"]
    file = io.BytesIO(base64.b64decode(str(packed["data"])))
    pixels = np.asarray(Image.open(file).convert("RGB"))
    tiles = pixels.reshape(-1, height, columns, width, channels).swapaxes(1, 2)
    return tiles.reshape(-1, height, width, channels)[:count]


def test_colour_images(tiny_cifar10: Dataset) -> None:
    images, labels = tiny_cifar10.train.images, tiny_cifar10.train.labels
    exact, lossy = (packing.pack_images(images, labels, exact=exact) for exact in (True, False))
    assert exact["labels"] == lossy["labels"] == labels.tolist()
    assert np.array_equal(grid(exact), images)
    assert not np.array_equal(grid(lossy), images)
    assert len(lossy["data"]) < len(exact["data"])
