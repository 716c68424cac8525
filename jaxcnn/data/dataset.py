"""The data set that the networks train on, and `load`, which gets it from wherever it is."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from jaxcnn.errors import DataUnavailableError

if TYPE_CHECKING:
    from jaxcnn.data.cache import Arrays

Name = Literal["mnist", "cifar10"]
Source = Literal["auto", "real", "synthetic"]
FeedName = Literal["auto", "device", "stream"]


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

    Attributes:
        name: what the pictures really are: "mnist", "cifar10", "synthetic-mnist" or
            "synthetic-cifar10".
        version: of the data set.
        train: the training split.
        test: the test split.
        class_names: the name of each label.
        notice: why a stand-in is used, for the user to read; empty for the real data.
    """

    name: str
    version: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    notice: str = ""

    @property
    def is_real(self) -> bool:
        """Whether these are the real pictures and not the synthetic stand-in."""
        return not self.name.startswith("synthetic-")


def load(
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

    cache_root = cache.root(cache_dir)
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
        cache_root / f"{name}-{prepared.version}-{cache.short_digest(str(prepared.folder))}",
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

    def build() -> cache.Arrays:
        report(f"drawing the synthetic stand-in for {name}, once")
        arrays: dict[str, np.ndarray] = {}
        for split in ("train", "test"):
            images, labels = synthetic.draw(name, split, seed=seed)
            arrays |= {f"{split}_images": images, f"{split}_labels": labels}
        return cache.Arrays(arrays, synthetic.CLASS_NAMES[name])

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
