"""Synthetic data sets in the form of MNIST and CIFAR-10, for use where the real data is missing.

Shapes, dtypes and split sizes are those of the real data sets; MNIST is replaced by `digits`,
CIFAR-10 by `shapes`. The ranges of all random values were tuned by hand: logistic regression
reaches 81 % on the digits and 32 % on the shapes, the networks about 98 % after 2 epochs and 93 %
after 3.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from jaxcnn.data.digits import render_digits
from jaxcnn.data.shapes import SHAPES, render_shapes
from jaxcnn.recipes.problems import MNIST, PROBLEMS

VERSION = "1"
"""Increased whenever the images change; part of the cache's name."""

CLASS_NAMES: dict[str, tuple[str, ...]] = {"mnist": MNIST.class_names, "cifar10": SHAPES}
"""Class names by label, for each data set."""

SIZES: dict[str, dict[str, int]] = {
    "mnist": {"train": 60_000, "test": 10_000},
    "cifar10": {"train": 50_000, "test": 10_000},
}
"""Number of images in each split of each data set."""

# Images. A chunk has its own random stream, so that the images do not depend on the number of
# threads. Its arrays of one float per pixel take 1 to 2 MB, which keeps four threads under 0.5 GB.
_CHUNK = 500
_THREADS = 4


def generate_split(
    name: str, split: str, *, seed: int = 0, size: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Generates the first `size` images of a split of a synthetic data set.

    The images depend on `name`, `split` and `seed` only, not on the number of processors; a smaller
    `size` gives the first of the same images. Another processor or NumPy release may round single
    pixels differently by one grey level.

    Args:
        name: "mnist" or "cifar10".
        split: "train" or "test".
        seed: non-negative integer; another seed gives other images of the same kind.
        size: number of images, from 1 to `SIZES[name][split]`; None for all.

    Returns:
        images: uint8[size, 28, 28, 1] ("mnist") or uint8[size, 32, 32, 3] ("cifar10"), 0 to 255.
        labels: int32[size], 0 to 9, in random order; every 500 images hold 50 of each class.

    Raises:
        ValueError: an argument has another value than those listed.
    """
    if name not in SIZES:
        raise ValueError(f"name must be one of {', '.join(SIZES)}, got {name!r}")
    if split not in SIZES[name]:
        raise ValueError(f"split must be one of {', '.join(SIZES[name])}, got {split!r}")
    if type(seed) is not int or seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed!r}")
    largest = SIZES[name][split]
    size = largest if size is None else size
    if type(size) is not int or not 1 <= size <= largest:
        raise ValueError(f"size must be an integer from 1 to {largest} or None, got {size!r}")

    images = np.empty((size, *PROBLEMS[name].image_shape), np.uint8)
    labels = np.empty(size, np.int32)
    stream = (list(SIZES).index(name), list(SIZES[name]).index(split))

    def generate_chunk(chunk: int) -> None:
        sequence = np.random.SeedSequence(seed, spawn_key=(*stream, chunk))
        rng = np.random.Generator(np.random.PCG64(sequence))
        chunk_labels = rng.permutation(np.arange(_CHUNK, dtype=np.int32) % 10)
        render = render_digits if name == "mnist" else render_shapes
        begin = chunk * _CHUNK
        count = min(_CHUNK, size - begin)
        # Always a whole chunk, cut afterwards: the images must not depend on the size.
        images[begin : begin + count] = render(rng, chunk_labels)[:count]
        labels[begin : begin + count] = chunk_labels[:count]

    with ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1)) as pool:
        list(pool.map(generate_chunk, range(-(-size // _CHUNK))))
    return images, labels
