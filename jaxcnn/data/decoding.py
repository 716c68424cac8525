"""Prepared data sets decoded to arrays; MNIST and CIFAR-10 are verified to be the official ones."""

import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.data import emnist
from jaxcnn.data.cache import Arrays
from jaxcnn.data.dataset import Split
from jaxcnn.data.own_data import as_arrays, held_out
from jaxcnn.data.tfds import ANOTHER_FOLDER, VERSIONS, Prepared, first_line, quiet_tfds
from jaxcnn.errors import DataError, ReadError
from jaxcnn.recipes.problems import PROBLEMS
from jaxcnn.storage import document

_ANOTHER = "give --data another data set, or a folder or .npz file with its images"

# The number of images in each split of the official archives, and their `split_digest`.
OFFICIAL = {
    "mnist": {
        "train": (60_000, "3bafe639115ada3a4f6ea1b0e57c9dbb1f0c9a3254eec392fcafb4623efa5f5c"),
        "test": (10_000, "09035d9cd0383aa0d10d2029dce798b0baeb785bdcc429c7b578d760f7b08da1"),
    },
    "cifar10": {
        "train": (50_000, "55c8a3bce23874fd5871719a30be30ce1b1f86e2f74afbc9cc19d1252b74adde"),
        "test": (10_000, "7d79e752791e1a3f8555c99847bcbd1210edb70997e4519cd59bb1741e4f6ee7"),
    },
}


class _KindError(DataError):
    """A data set is not one of classification of images of one size."""


def decode_prepared(
    prepared: Prepared,
    report: Callable[[str], None] = lambda line: None,
    *,
    hold_out: float = 0.1,
) -> Arrays:
    """Decodes every image of a prepared data set; MNIST and CIFAR-10 have to be the official ones.

    EMNIST's images, which are transposed in its archive and in TFDS, are set upright, and its
    classes are called by their characters.

    Args:
        prepared: the data set.
        report: called with a line of text at the start.
        hold_out: share of the training images to test on where there is no split "test".

    Returns:
        The class names, and as arrays `train_images` and `test_images` uint8[N, H, W, C] and
        `train_labels` and `test_labels` int32[N], in the order in which TFDS stores them.

    Raises:
        DataError: the data set is damaged, not the official one, or not one of classification of
            images of one size.
        ReadError: its description cannot be read, which does not imply damage.
    """
    # Imported here: it takes longer than a warm start.
    import tensorflow_datasets as tfds

    report(f"decoding {prepared.name} {prepared.version} from {prepared.folder}, once")
    try:
        _check_features(document.read_json(prepared.folder / "features.json"))
        builder = tfds.builder_from_directory(prepared.folder)
        keys = _supervised_keys(builder.info, prepared.folder)
        class_names = tuple(builder.info.features[keys[1]].names)
        splits = {}
        with quiet_tfds():
            for name in filter(builder.info.splits.__contains__, ("train", "test")):
                source = builder.as_data_source(name, file_format="array_record")
                splits[name] = _decode_split(source, keys, f"{prepared.folder}, split {name},")
        if prepared.name in OFFICIAL:
            _check_official(prepared.name, splits, class_names)
    except (ReadError, _KindError):
        raise
    except Exception as error:  # the record reader raises any exception of its C++ code
        again = "remove the folder so that it is prepared again, or "
        raise DataError(
            f"the prepared data set {prepared.folder} cannot be read ({first_line(error)}): "
            f"{again if prepared.name in VERSIONS else ''}{ANOTHER_FOLDER}"
        ) from error
    if prepared.name in emnist.CLASS_NAMES:
        class_names = emnist.CLASS_NAMES[prepared.name]
        for name, split in splits.items():
            splits[name] = Split(split.images.swapaxes(1, 2), split.labels)
    if "test" not in splits:
        splits["train"], splits["test"] = held_out(splits["train"], hold_out, prepared.folder)
    return Arrays(as_arrays(splits), class_names)


def _supervised_keys(info: Any, folder: Path) -> tuple[str, str]:
    """Returns the names of the features that are the image and its class label.

    Raises:
        _KindError: there is not one of each, or no training split.
    """
    import tensorflow_datasets as tfds

    if "train" not in info.splits:
        raise _KindError(f"{folder} has no split train, but {', '.join(info.splits)}: {_ANOTHER}")
    features = dict(info.features)
    images, labels = (
        [key for key, feature in features.items() if isinstance(feature, kind)]
        for kind in (tfds.features.Image, tfds.features.ClassLabel)
    )
    if info.supervised_keys in itertools.product(images, labels):
        images, labels = ([key] for key in info.supervised_keys)
    if (len(images), len(labels)) != (1, 1):
        raise _KindError(
            f"{folder} has the features {', '.join(features)}, not one image and one class label: "
            f"{_ANOTHER}"
        )
    return images[0], labels[0]


def _decode_split(source: Any, keys: tuple[str, str], where: str) -> Split:
    """Decodes all examples of a TFDS data source.

    Raises:
        _KindError: its images have several sizes, or more than 8 bits per channel.
    """
    images, labels = np.empty(0, np.uint8), np.empty(len(source), np.int32)
    for index in range(len(source)):
        example = source[index]
        image, labels[index] = example[keys[0]], example[keys[1]]
        if index == 0:
            images = np.empty((len(source), *image.shape), np.uint8)
        if image.dtype != np.uint8 or image.shape != images.shape[1:]:
            raise _KindError(
                f"{where} has the image {image.dtype}{list(image.shape)} at position {index}, not "
                f"uint8{list(images.shape[1:])}: scale its images to one size and give --data the "
                "folder or .npz file that holds them"
            )
        images[index] = image
    return Split(images, labels)


def _check_features(description: Any) -> None:
    """Refuses features that are not TFDS's own, because TFDS imports any module that they name.

    Args:
        description: the JSON of a prepared data set's features.json.

    Raises:
        ValueError: it names a class that is not TFDS's.
    """
    if isinstance(description, list):
        for value in description:
            _check_features(value)
    if isinstance(description, dict):
        # The two spellings of a field of TFDS's protocol buffer, and its older form.
        for key in {"pythonClassName", "python_class_name", "type"} & description.keys():
            if not str(description[key]).startswith("tensorflow_datasets.core.features."):
                raise ValueError(f"features.json names {description[key]}, not a feature of TFDS")
        _check_features(list(description.values()))


def split_digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Digests a split independently of the order of its examples.

    Args:
        images: uint8[N, H, W, C].
        labels: int32[N], in 0..255.

    Returns:
        The sum, modulo 2**256, of the SHA-256 of each image with its label, in hexadecimal.
    """
    digests = (
        hashlib.sha256(image.tobytes() + bytes([label])).digest()
        for image, label in zip(images, labels.tolist(), strict=True)
    )
    return f"{sum(map(int.from_bytes, digests)) % 2**256:064x}"


def _check_official(name: str, splits: dict[str, Split], class_names: tuple[str, ...]) -> None:
    """Raises ValueError unless images, labels and class names are those of the official data."""
    problem = PROBLEMS[name]
    for split, (count, expected) in OFFICIAL[name].items():
        images, labels = splits[split].images, splits[split].labels
        if images.shape[1:] != problem.image_shape:
            raise ValueError(f"its images have the shape {images.shape[1:]}")
        if len(images) != count:
            raise ValueError(f"it has {len(images):,} {split} images, and {name} has {count:,}")
        if split_digest(images, labels) != expected:
            raise ValueError(f"its {split} images or labels are not those of {name}")
    if class_names != problem.class_names:
        raise ValueError(f"its class names are {', '.join(class_names)}")
