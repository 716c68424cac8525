"""The data set that the networks train on, and `load`, which gets it from wherever it is."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from jaxcnn.errors import DataError, DataUnavailableError

if TYPE_CHECKING:
    from jaxcnn.data.cache import Arrays


Name = Literal["mnist", "cifar10"]
Source = Literal["auto", "real", "synthetic"]


CLASSES = 10
"""That the networks tell apart."""


@dataclass(frozen=True)
class Split:
    """One split of a data set.

    Attributes:
        images: uint8[N, H, W, C], usually memory-mapped and read-only.
        labels: int32[N], each in 0..9.
    """

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Dataset:
    """Both splits of a data set and what they are.

    What can only mean one thing is taken: images and labels of any integer type, images [N, H, W],
    labels [N, 1] or in a list; see `checked`.

    Attributes:
        name: what the pictures really are: "mnist", "cifar10", "synthetic-mnist" or
            "synthetic-cifar10".
        version: of the data set.
        train: the training split.
        test: the test split.
        class_names: the name of each label; those that are missing are called by their number.
        notice: why a stand-in is used, for the user to read; empty for the real data.

    Raises:
        DataError: a split is no such thing.
    """

    name: str
    version: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    notice: str = ""

    def __post_init__(self) -> None:
        train, test = (
            checked(split, f"the {name} split")
            for name, split in (("training", self.train), ("test", self.test))
        )
        if train.images.shape[1:] != test.images.shape[1:]:
            shapes = f"{list(train.images.shape)} and {list(test.images.shape)}"
            raise DataError(
                f"the training and test images are {shapes}: give them the same height, width and "
                "channels"
            )
        names = tuple(map(str, self.class_names))
        if len(names) > CLASSES:
            raise DataError(f"there are {len(names)} class names: give at most {CLASSES}")
        names += tuple(map(str, range(len(names), CLASSES)))
        changed = {"train": train, "test": test, "class_names": names}
        for name, value in changed.items():
            object.__setattr__(self, name, value)

    @property
    def is_real(self) -> bool:
        """Whether these are the real pictures and not the synthetic stand-in."""
        return not self.name.startswith("synthetic-")


def checked(split: Split, where: str) -> Split:
    """Returns a split as it is documented: uint8[N, H, W, C] images and int32[N] labels.

    Args:
        split: what has been given as one.
        where: what to call it.

    Raises:
        DataError: its images or labels could mean several things, or nothing.
    """
    images = checked_images(split.images, f"the images of {where}")
    labels = np.asanyarray(split.labels)
    what = f"the labels of {where} are {labels.dtype}{list(labels.shape)}"
    if labels.ndim == 2 and labels.shape[1] > 1:
        raise DataError(f"{what}: give one number for each image, labels.argmax(-1) say")
    if labels.dtype.kind not in "iu" and labels.size:
        raise DataError(f"{what}, the first {labels.flat[0]!r}: give integers")
    if labels.shape not in ((labels.size,), (labels.size, 1)):
        raise DataError(f"{what}: give one number for each image")
    labels = labels.reshape(-1)
    if len(labels) != len(images):
        raise DataError(f"{where} has {len(images)} images and {len(labels)} labels: give as many")
    if labels.size and not 0 <= labels.min() <= labels.max() < CLASSES:
        first = int(np.flatnonzero((labels < 0) | (labels >= CLASSES))[0])
        raise DataError(
            f"{where} has a label {labels[first]}, at position {first}: give labels from 0 to "
            f"{CLASSES - 1}, the classes that the networks tell apart"
        )
    return Split(images, labels.astype(np.int32, copy=False))


def checked_images(images: np.ndarray, what: str) -> np.ndarray:
    """Returns images as uint8[N, H, W, C].

    Args:
        images: of any integer type; without the last axis they have one channel.
        what: to call them.

    Raises:
        DataError: they could mean several things, or nothing.
    """
    images = np.asanyarray(images)
    what = f"{what} are {images.dtype}{list(images.shape)}"
    if images.dtype.kind not in "iu":
        first = (
            f", the greatest {images.max()!s}" if images.size and images.dtype.kind == "f" else ""
        )
        raise DataError(
            f"{what}{first}: give integers from 0 to 255; of floats from 0 to 1 that is "
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
            raise DataError(f"{what}, {images.min()} to {images.max()}: give levels from 0 to 255")
        images = images.astype(np.uint8)
    return images


def load_data(
    name: Name,
    *,
    source: Source = "real",
    data_dir: str | os.PathLike[str] | None = None,
    archive_dir: str | os.PathLike[str] | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    seed: int = 0,
    report: Callable[[str], None] = lambda line: None,
) -> Dataset:
    """Loads a data set as memory-mapped arrays, preparing and decoding it the first time.

    Args:
        name: "mnist" or "cifar10".
        source: "real" takes the real data or fails; "synthetic" draws the stand-in; "auto" takes
            the real data where it can be had and the stand-in otherwise.
        data_dir: where TFDS keeps prepared data sets. Default: `TFDS_DATA_DIR`, then
            `~/tensorflow_datasets`.
        archive_dir: a folder that holds the official archives, used instead of a download.
            Default: `JAXCNN_ARCHIVE_DIR`.
        cache_dir: where decoded arrays are kept. Default: `JAXCNN_CACHE_DIR`, then the user's
            cache folder.
        seed: of the synthetic stand-in; the real data ignores it.
        report: called with a line of text whenever something slow begins.

    Returns:
        The data set, train and test as uint8[N, H, W, C] images and int32[N] labels.

    Raises:
        ValueError: `name` or `source` is none of those listed.
        DataError: the data cannot be had or read; the message says what to do.
        WriteError: it cannot be prepared or cached where it should be.
    """
    if name not in get_args(Name):
        raise ValueError(f"name must be one of {', '.join(get_args(Name))}, got {name!r}")
    if source not in get_args(Source):
        raise ValueError(f"source must be one of {', '.join(get_args(Source))}, got {source!r}")
    # Imported here: who brings arrays of their own needs none of what loading needs.
    from jaxcnn.data import cache, tfds
    from jaxcnn.storage import atomic
    from jaxcnn.storage.manifest import short_digest

    cache_root = atomic.cache_root(cache_dir)
    if source == "synthetic":
        notice = "the synthetic stand-in was asked for"
        return _load_synthetic(name, seed, cache_root, notice, report)
    try:
        prepared = tfds.locate_or_prepare(name, data_dir, archive_dir, report)
    except DataUnavailableError as error:
        if source != "auto":
            raise
        return _load_synthetic(name, seed, cache_root, str(error), report)
    arrays = cache.load(
        cache_root / f"{name}-{prepared.version}-{short_digest(str(prepared.folder))}",
        fingerprint=prepared.fingerprint(),
        build=lambda: tfds.decode(prepared, report),
        report=report,
    )
    return _dataset(name, prepared.version, arrays)


def _load_synthetic(
    name: Name, seed: int, cache_root: Path, notice: str, report: Callable[[str], None]
) -> Dataset:
    # Imported here: drawing needs SciPy, which the real data does not.
    from jaxcnn.data import cache, synthetic
    from jaxcnn.data.cache import Arrays

    def build() -> Arrays:
        report(f"drawing the synthetic stand-in for {name}, once")
        arrays: dict[str, np.ndarray] = {}
        for split in ("train", "test"):
            images, labels = synthetic.draw(name, split, seed=seed)
            arrays |= {f"{split}_images": images, f"{split}_labels": labels}
        return Arrays(arrays, synthetic.CLASS_NAMES[name])

    arrays = cache.load(
        cache_root / f"synthetic-{name}-{synthetic.VERSION}-{seed}",
        fingerprint={"generator": synthetic.VERSION, "seed": seed},
        build=build,
        report=report,
    )
    return _dataset(f"synthetic-{name}", synthetic.VERSION, arrays, notice)


def _dataset(name: str, version: str, arrays: "Arrays", notice: str = "") -> Dataset:
    train, test = (
        Split(arrays.arrays[f"{split}_images"], arrays.arrays[f"{split}_labels"])
        for split in ("train", "test")
    )
    return Dataset(name, version, train, test, arrays.class_names, notice)
