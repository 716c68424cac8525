"""A data set in memory, and `load_data`, which prepares, caches or generates it."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from jaxcnn.errors import DataError, DataUnavailableError
from jaxcnn.recipes.problems import PROBLEMS, is_own_data

if TYPE_CHECKING:
    from jaxcnn.data.cache import Arrays

SourceName = Literal["auto", "real", "synthetic"]

MAX_CLASSES = 10_000
"""The largest number of classes, far above that of any data set of small images."""


_CHUNK = 4096  # images of which statistics are taken at once


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    Attributes:
        images: uint8[N, H, W, C], usually memory-mapped and read-only.
        labels: int32[N], each from 0 to the number of classes - 1.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Split(images={self.images.dtype}{list(self.images.shape)})"


@dataclass(frozen=True)
class Dataset:
    """Both splits of a data set.

    Unambiguous variants of the arrays are converted: images and labels of any integer type, images
    [N, H, W], labels [N, 1] or in a list; see `validate_split`.

    Attributes:
        name: as TFDS writes it, "synthetic-mnist", "synthetic-cifar10" or a user's own name.
        version: the version of the data set.
        train: the training split.
        test: the test split.
        class_names: by label, one for each class. Without any, there are as many classes as the
            training labels need, called by their label.
        notice: why the synthetic data set is used, as text for the user; empty for real data.

    Raises:
        DataError: a split is invalid, or the splits or class names do not fit together.
    """

    name: str
    version: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    notice: str = ""

    def __post_init__(self) -> None:
        names = tuple(map(str, self.class_names))
        train = validate_split(self.train, "the training split", len(names) or MAX_CLASSES)
        if not names and len(train):
            names = tuple(map(str, range(int(train.labels.max()) + 1)))
        test = validate_split(self.test, "the test split", len(names) or MAX_CLASSES)
        if train.images.shape[1:] != test.images.shape[1:]:
            shapes = f"{list(train.images.shape)} and {list(test.images.shape)}"
            raise DataError(
                f"the training and test images are {shapes}: give them the same height, width and "
                "channels"
            )
        if len(names) > MAX_CLASSES:
            raise DataError(f"there are {len(names)} class names: give at most {MAX_CLASSES}")
        converted = {"train": train, "test": test, "class_names": names}
        for name, value in converted.items():
            object.__setattr__(self, name, value)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Of one image, (H, W, C)."""
        height, width, channels = self.train.images.shape[1:]
        return height, width, channels

    @property
    def is_own(self) -> bool:
        """Whether it is neither MNIST or CIFAR-10 nor a synthetic data set of their form."""
        return is_own_data(self.name)

    def moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Returns mean and standard deviation of each channel of the training images, in 0..1.

        The deviation of a channel that is constant is given as 1.
        """
        means, deviations = [], []
        levels = np.arange(256) / 255
        for channel in range(self.image_shape[2]):
            counts = np.zeros(256, np.int64)
            for first in range(0, len(self.train), _CHUNK):  # images may be memory-mapped
                images = self.train.images[first : first + _CHUNK, ..., channel]
                counts += np.bincount(images.reshape(-1), minlength=256)
            total = max(int(counts.sum()), 1)
            mean = float(counts @ levels / total)
            variance = float(counts @ (levels - mean) ** 2 / total)
            means.append(round(mean, 4))
            deviations.append(round(variance**0.5, 4) or 1.0)
        return tuple(means), tuple(deviations)

    @property
    def is_real(self) -> bool:
        """Whether the images are not those of a synthetic data set."""
        return not self.name.startswith("synthetic-")


def validate_split(split: Split, where: str, classes: int) -> Split:
    """Converts a split to its documented form, if that is possible without ambiguity.

    Args:
        split: images and labels as given by a user.
        where: what error messages call the split.
        classes: the number of classes.

    Returns:
        The split with images uint8[N, H, W, C] and labels int32[N].

    Raises:
        DataError: the images or labels are ambiguous or invalid.
    """
    images = validate_images(split.images, f"the images of {where}")
    labels = np.asanyarray(split.labels)
    what = f"the labels of {where} are {labels.dtype}{list(labels.shape)}"
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError(f"{what}: give one number for each image, for example labels.argmax(-1)")
    if labels.dtype.kind not in "iu" and labels.size:
        raise DataError(f"{what}, the first {labels.flat[0]!r}: give integers")
    if labels.shape not in ((labels.size,), (labels.size, 1)):
        raise DataError(f"{what}: give one number for each image")
    labels = labels.reshape(-1)
    if len(labels) != len(images):
        raise DataError(
            f"{where} has {len(images)} images and {len(labels)} labels: give one label for each "
            "image"
        )
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        first = int(np.flatnonzero((labels < 0) | (labels >= classes))[0])
        raise DataError(
            f"{where} has the label {labels[first]} at position {first}: give labels from 0 to "
            f"{classes - 1}, or more class names"
        )
    return Split(images, labels.astype(np.int32, copy=False))


def validate_images(images: np.ndarray, what: str) -> np.ndarray:
    """Converts images to uint8[N, H, W, C], if that is possible without ambiguity.

    Args:
        images: [N, H, W, C], or [N, H, W] for one channel, of any integer type, 0..255.
        what: what error messages call the images.

    Returns:
        uint8[N, H, W, C], without a copy if they have that type.

    Raises:
        DataError: the images are ambiguous or invalid.
    """
    images = np.asanyarray(images)
    what = f"{what} are {images.dtype}{list(images.shape)}"
    if images.dtype.kind not in "iu":
        largest = f" up to {images.max()!s}" if images.size and images.dtype.kind == "f" else ""
        raise DataError(
            f"{what}{largest}: give integers from 0 to 255; floats from 0 to 1 are converted by "
            "(255 * images).round().astype(numpy.uint8)"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4:
        raise DataError(f"{what}: give them as [N, H, W, C], or [N, H, W] if they have one channel")
    if images.shape[1] in (1, 3) and images.shape[3] not in (1, 3):
        raise DataError(f"{what}: the channels come last, give images.transpose(0, 2, 3, 1)")
    if images.dtype != np.uint8:
        if images.size and not 0 <= images.min() <= images.max() <= 255:
            raise DataError(f"{what}, {images.min()} to {images.max()}: give values from 0 to 255")
        images = images.astype(np.uint8)
    return images


def load_data(
    name: str,
    *,
    source: SourceName = "real",
    data_dir: str | os.PathLike[str] | None = None,
    archive_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    hold_out: float = 0.1,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """Loads a data set as memory-mapped arrays; the first call prepares and decodes it.

    Args:
        name: a data set that can be prepared from its archives, see `jaxcnn.data.tfds.VERSIONS`; or
            any image classification data set that TFDS has prepared as array_record in `data_dir`,
            as "name" or "name/config".
        source: "real": the real data, or an error; and for "mnist" and "cifar10" also "synthetic":
            the synthetic data set of the same form; "auto": the real data if it is available,
            otherwise the synthetic data set.
        data_dir: the folder of TFDS's prepared data sets. Default: `TFDS_DATA_DIR`, then
            `~/tensorflow_datasets`.
        archive_dir: a folder that holds the official archives, used instead of a download.
            Default: `JAXCNN_ARCHIVE_DIR`.
        cache_dir: the folder of decoded arrays. Default: `JAXCNN_CACHE_DIR`, then the user's
            cache folder.
        hold_out: share of each class of the training images to test on where a data set that TFDS
            has prepared has no split "test".
        seed: the seed of the synthetic data set; ignored for real data.
        report: called with a line of text before each slow operation.

    Returns:
        The data set, with images uint8[N, H, W, C] and labels int32[N].

    Raises:
        ValueError: `source` is not one of those listed.
        DataError: the data is unavailable or cannot be read; the message states the remedy.
        WriteError: the data cannot be prepared or cached in its folder.
    """
    if source not in get_args(SourceName):
        raise ValueError(f"source must be one of {', '.join(get_args(SourceName))}, got {source!r}")
    # Imported here: a data set of the user's own arrays needs none of these.
    from jaxcnn.data import cache, decoding, tfds
    from jaxcnn.storage import atomic
    from jaxcnn.storage.manifest import short_digest

    if source != "real" and name not in PROBLEMS:
        raise DataError(
            f"there is no synthetic data set of the form of {name}: give source='real'; the "
            f"synthetic ones are of {' and '.join(PROBLEMS)}"
        )
    cache_root = atomic.cache_root(cache_dir)
    if source == "synthetic":
        notice = "the synthetic data set was requested"
        return _load_synthetic(name, seed, cache_root, notice, report)
    try:
        prepared = tfds.find_or_prepare(name, data_dir, archive_dir, report)
    except DataUnavailableError as error:
        if source != "auto":
            raise
        return _load_synthetic(name, seed, cache_root, str(error), report)
    own = {} if name in tfds.VERSIONS else {"hold_out": hold_out}
    arrays = cache.load_or_build(
        cache_root
        / f"{tfds.file_name(name)}-{prepared.version}-{short_digest(str(prepared.folder))}",
        fingerprint=prepared.fingerprint() | own,
        build=lambda: decoding.decode_prepared(prepared, report, hold_out=hold_out),
        report=report,
    )
    return from_arrays(name, prepared.version, arrays)


def _load_synthetic(
    name: str, seed: int, cache_root: Path, notice: str, report: Callable[[str], None]
) -> Dataset:
    """Loads the synthetic data set from its cache; the first call for a seed generates it.

    Args:
        name: of the real data set whose form it has.
        seed: a non-negative integer.
        cache_root: the folder of all caches.
        notice: why it is used, see `Dataset`.
        report: called with a line of text before it is generated.
    """
    # Imported here: the generator needs SciPy, the real data does not.
    from jaxcnn.data import cache, synthetic
    from jaxcnn.data.cache import Arrays

    def build() -> Arrays:
        report(f"generating the synthetic data set for {name}, once")
        arrays: dict[str, np.ndarray] = {}
        for split in ("train", "test"):
            images, labels = synthetic.generate_split(name, split, seed=seed)
            arrays |= {f"{split}_images": images, f"{split}_labels": labels}
        return Arrays(arrays, synthetic.CLASS_NAMES[name])

    arrays = cache.load_or_build(
        cache_root / f"synthetic-{name}-{synthetic.VERSION}-{seed}",
        fingerprint={"generator": synthetic.VERSION, "seed": seed},
        build=build,
        report=report,
    )
    return from_arrays(f"synthetic-{name}", synthetic.VERSION, arrays, notice)


def from_arrays(name: str, version: str, arrays: "Arrays", notice: str = "") -> Dataset:
    """Returns the data set of decoded arrays.

    Args:
        name: its attribute.
        version: its attribute.
        arrays: of `jaxcnn.data.cache.load_or_build`: images and labels of both splits.
        notice: its attribute.
    """
    train, test = (
        Split(arrays.arrays[f"{split}_images"], arrays.arrays[f"{split}_labels"])
        for split in ("train", "test")
    )
    return Dataset(name, version, train, test, arrays.class_names, notice)
