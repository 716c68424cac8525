"""TFDS's builders of MNIST and CIFAR-10, adapted to prepare the data without TensorFlow.

The stock builders extract, parse and encode the archives with TensorFlow. These parse them with
NumPy and pass the images as PNG bytes under the same keys, so that the files on disk hold what
TFDS itself would write: the same records in the same order.
"""

import io
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar, mnist

from jaxcnn.data import archives, formats

Examples = Iterator[tuple[int, dict[str, Any]]]
"""Pairs of a key, which decides the order on disk, and the features of an example."""


class Mnist(mnist.MNIST, skip_registration=True):  # type: ignore[call-arg]
    """MNIST, prepared from its four IDX files."""

    name = "mnist"
    url_infos = mnist.MNIST.url_infos
    urls = tuple(
        mnist.MNIST.URL + f"{split}-{kind}-ubyte.gz"
        for split in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        paths = [dl_manager.download(url) for url in self.urls]
        return {
            "train": self._generate_examples(paths[0], paths[1]),
            "test": self._generate_examples(paths[2], paths[3]),
        }

    def _generate_examples(
        self, images_path: os.PathLike[str], labels_path: os.PathLike[str]
    ) -> Examples:
        images, labels = formats.read_idx(images_path), formats.read_idx(labels_path)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield index, {"image": _png(image), "label": int(label)}


class Cifar10(cifar.Cifar10, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-10, prepared from its binary archive."""

    name = "cifar10"
    url_infos = cifar.Cifar10.url_infos
    urls = ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",)

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        archive = formats.read_cifar(dl_manager.download(self.urls[0]))
        self.info.features["label"].names = list(archive.class_names)
        return {
            split: self._generate_examples(split, batches)
            for split, batches in archive.batches.items()
        }

    def _generate_examples(
        self, split: str, batches: list[tuple[np.ndarray, np.ndarray]]
    ) -> Examples:
        index = 0
        for images, labels in batches:
            for image, label in zip(images, labels, strict=True):
                identity = f"{split}_{index:05d}"
                yield index, {"id": identity, "image": _png(image), "label": int(label)}
                index += 1


BUILDERS: dict[str, Any] = {"mnist": Mnist, "cifar10": Cifar10}


def official_archives(name: str) -> list[archives.Archive]:
    """Returns the archives of "mnist" or "cifar10", with the sizes and checksums in TFDS."""
    builder = BUILDERS[name]
    return [
        archives.Archive(url, int(builder.url_infos[url].size), builder.url_infos[url].checksum)
        for url in builder.urls
    ]


def _png(image: np.ndarray) -> io.BytesIO:
    """Encodes uint8[H, W] or uint8[H, W, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    file.seek(0)
    return file
