"""TFDS's builders of the official data sets, adapted to prepare the data without TensorFlow.

The stock builders extract, parse and encode the archives with TensorFlow. These parse them with
NumPy and pass the images as PNG bytes under the same keys, so that the files on disk hold what
TFDS itself would write: the same records in the same order.
"""

import io
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar, mnist

from jaxcnn.data import archives, formats

Examples = Iterator[tuple[int, dict[str, Any]]]
"""Pairs of a key, which decides the order on disk, and the features of an example."""

_SvhnCropped: Any = tfds.builder_cls("svhn_cropped")


class _IdxFiles:
    """What the builders of four IDX files have in common: images and labels of both splits."""

    urls: ClassVar[tuple[str, ...]]

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        arrays = self._read([dl_manager.download(url) for url in self.urls])
        return {
            split: _examples(next(arrays), next(arrays), "label") for split in ("train", "test")
        }

    def _read(self, paths: list[Any]) -> Iterator[np.ndarray]:
        return map(formats.read_idx, paths)


def _idx_urls(folder: str) -> tuple[str, ...]:
    """Returns the addresses of the four files in an order that `_IdxFiles` knows."""
    return tuple(
        f"{folder}{split}-{kind}-ubyte.gz"
        for split in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    )


class Mnist(_IdxFiles, mnist.MNIST, skip_registration=True):  # type: ignore[call-arg]
    """MNIST, prepared from its four IDX files."""

    name = "mnist"
    url_infos = mnist.MNIST.url_infos
    urls = _idx_urls(mnist.MNIST.URL)


class FashionMnist(_IdxFiles, mnist.FashionMNIST, skip_registration=True):  # type: ignore[call-arg]
    """Fashion-MNIST, prepared from its four IDX files."""

    name = "fashion_mnist"
    url_infos = mnist.FashionMNIST.url_infos
    urls = _idx_urls(mnist.FashionMNIST.URL)


class Kmnist(_IdxFiles, mnist.KMNIST, skip_registration=True):  # type: ignore[call-arg]
    """KMNIST, prepared from its four IDX files."""

    name = "kmnist"
    url_infos = mnist.KMNIST.url_infos
    urls = _idx_urls(mnist.KMNIST.URL)


class Emnist(_IdxFiles, mnist.EMNIST, skip_registration=True):  # type: ignore[call-arg]
    """EMNIST, prepared from the IDX files of the configuration, which one archive holds."""

    name = "emnist"
    url_infos = mnist.EMNIST.url_infos
    urls = (mnist.EMNIST.URL,)

    def _read(self, paths: list[Any]) -> Iterator[np.ndarray]:
        config = self.builder_config.name
        for split in ("train", "test"):
            for kind in ("images-idx3", "labels-idx1"):
                member = f"gzip/emnist-{config}-{split}-{kind}-ubyte.gz"
                yield formats.read_idx(paths[0], member)


class Cifar10(cifar.Cifar10, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-10, prepared from its binary archive."""

    name = "cifar10"
    url_infos = cifar.Cifar10.url_infos
    urls: ClassVar[tuple[str, ...]] = ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",)
    layout = formats.CIFAR10

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        archive = formats.read_cifar(dl_manager.download(self.urls[0]), self.layout)
        for label, names in archive.class_names.items():
            self.info.features[label].names = list(names)
        return {
            split: _examples(
                (image for images, _ in batches for image in images),
                (row for _, labels in batches for row in labels),
                *archive.class_names,
                identity=f"{split}_{{:05d}}",
            )
            for split, batches in archive.batches.items()
        }


class Cifar100(Cifar10, cifar.Cifar100, skip_registration=True):  # type: ignore[call-arg]
    """CIFAR-100, prepared from its binary archive."""

    name = "cifar100"
    url_infos = cifar.Cifar100.url_infos
    urls = ("https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",)
    layout = formats.CIFAR100


class SvhnCropped(_SvhnCropped, skip_registration=True):  # type: ignore[call-arg]
    """SVHN's cropped digits, prepared from its MATLAB files, without the split "extra"."""

    name = "svhn_cropped"
    url_infos = _SvhnCropped.url_infos
    urls = tuple(
        f"http://ufldl.stanford.edu/housenumbers/{split}_32x32.mat" for split in ("train", "test")
    )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Examples]:
        splits = dict(zip(("train", "test"), self.urls, strict=True))
        return {
            split: _examples(
                *formats.read_mat(dl_manager.download(url)), "label", identity=f"{split}_{{:06d}}"
            )
            for split, url in splits.items()
        }


BUILDERS: dict[str, Any] = {
    builder.name: builder
    for builder in (Mnist, FashionMnist, Kmnist, Emnist, Cifar10, Cifar100, SvhnCropped)
}


def official_archives(name: str) -> list[archives.Archive]:
    """Returns the archives of a data set in `BUILDERS`, with the sizes and checksums in TFDS."""
    builder = BUILDERS[name]
    return [
        archives.Archive(url, int(builder.url_infos[url].size), builder.url_infos[url].checksum)
        for url in builder.urls
    ]


def _examples(
    images: Iterable[np.ndarray], labels: Iterable[Any], *keys: str, identity: str = ""
) -> Examples:
    """Yields the examples of a split.

    Args:
        images: each uint8[H, W] or uint8[H, W, 3].
        labels: of each image, a number or as many as there are keys.
        *keys: the features that the labels are.
        identity: the format of the feature "id", with the position; "" for no such feature.

    Raises:
        ValueError: there are more images than labels, or fewer.
    """
    for index, (image, row) in enumerate(zip(images, labels, strict=True)):
        example: dict[str, Any] = dict(zip(keys, np.atleast_1d(row).tolist(), strict=True))
        if identity:
            example["id"] = identity.format(index)
        yield index, example | {"image": _png(image)}


def _png(image: np.ndarray) -> io.BytesIO:
    """Encodes uint8[H, W] or uint8[H, W, 3] as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "png")
    file.seek(0)
    return file
