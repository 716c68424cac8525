"""Data sets of TFDS, found, prepared and decoded without TensorFlow."""

import errno
import hashlib
import io
import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.data import archives
from jaxcnn.data.cache import Arrays
from jaxcnn.errors import DataError, ReadError, as_path, writing
from jaxcnn.recipes.named import recipe
from jaxcnn.storage import document
from jaxcnn.storage.atomic import exclusive, staging

# The versions of TFDS's builders. Stated here too so that a warm start need not import TFDS; a
# test compares them.
VERSIONS = {"mnist": "3.0.1", "cifar10": "3.0.2"}
IMAGE_SHAPES = {"mnist": (28, 28, 1), "cifar10": (32, 32, 3)}

# What the official archives hold: images and, whatever their order, a `digest` of them.
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

_DEFAULT_DATA_DIR = "~/tensorflow_datasets"
_ELSEWHERE = "give --data-dir (or TFDS_DATA_DIR) another folder"


@dataclass(frozen=True)
class Prepared:
    """A data set as TFDS keeps it on disk.

    Attributes:
        name: "mnist" or "cifar10".
        version: of the data set.
        folder: `<data_dir>/<name>/<version>`.
    """

    name: str
    version: str
    folder: Path

    def fingerprint(self) -> dict[str, Any]:
        """Returns what tells this copy from any other: its description and its files' identity."""
        info = (self.folder / "dataset_info.json").read_bytes()
        files = sorted(self.folder.glob("*.array_record*"))
        states = [(path.name, path.stat()) for path in files]
        return {
            "dataset": self.name,
            "version": self.version,
            "dataset_info": hashlib.sha256(info).hexdigest(),
            "files": [[name, state.st_size, state.st_mtime_ns] for name, state in states],
        }


def locate_or_prepare(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    archive_dir: str | os.PathLike[str] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Prepared:
    """Finds a prepared data set, or prepares it from its archives in TFDS's own layout.

    Args:
        name: "mnist" or "cifar10".
        data_dir: where TFDS keeps data sets. Default: `TFDS_DATA_DIR`, `~/tensorflow_datasets`.
        archive_dir: a folder of official archives. Default: `JAXCNN_ARCHIVE_DIR`.
        report: called with a line of text whenever something slow begins.

    Raises:
        DataError: what lies there cannot be used, or a file is damaged.
        WriteError: the folder cannot be written.
        DataUnavailableError: an archive is neither in the folder nor to be downloaded.
    """
    root = _root(data_dir)
    archive_dir = archive_dir or os.environ.get("JAXCNN_ARCHIVE_DIR") or None
    prepared = _locate(name, root)
    if prepared is None:
        with (
            writing(root, f"{_ELSEWHERE} that can be written and has room"),
            exclusive(root, f".jaxcnn-{name}"),
        ):
            prepared = _locate(name, root)  # another process may have prepared it
            if prepared is None:
                source = as_path(archive_dir) if archive_dir else None
                prepared = _prepare(name, root, source, report)
    return prepared


def locate(name: str, data_dir: str | os.PathLike[str] | None = None) -> Prepared | None:
    """Finds a prepared data set, see `locate_or_prepare`; None where there is none.

    Raises:
        DataError: what lies there cannot be used.
    """
    return _locate(name, _root(data_dir))


def _root(data_dir: str | os.PathLike[str] | None) -> Path:
    return as_path(data_dir or os.environ.get("TFDS_DATA_DIR") or _DEFAULT_DATA_DIR)


def decode(prepared: Prepared, report: Callable[[str], None] = lambda line: None) -> Arrays:
    """Decodes every picture of a prepared data set.

    Returns:
        `train_images`, `test_images`: uint8[N, H, W, C]; `train_labels`, `test_labels`: int32[N];
        in the order in which TFDS stores them.

    Raises:
        DataError: the data set is damaged or not the official one of its name.
        ReadError: its description cannot be read, which is no damage.
    """
    # Imported here: it takes longer than a warm start.
    import tensorflow_datasets as tfds

    report(f"decoding {prepared.name} {prepared.version} from {prepared.folder}, once")
    arrays: dict[str, np.ndarray] = {}
    try:
        _check_features(document.read(prepared.folder / "features.json"))
        builder = tfds.builder_from_directory(prepared.folder)
        features = builder.info.features
        if features["image"].shape != IMAGE_SHAPES[prepared.name]:
            raise ValueError(f"its images have the shape {features['image'].shape}")
        class_names = tuple(features["label"].names)
        with _quiet():
            for split in ("train", "test"):
                source = builder.as_data_source(split, file_format="array_record")
                images = np.empty((len(source), *IMAGE_SHAPES[prepared.name]), np.uint8)
                labels = np.empty(len(source), np.int32)
                for index in range(len(source)):
                    example = source[index]
                    images[index], labels[index] = example["image"], example["label"]
                _check_official(prepared.name, split, images, labels)
                arrays |= {f"{split}_images": images, f"{split}_labels": labels}
        if class_names != recipe(prepared.name, "fast").class_names:
            raise ValueError(f"it calls its classes {', '.join(class_names)}")
    except ReadError:
        raise
    except Exception as error:  # the record reader raises whatever its C++ side says
        raise DataError(
            f"the prepared data set {prepared.folder} cannot be read ({_first_line(error)}): "
            f"remove the folder so that it is prepared again, or {_ELSEWHERE}"
        ) from error
    return Arrays(arrays, class_names)


def _check_features(description: Any) -> None:
    """Refuses features that are not TFDS's own: it would import whatever module they name.

    Args:
        description: JSON values, from a prepared data set's features.json.

    Raises:
        ValueError: it names another class.
    """
    if isinstance(description, list):
        for value in description:
            _check_features(value)
    if isinstance(description, dict):
        # The two spellings of a field of TFDS's protocol buffer, and its older form.
        for key in {"pythonClassName", "python_class_name", "type"} & description.keys():
            if not str(description[key]).startswith("tensorflow_datasets.core.features."):
                raise ValueError(f"features.json names {description[key]}, no feature of TFDS's")
        _check_features(list(description.values()))


def digest(images: np.ndarray, labels: np.ndarray) -> str:
    """Returns the sum of the SHA-256 of each image with its label, in any order, modulo 2**256.

    Args:
        images: uint8[N, H, W, C].
        labels: int32[N], of 0 to 255.
    """
    found = (
        hashlib.sha256(image.tobytes() + bytes([label])).digest()
        for image, label in zip(images, labels.tolist(), strict=True)
    )
    return f"{sum(map(int.from_bytes, found)) % 2**256:064x}"


def _check_official(name: str, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Refuses what is not the data set of that name, whatever its description says.

    Raises:
        ValueError: it has other images or labels.
    """
    count, expected = OFFICIAL[name][split]
    if len(images) != count:
        raise ValueError(f"it has {len(images):,} {split} images, and {name} has {count:,}")
    if digest(images, labels) != expected:
        raise ValueError(f"its {split} images or labels are not those of {name}")


def _locate(name: str, root: Path) -> Prepared | None:
    version = VERSIONS[name]
    folder = root / name / version
    try:
        info = document.read(folder / "dataset_info.json")
        formats = {info.get("fileFormat") or "tfrecord", *info.get("alternativeFileFormats", [])}
    except FileNotFoundError as error:
        if error.errno == errno.ENOTDIR:
            raise DataError(f"{folder} goes through a file: {_ELSEWHERE}") from None
        if folder.exists():
            raise DataError(
                f"{folder} holds no dataset_info.json, so it is no whole data set: remove it, or "
                f"{_ELSEWHERE}"
            ) from None
        others = sorted(path.parent.name for path in (root / name).glob("*/dataset_info.json"))
        others = [other for other in others if re.fullmatch(r"\d+\.\d+\.\d+", other)]
        if others:
            raise DataError(
                f"{root / name} holds version {', '.join(others)} and not {version}, which is "
                f"needed: {_ELSEWHERE}, where {version} can be prepared"
            ) from None
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder / 'dataset_info.json'} cannot be read ({_first_line(error)}): remove "
            f"{folder} so that it is prepared again, or {_ELSEWHERE}"
        ) from error
    if "array_record" not in formats:
        raise DataError(
            f"{folder} is prepared as {', '.join(sorted(formats))}, and only array_record can be "
            f"read without TensorFlow: {_ELSEWHERE}, where it is prepared as array_record"
        )
    return Prepared(name, version, folder)


def _prepare(
    name: str, root: Path, archive_dir: Path | None, report: Callable[[str], None]
) -> Prepared:
    # Imported here: a warm start needs neither TFDS nor its builders.
    import tensorflow_datasets as tfds

    from jaxcnn.data import builders

    prepared = Prepared(name, VERSIONS[name], root / name / VERSIONS[name])
    with staging(root, f".jaxcnn-{name}-") as stage:
        downloads = stage / "archives"
        downloads.mkdir()
        archives.gather_archives(builders.official_archives(name), archive_dir, downloads, report)
        report(f"preparing {name} {prepared.version} in {root}, once")
        builder = builders.BUILDERS[name](data_dir=stage / "data", file_format="array_record")
        config = tfds.download.DownloadConfig(
            manual_dir=downloads, try_download_gcs=False, force_checksums_validation=True
        )
        try:
            with _quiet():
                builder.download_and_prepare(
                    download_dir=stage / "downloads", download_config=config
                )
        except (DataError, OSError):
            raise
        except Exception as error:  # the record writer raises whatever its C++ side says
            if os.strerror(errno.ENOSPC) in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), root) from error
            raise DataError(
                f"{name} cannot be prepared in {root} ({_first_line(error)}): {_ELSEWHERE}"
            ) from error
        prepared.folder.parent.mkdir(exist_ok=True)
        (stage / "data" / name / prepared.version).rename(prepared.folder)
    return prepared


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS's own lines, bars and decoder advice out of the user's output."""
    import tensorflow_datasets as tfds

    logger = logging.getLogger("absl")
    level = logger.level
    tfds.disable_progress_bar()
    logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
        tfds.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
