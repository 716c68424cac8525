"""Weights and images as compressed bytes in Base64; `page/contents.js` unpacks them."""

import base64
import io
import zlib
from typing import Any

import numpy as np

_WEBP_QUALITY = 80  # without losses, the effort: 100 takes 20 s and saves 1 %


def pack_weights(variables: Any) -> dict[str, Any]:
    """Packs the weights of a network, exactly.

    Args:
        variables: `params`, and `batch_stats` where the network has them.

    Returns:
        `layout`, the name ("conv1/kernel") and shape of each array; and `data`, in Base64, all
        float32 values one after the other, first the lowest bytes of all, then the second ones and
        so on, which deflate compresses better (exponents resemble each other), deflated by zlib.
    """
    arrays = {
        f"{layer}/{leaf}": np.asarray(array, "<f4")
        for collection in ("params", "batch_stats")
        for layer, leaves in variables.get(collection, {}).items()
        for leaf, array in leaves.items()
    }
    values = np.concatenate([array.ravel() for array in arrays.values()])
    return {
        "layout": [{"name": name, "shape": array.shape} for name, array in arrays.items()],
        "data": _deflated(values.view(np.uint8).reshape(-1, 4).T),
    }


def pack_images(images: np.ndarray, labels: np.ndarray, exact: bool = True) -> dict[str, Any]:
    """Packs images with their labels.

    Args:
        images: uint8[N, H, W, C].
        labels: int[N].
        exact: whether colour images keep their pixels; otherwise they take a sixth of the room,
            and the predictions for 6 % of CIFAR-10's test images change.

    Returns:
        `shape`, (N, H, W, C); `labels`; `data` in Base64, and its `encoding`: "deflate", the pixels
        deflated, or "webp" for colour images, a file in which they are tiles of a grid with
        `columns` columns.
    """
    from PIL import Image

    count, height, width, channels = images.shape
    packed: dict[str, Any] = {"shape": images.shape, "labels": [int(label) for label in labels]}
    if channels != 3 or not count:
        return {**packed, "encoding": "deflate", "data": _deflated(images)}
    columns = int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    tiles = np.zeros((rows * columns, height, width, channels), np.uint8)
    tiles[:count] = images
    grid = tiles.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    file = io.BytesIO()
    Image.fromarray(grid.reshape(rows * height, columns * width, channels)).save(
        file, "WEBP", lossless=exact, quality=_WEBP_QUALITY, method=6
    )
    data = base64.b64encode(file.getvalue()).decode()
    return {**packed, "encoding": "webp", "columns": columns, "data": data}


def _deflated(values: np.ndarray) -> str:
    """Returns an array's bytes, deflated, in Base64."""
    return base64.b64encode(zlib.compress(values.tobytes(), 9)).decode()
