"""The official archives: fetched, checked and parsed."""

import gzip
import hashlib
import os
import re
import struct
import tarfile
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from jaxcnn.errors import DataError, DataUnavailableError, writing

# Seconds. A host that has not answered by then counts as unreachable.
_ANSWER_TIMEOUT = 12.0
_CONNECT_TIMEOUT = 10.0
_STALL_TIMEOUT = 12.0

_CIFAR_SIDE = 32
_CIFAR_RECORD = 1 + 3 * _CIFAR_SIDE * _CIFAR_SIDE  # a label, then the planes red, green, blue
_CIFAR_TRAIN = re.compile(r"cifar-10-batches-bin/data_batch_([1-5])\.bin")
# The largest official member holds 10,000 records.
_CIFAR_LARGEST_MEMBER = 10_000 * _CIFAR_RECORD
# The six batches, and room for the tar's headers.
_CIFAR_LARGEST = 6 * _CIFAR_LARGEST_MEMBER + 2**20
# The largest official IDX file holds 60,000 images of 28 x 28.
_IDX_LARGEST = 60_000 * 28 * 28


@dataclass(frozen=True)
class Archive:
    """An official archive: where it comes from and how to know it.

    Attributes:
        url: of the file.
        size: in bytes.
        sha256: hexadecimal digest of the file.
    """

    url: str
    size: int
    sha256: str

    @property
    def filename(self) -> str:
        """The last part of the address."""
        return self.url.rsplit("/", 1)[-1]


def gather(
    archives: list[Archive],
    archive_dir: Path | None,
    destination: Path,
    report: Callable[[str], None],
) -> None:
    """Puts every archive into `destination`, from `archive_dir` where it is, else by download.

    Args:
        archives: those that are needed.
        archive_dir: a folder of the user's, only read.
        destination: an empty folder; takes links to the user's files, and the downloads.
        report: called with a line of text before a download.

    Raises:
        DataError: a file has the wrong checksum or cannot be read.
        WriteError: `destination` cannot be written.
        DataUnavailableError: a file is not in the folder and cannot be downloaded.
    """
    if archive_dir is not None and not archive_dir.is_dir():
        raise DataError(
            f"the archive folder {archive_dir} is not there: give --archive-dir (or "
            "JAXCNN_ARCHIVE_DIR) a folder that holds the official archives"
        )
    for archive in archives:
        path = destination / archive.filename
        local = archive_dir and archive_dir / archive.filename
        if local and local.is_file():
            path.symlink_to(local.resolve())
            _verify(archive, local, f"replace it by the file from {archive.url}")
        else:
            report(f"downloading {archive.url} ({archive.size / 2**20:.1f} MiB)")
            _download(archive, path, archive_dir)
            _verify(archive, path, f"try again later, or fetch it elsewhere{_BY_HAND}")


_BY_HAND = " and name its folder with --archive-dir (or JAXCNN_ARCHIVE_DIR)"


def _verify(archive: Archive, path: Path, remedy: str) -> None:
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    if digest != archive.sha256:
        raise DataError(
            f"{path} has the wrong checksum (SHA-256 {digest[:12]}..., expected "
            f"{archive.sha256[:12]}...): {remedy}"
        )


def _download(archive: Archive, path: Path, archive_dir: Path | None) -> None:
    # Imported here: only a first start without archives needs it.
    import requests

    answer: list[requests.Response | Exception] = []

    def ask() -> None:
        try:
            timeout = (_CONNECT_TIMEOUT, _STALL_TIMEOUT)
            answer.append(requests.get(archive.url, stream=True, timeout=timeout))
        except Exception as error:
            answer.append(error)

    # The timeouts of a socket do not bound the name look-up or a host of many addresses. A daemon
    # thread can be left behind.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_ANSWER_TIMEOUT)
    response = answer[0] if answer else TimeoutError()
    missing = f"{archive.filename} is not in {archive_dir} and " if archive_dir else ""
    remedy = f"check the network, or fetch the file on another machine{_BY_HAND}"
    if isinstance(response, Exception):
        host = archive.url.split("/")[2]
        raise DataUnavailableError(
            f"{missing}{archive.url} cannot be downloaded (no answer from {host}): {remedy}"
        ) from response
    with response, writing(path, "give --data-dir a folder that can be written and has room"):
        if response.status_code != 200:
            raise DataUnavailableError(
                f"{missing}{archive.url} cannot be downloaded (the server answered "
                f"{response.status_code}): {remedy}"
            )
        try:
            with path.open("wb") as file:
                received = 0
                for block in response.iter_content(2**20):
                    received += len(block)
                    if received > archive.size:  # not the official file; do not fill the disk
                        break
                    file.write(block)
        except requests.RequestException as error:
            raise DataUnavailableError(
                f"{missing}{archive.url} cannot be downloaded (the connection broke off after "
                f"{received} bytes): {remedy}"
            ) from error


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a gzip-compressed IDX file of unsigned bytes, the format of MNIST.

    Args:
        path: of the `.gz` file.

    Returns:
        uint8[N] or uint8[N, H, W], as the file's header says.

    Raises:
        DataError: the file is no such file, or its length contradicts its header.
    """
    try:
        with gzip.open(path, "rb") as file:
            zeros, kind, dimensions = struct.unpack(">HBB", file.read(4))
            if zeros != 0 or kind != 0x08 or dimensions not in (1, 3):
                raise DataError(f"{path} is no IDX file of bytes: its header is wrong")
            shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
            if np.prod(shape, dtype=object) > _IDX_LARGEST:
                raise DataError(f"{path} is larger than any IDX file of MNIST: header says {shape}")
            size = int(np.prod(shape))
            content = file.read(size + 1)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise DataError(f"{path} is no whole gzip-compressed IDX file: replace it") from error
    if len(content) != size:
        raise DataError(f"{path} does not hold the {size} bytes that its header states: replace it")
    return np.frombuffer(content, np.uint8).reshape(shape)


@dataclass(frozen=True)
class CifarArchive:
    """The content of `cifar-10-binary.tar.gz`.

    Attributes:
        class_names: the ten names.
        batches: for "train" and "test", pairs of uint8[N, 32, 32, 3] images and int[N] labels.
    """

    class_names: tuple[str, ...]
    batches: dict[str, list[tuple[np.ndarray, np.ndarray]]]


def read_cifar(path: str | os.PathLike[str]) -> CifarArchive:
    """Reads CIFAR-10's binary archive in memory; nothing is unpacked to disk.

    Only regular members with the official names and of at most the official size are looked at.

    Args:
        path: of the `.tar.gz` file.

    Raises:
        DataError: the archive is damaged or a member is missing, too large or not whole.
    """
    members: dict[str, bytes] = {}
    try:
        with (
            gzip.open(path, "rb") as file,
            tarfile.open(fileobj=cast("Any", _Bounded(file, path)), mode="r|") as archive,
        ):
            for member, name in _official_members(archive):
                if member.size > _CIFAR_LARGEST_MEMBER:
                    raise DataError(f"{path}: {name} is larger than the official file: replace it")
                content = archive.extractfile(member)
                members[name] = content.read() if content else b""
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{path} is no whole gzip-compressed tar archive: replace it") from error
    meta = members.pop("batches.meta.txt", None)
    train = sorted(name for name in members if name != "test_batch.bin")
    if meta is None or "test_batch.bin" not in members or len(train) != 5:
        raise DataError(f"{path} lacks a file of CIFAR-10's binary version: replace it")
    class_names = tuple(line for line in meta.decode("ascii", "replace").splitlines() if line)
    return CifarArchive(
        class_names,
        {
            "train": [_parse_cifar(path, name, members[name]) for name in train],
            "test": [_parse_cifar(path, "test_batch.bin", members["test_batch.bin"])],
        },
    )


class _Bounded:
    """A file that must not be longer than any official archive: a small one can unpack to much."""

    def __init__(self, file: gzip.GzipFile, path: object) -> None:
        self._file = file
        self._path = path
        self._left = _CIFAR_LARGEST

    def read(self, size: int) -> bytes:
        """Reads at most so many bytes.

        Raises:
            DataError: more were read than the official archive has.
        """
        content = self._file.read(min(size, self._left + 1))
        self._left -= len(content)
        if self._left < 0:
            raise DataError(f"{self._path} unpacks to more than the official archive: replace it")
        return content


def _official_members(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str]]:
    for member in archive:
        folder, _, name = member.name.rpartition("/")
        official = name in ("batches.meta.txt", "test_batch.bin") or _CIFAR_TRAIN.fullmatch(
            member.name
        )
        if member.isfile() and folder == "cifar-10-batches-bin" and official:
            yield member, name


def _parse_cifar(path: object, name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    if len(content) % _CIFAR_RECORD:
        raise DataError(f"{path}: {name} is not made of records of {_CIFAR_RECORD} bytes")
    records = np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_RECORD)
    labels = records[:, 0]
    if labels.size and labels.max() > 9:
        raise DataError(f"{path}: {name} has a label above 9: replace the archive")
    planes = records[:, 1:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels
