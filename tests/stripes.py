"""Images that a network learns in a few steps."""

import numpy as np

from jaxcnn.data.dataset import Split


def striped_split(shape: tuple[int, int, int], size: int, seed: int) -> Split:
    """Generates images with a bright stripe whose position is the label."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 10, size).astype(np.int32)
    images = generator.integers(0, 60, (size, *shape)).astype(np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 + 2 * label : 6 + 2 * label] += 180
    return Split(images, labels)
