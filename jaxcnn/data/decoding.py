"""Prepared data sets decoded to arrays, and verified to be the official ones."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from jaxcnn.data.cache import Arrays
from jaxcnn.data.tfds import ANOTHER_FOLDER, Prepared, first_line, quiet_tfds
from jaxcnn.errors import DataError, ReadError
from jaxcnn.recipes.problems import PROBLEMS
from jaxcnn.storage import document

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


def decode_prepared(
    prepared: Prepared, report: Callable[[str], None] = lambda line: None
) -> Arrays:
    """Decodes every image of a prepared data set, and verifies that it is the official data.

    Args:
        prepared: the data set.
        report: called with a line of text at the start.

    Returns:
        The class names, and as arrays `train_images` and `test_images` uint8[N, H, W, C] and
        `train_labels` and `test_labels` int32[N], in the order in which TFDS stores them.

    Raises:
        DataError: the data set is damaged or not the official one.
        ReadError: its description cannot be read, which does not imply damage.
    """
    # Imported here: it takes longer than a warm start.
    import tensorflow_datasets as tfds

    report(f"decoding {prepared.name} {prepared.version} from {prepared.folder}, once")
    problem = PROBLEMS[prepared.name]
    arrays: dict[str, np.ndarray] = {}
    try:
        _check_features(document.read_json(prepared.folder / "features.json"))
        builder = tfds.builder_from_directory(prepared.folder)
        features = builder.info.features
        if features["image"].shape != problem.image_shape:
            raise ValueError(f"its images have the shape {features['image'].shape}")
        class_names = tuple(features["label"].names)
        with quiet_tfds():
            for split in ("train", "test"):
                source = builder.as_data_source(split, file_format="array_record")
                images, labels = _decode_split(source, problem.image_shape)
                _check_official(prepared.name, split, images, labels)
                arrays |= {f"{split}_images": images, f"{split}_labels": labels}
        if class_names != problem.class_names:
            raise ValueError(f"its class names are {', '.join(class_names)}")
    except ReadError:
        raise
    except Exception as error:  # the record reader raises any exception of its C++ code
        raise DataError(
            f"the prepared data set {prepared.folder} cannot be read ({first_line(error)}): "
            f"remove the folder so that it is prepared again, or {ANOTHER_FOLDER}"
        ) from error
    return Arrays(arrays, class_names)


def _decode_split(source: Any, image_shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Decodes all examples of a TFDS data source into uint8[N, H, W, C] and int32[N]."""
    images = np.empty((len(source), *image_shape), np.uint8)
    labels = np.empty(len(source), np.int32)
    for index in range(len(source)):
        example = source[index]
        images[index], labels[index] = example["image"], example["label"]
    return images, labels


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


def _check_official(name: str, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Raises ValueError unless the images and labels are those of the official split."""
    count, expected = OFFICIAL[name][split]
    if len(images) != count:
        raise ValueError(f"it has {len(images):,} {split} images, and {name} has {count:,}")
    if split_digest(images, labels) != expected:
        raise ValueError(f"its {split} images or labels are not those of {name}")
