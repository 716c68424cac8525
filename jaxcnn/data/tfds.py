"""Data sets on disk in TFDS's format: found, or prepared without TensorFlow."""

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

from jaxcnn.data import archives
from jaxcnn.errors import DataError, as_path, writing
from jaxcnn.storage import document
from jaxcnn.storage.atomic import locked, staging

# Those of TFDS's builders. Stated here too so that a warm start need not import TFDS; a test
# compares them.
VERSIONS = {
    "mnist": "3.0.1",
    "fashion_mnist": "3.0.1",
    "kmnist": "3.0.1",
    "emnist/byclass": "3.1.0",
    "emnist/bymerge": "3.1.0",
    "emnist/balanced": "3.1.0",
    "emnist/letters": "3.1.0",
    "emnist/digits": "3.1.0",
    "emnist/mnist": "3.1.0",
    "cifar10": "3.0.2",
    "cifar100": "3.0.2",
    "svhn_cropped": "3.1.0",
}
"""The data sets that can be prepared from their archives, each with its version."""

# A data set's name, and that of its configuration if it has several.
_NAME = re.compile(r"\w+(/\w[\w.+-]*)?")

_DEFAULT_DATA_DIR = "~/tensorflow_datasets"
ANOTHER_FOLDER = "give --data-dir (or TFDS_DATA_DIR) another folder"
"""The remedy for a data set that cannot be used."""


@dataclass(frozen=True)
class Prepared:
    """A data set that TFDS, or this module, has prepared on disk.

    Attributes:
        name: as TFDS writes it, for example "mnist" or "emnist/letters".
        version: the version of TFDS's builder.
        folder: `<data_dir>/<name>/<version>`.
    """

    name: str
    version: str
    folder: Path

    def fingerprint(self) -> dict[str, Any]:
        """Identifies this copy, as JSON values: its description and its files' sizes and times."""
        info = (self.folder / "dataset_info.json").read_bytes()
        files = sorted(self.folder.glob("*.array_record*"))
        states = [(path.name, path.stat()) for path in files]
        return {
            "dataset": self.name,
            "version": self.version,
            "dataset_info": hashlib.sha256(info).hexdigest(),
            "files": [[name, state.st_size, state.st_mtime_ns] for name, state in states],
        }


def find_or_prepare(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    archive_dir: str | os.PathLike[str] | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Prepared:
    """Finds a prepared data set, or prepares it from its archives in TFDS's own layout.

    Args:
        name: one of `VERSIONS`, or of any other data set that TFDS has prepared in `data_dir`, of
            which the newest version is taken.
        data_dir: the folder of TFDS's data sets. Default: `TFDS_DATA_DIR`, then
            `~/tensorflow_datasets`.
        archive_dir: a folder of official archives. Default: `JAXCNN_ARCHIVE_DIR`.
        report: called with a line of text before each slow operation.

    Returns:
        The prepared data set.

    Raises:
        DataError: there is no such data set, or the folder or an archive cannot be used.
        WriteError: the folder cannot be written.
        DataUnavailableError: an archive is not in `archive_dir` and cannot be downloaded.
    """
    root = _root(data_dir)
    if name not in VERSIONS:
        return _find_other(name, root)
    archive_dir = archive_dir or os.environ.get("JAXCNN_ARCHIVE_DIR") or None
    prepared = _find(name, root)
    if prepared is None:
        remedy = f"{ANOTHER_FOLDER} that can be written and has room"
        lock = locked(root, f".jaxcnn-{file_name(name)}.lock", wait=True, remedy=remedy)
        with writing(root, remedy), lock:
            prepared = _find(name, root)  # another process may have prepared it
            if prepared is None:
                source = as_path(archive_dir) if archive_dir else None
                prepared = _prepare(name, root, source, report)
    return prepared


def file_name(name: str) -> str:
    """Returns a data set's name as a part of a file's name."""
    return name.replace("/", "-")


def find_prepared(name: str, data_dir: str | os.PathLike[str] | None = None) -> Prepared | None:
    """Finds a prepared data set.

    Args:
        name: one of `VERSIONS`.
        data_dir: as in `find_or_prepare`.

    Returns:
        The prepared data set, or None if there is none.

    Raises:
        DataError: the folder of the data set cannot be used.
    """
    return _find(name, _root(data_dir))


def _root(data_dir: str | os.PathLike[str] | None) -> Path:
    return as_path(data_dir or os.environ.get("TFDS_DATA_DIR") or _DEFAULT_DATA_DIR)


def _find_other(name: str, root: Path) -> Prepared:
    """Returns the newest version of a data set that TFDS has prepared below a folder.

    Raises:
        DataError: there is none, or it is in a format that needs TensorFlow.
    """
    versions = _prepared_versions(name, root) if _NAME.fullmatch(name) else []
    prepared = _open(name, versions[-1], root) if versions else None
    if prepared is None:
        raise DataError(
            f"there is no data set {name}: give one of {', '.join(VERSIONS)}, or the name of one "
            f"that TFDS has prepared as array_record in {root} (--data-dir), or the path of a "
            "folder of images or an .npz file that is there"
        )
    return prepared


def _prepared_versions(name: str, root: Path) -> list[str]:
    """Returns the versions of a data set below a folder, from the oldest to the newest."""
    found = (path.parent.name for path in (root / name).glob("*/dataset_info.json"))
    versions = filter(re.compile(r"\d+\.\d+\.\d+").fullmatch, found)
    return sorted(versions, key=lambda version: tuple(map(int, version.split("."))))


def _find(name: str, root: Path) -> Prepared | None:
    """Returns the data set of `VERSIONS` prepared below a folder, or None if there is none.

    Raises:
        DataError: it is incomplete, of another version or in a format that needs TensorFlow.
    """
    prepared = _open(name, VERSIONS[name], root)
    if prepared is None:
        _check_absent(name, root)
    return prepared


def _open(name: str, version: str, root: Path) -> Prepared | None:
    """Returns a version of a data set prepared below a folder, or None if it has no description.

    Raises:
        DataError: its description is damaged, or it is in a format that needs TensorFlow.
    """
    folder = root / name / version
    try:
        info = document.read_json(folder / "dataset_info.json")
        formats = {info.get("fileFormat") or "tfrecord", *info.get("alternativeFileFormats", [])}
    except FileNotFoundError as error:
        if error.errno == errno.ENOTDIR:
            raise DataError(f"a part of the path {folder} is a file: {ANOTHER_FOLDER}") from None
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"{folder / 'dataset_info.json'} cannot be read ({first_line(error)}): remove "
            f"{folder} so that it is prepared again, or {ANOTHER_FOLDER}"
        ) from error
    if "array_record" not in formats:
        raise DataError(
            f"{folder} is prepared as {', '.join(sorted(formats))}, and only array_record can be "
            f"read without TensorFlow: {ANOTHER_FOLDER}, where it is prepared as array_record"
        )
    return Prepared(name, version, folder)


def _check_absent(name: str, root: Path) -> None:
    """Raises DataError if there is a part of a data set without description, or another version."""
    version = VERSIONS[name]
    folder = root / name / version
    if folder.exists():
        raise DataError(
            f"{folder} holds no dataset_info.json and is therefore incomplete: remove it, or "
            f"{ANOTHER_FOLDER}"
        )
    if others := _prepared_versions(name, root):
        raise DataError(
            f"{root / name} holds version {', '.join(others)} instead of the required {version}: "
            f"{ANOTHER_FOLDER}, where {version} can be prepared"
        )


def _prepare(
    name: str, root: Path, archive_dir: Path | None, report: Callable[[str], None]
) -> Prepared:
    """Prepares a data set from its archives; the caller holds the lock.

    Args:
        name: one of `VERSIONS`.
        root: the folder of TFDS's data sets, which exists.
        archive_dir: a folder of official archives, or None to download them.
        report: called with a line of text before each slow operation.

    Returns:
        The data set, which appears under its name in a single rename.

    Raises:
        DataError: an archive is damaged, or the builder fails.
        DataUnavailableError: an archive cannot be found or downloaded.
        OSError: `root` cannot be written.
    """
    from jaxcnn.data import builders  # imported here: a warm start does not need TFDS

    prepared = Prepared(name, VERSIONS[name], root / name / VERSIONS[name])
    base = name.partition("/")[0]
    with staging(root, f".jaxcnn-{file_name(name)}-") as stage:
        downloads = stage / "archives"
        downloads.mkdir()
        official = builders.official_archives(base)
        archives.gather_archives(official, archive_dir, downloads, report, base)
        report(f"preparing {name} {prepared.version} in {root}, once")
        try:
            _build(name, stage, downloads)
        except (DataError, OSError):
            raise
        except Exception as error:  # the record writer raises any exception of its C++ code
            if os.strerror(errno.ENOSPC) in str(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), root) from error
            raise DataError(
                f"{name} cannot be prepared in {root} ({first_line(error)}): {ANOTHER_FOLDER}"
            ) from error
        prepared.folder.parent.mkdir(parents=True, exist_ok=True)
        (stage / "data" / name / prepared.version).rename(prepared.folder)
    return prepared


def _build(name: str, stage: Path, downloads: Path) -> None:
    """Runs TFDS's builder on the archives in `downloads`; writes to the folder `stage`/data."""
    import tensorflow_datasets as tfds

    from jaxcnn.data import builders

    base, _, config = name.partition("/")
    builder = builders.BUILDERS[base](
        config=config or None, data_dir=stage / "data", file_format="array_record"
    )
    config = tfds.download.DownloadConfig(
        manual_dir=downloads, try_download_gcs=False, force_checksums_validation=True
    )
    with quiet_tfds():
        builder.download_and_prepare(download_dir=stage / "downloads", download_config=config)


@contextmanager
def quiet_tfds() -> Iterator[None]:
    """Suppresses TFDS's log lines, progress bars and advice on decoders."""
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


def first_line(error: Exception) -> str:
    """Returns the first line of an error's message, or its type if there is none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
