"""The file formats of the official archives: IDX (MNIST) and the binary version of CIFAR-10."""

import gzip
import os
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from jaxcnn.errors import DataError

_CIFAR_SIDE = 32
# Bytes: a label, then the planes red, green and blue (www.cs.toronto.edu/~kriz/cifar.html).
_CIFAR_RECORD = 1 + 3 * _CIFAR_SIDE * _CIFAR_SIDE
_CIFAR_TRAIN = re.compile(r"cifar-10-batches-bin/data_batch_([1-5])\.bin")
# Bytes of the largest official member, which holds 10,000 records.
_CIFAR_LARGEST_MEMBER = 10_000 * _CIFAR_RECORD
# Bytes of the six batches, and room for the tar headers.
_CIFAR_LARGEST = 6 * _CIFAR_LARGEST_MEMBER + 2**20
# Bytes of the largest official IDX file, which holds 60,000 images of 28 x 28.
_IDX_LARGEST = 60_000 * 28 * 28


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Reads a gzip-compressed IDX file of unsigned bytes, the format of MNIST.

    The format: a zero uint16, a type code (8 for unsigned bytes), the number of dimensions, each
    dimension as a big-endian uint32, and the values in C order (yann.lecun.com/exdb/mnist).

    Args:
        path: the `.gz` file.

    Returns:
        Labels uint8[N] or images uint8[N, H, W], as the file's header states.

    Raises:
        DataError: the file is not an IDX file, or its length contradicts its header.
    """
    try:
        with gzip.open(path, "rb") as file:
            zeros, kind, dimensions = struct.unpack(">HBB", file.read(4))
            if zeros != 0 or kind != 0x08 or dimensions not in (1, 3):
                raise DataError(f"{path} is not an IDX file of bytes (wrong header): replace it")
            shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
            if np.prod(shape, dtype=object) > _IDX_LARGEST:
                raise DataError(
                    f"{path} is larger than any IDX file of MNIST (its header states {shape}): "
                    "replace it"
                )
            size = int(np.prod(shape))
            content = file.read(size + 1)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise DataError(
            f"{path} is not a gzip-compressed IDX file, or is truncated: replace it"
        ) from error
    if len(content) != size:
        raise DataError(f"{path} does not hold the {size} bytes that its header states: replace it")
    return np.frombuffer(content, np.uint8).reshape(shape)


@dataclass(frozen=True)
class CifarArchive:
    """The content of `cifar-10-binary.tar.gz`.

    Attributes:
        class_names: the ten names, by label.
        batches: for "train" and "test" a list of (images uint8[N, 32, 32, 3], labels uint8[N]).
    """

    class_names: tuple[str, ...]
    batches: dict[str, list[tuple[np.ndarray, np.ndarray]]]


def read_cifar(path: str | os.PathLike[str]) -> CifarArchive:
    """Reads CIFAR-10's binary archive in memory, without unpacking it to disk.

    Members other than regular files with the official names are ignored.

    Args:
        path: the `.tar.gz` file.

    Returns:
        The class names, five training batches and one test batch.

    Raises:
        DataError: the archive is damaged, or a member is missing, too large or truncated.
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
        raise DataError(
            f"{path} is not a gzip-compressed tar archive, or is truncated: replace it"
        ) from error
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
    """A decompressed file of bounded length: a small archive can unpack to a very large one."""

    def __init__(self, file: gzip.GzipFile, path: object) -> None:
        self._file = file
        self._path = path
        self._left = _CIFAR_LARGEST

    def read(self, size: int) -> bytes:
        """Reads at most `size` bytes.

        Raises:
            DataError: the file is longer than `_CIFAR_LARGEST`.
        """
        content = self._file.read(min(size, self._left + 1))
        self._left -= len(content)
        if self._left < 0:
            raise DataError(f"{self._path} unpacks to more than the official archive: replace it")
        return content


def _official_members(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """Yields the members with official names, each with its file name."""
    for member in archive:
        folder, _, name = member.name.rpartition("/")
        official = name in ("batches.meta.txt", "test_batch.bin") or _CIFAR_TRAIN.fullmatch(
            member.name
        )
        if member.isfile() and folder == "cifar-10-batches-bin" and official:
            yield member, name


def _parse_cifar(path: object, name: str, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Parses a batch file into images uint8[N, 32, 32, 3] and labels uint8[N].

    Raises:
        DataError: the length or a label is wrong; the message names `path` and `name`.
    """
    if len(content) % _CIFAR_RECORD:
        raise DataError(
            f"{path}: {name} does not consist of records of {_CIFAR_RECORD} bytes: replace the "
            "archive"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, _CIFAR_RECORD)
    labels = records[:, 0]
    if labels.size and labels.max() > 9:
        raise DataError(f"{path}: {name} has a label above 9: replace the archive")
    planes = records[:, 1:].reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels
