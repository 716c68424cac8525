"""The file formats of the official archives: IDX, the binary version of CIFAR, and MATLAB's."""

import gzip
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from jaxcnn.errors import DataError

# Bytes of the largest official IDX file, which holds 697,932 images of 28 x 28 (EMNIST, byclass).
_IDX_LARGEST = 697_932 * 28 * 28

_CIFAR_SIDE = 32
_CIFAR_IMAGE = 3 * _CIFAR_SIDE * _CIFAR_SIDE  # bytes
# Bytes of 60,000 records with two labels, and room for the tar headers.
_CIFAR_LARGEST = 60_000 * (_CIFAR_IMAGE + 2) + 2**20


def read_idx(path: str | os.PathLike[str], member: str = "") -> np.ndarray:
    """Reads a gzip-compressed IDX file of unsigned bytes, the format of MNIST.

    The format: a zero uint16, a type code (8 for unsigned bytes), the number of dimensions, each
    dimension as a big-endian uint32, and the values in C order (yann.lecun.com/exdb/mnist).

    Args:
        path: the `.gz` file, or a `.zip` file that holds it.
        member: its name in the `.zip` file.

    Returns:
        Labels uint8[N] or images uint8[N, H, W], as the file's header states.

    Raises:
        DataError: the file is not an IDX file, or its length contradicts its header.
    """
    where = f"{path}: {member}" if member else str(path)
    try:
        with _open_gzip(path, member) as file:
            zeros, kind, dimensions = struct.unpack(">HBB", file.read(4))
            if zeros != 0 or kind != 0x08 or dimensions not in (1, 3):
                raise DataError(f"{where} is not an IDX file of bytes (wrong header): replace it")
            shape = struct.unpack(f">{dimensions}I", file.read(4 * dimensions))
            if np.prod(shape, dtype=object) > _IDX_LARGEST:
                raise DataError(
                    f"{where} is larger than any official IDX file (its header states {shape}): "
                    "replace it"
                )
            size = int(np.prod(shape))
            content = file.read(size + 1)
    except (OSError, EOFError, struct.error, zlib.error) as error:
        raise DataError(
            f"{where} is not a gzip-compressed IDX file, or is truncated: replace it"
        ) from error
    if len(content) != size:
        raise DataError(
            f"{where} does not hold the {size} bytes that its header states: replace it"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


@contextmanager
def _open_gzip(path: str | os.PathLike[str], member: str) -> Iterator[gzip.GzipFile]:
    """Opens a gzip-compressed file, or one that is a member of a .zip file.

    Raises:
        DataError: the .zip file is damaged or lacks the member.
    """
    if not member:
        with gzip.open(path, "rb") as file:
            yield file
        return
    try:
        with (
            zipfile.ZipFile(path) as archive,
            archive.open(member) as inner,
            gzip.GzipFile(fileobj=inner) as file,
        ):
            yield file
    # NotImplementedError and RuntimeError: a method of compression that zipfile lacks, a password.
    except (zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError) as error:
        raise DataError(f"{path} is damaged or lacks {member}: replace it") from error


def read_mat(path: str | os.PathLike[str]) -> tuple[np.ndarray, np.ndarray]:
    """Reads a MATLAB file of SVHN's cropped digits (ufldl.stanford.edu/housenumbers).

    Args:
        path: the `.mat` file, with the images `X` [H, W, 3, N] and the labels `y` [N, 1], 1 to 10,
            where 10 is the digit 0.

    Returns:
        Images uint8[N, 32, 32, 3], and labels uint8[N] from 0 to 9.

    Raises:
        DataError: the file is not such a file.
    """
    from scipy import io  # imported here: the other formats do not need it

    try:
        content = io.loadmat(path, variable_names=("X", "y"))
        images, labels = np.moveaxis(content["X"], -1, 0), content["y"].reshape(-1)
    except Exception as error:  # the parser raises errors of many kinds
        raise DataError(f"{path} is not a MATLAB file of SVHN, or is truncated: replace it") from (
            error
        )
    shape = (len(labels), _CIFAR_SIDE, _CIFAR_SIDE, 3)
    if images.dtype != np.uint8 or images.shape != shape or not set(labels) <= set(range(1, 11)):
        raise DataError(
            f"{path} does not hold images of 32 x 32 pixels with labels from 1 to 10: replace it"
        )
    return images, (labels % 10).astype(np.uint8)


@dataclass(frozen=True)
class CifarLayout:
    """What the binary version of CIFAR-10 or CIFAR-100 consists of.

    A record is a byte for each label, then the planes red, green and blue
    (www.cs.toronto.edu/~kriz/cifar.html).

    Attributes:
        title: of the data set.
        folder: that holds all files.
        train: the files of the training images.
        test: the file of the test images.
        names: for each label of a record, in their order, the file of its classes' names.
        most: number of records of the largest file.
    """

    title: str
    folder: str
    train: tuple[str, ...]
    test: str
    names: dict[str, str]
    most: int

    @property
    def record(self) -> int:
        """Bytes of a record."""
        return len(self.names) + _CIFAR_IMAGE


CIFAR10 = CifarLayout(
    title="CIFAR-10",
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    test="test_batch.bin",
    names={"label": "batches.meta.txt"},
    most=10_000,
)
CIFAR100 = CifarLayout(
    title="CIFAR-100",
    folder="cifar-100-binary",
    train=("train.bin",),
    test="test.bin",
    names={"coarse_label": "coarse_label_names.txt", "label": "fine_label_names.txt"},
    most=50_000,
)


@dataclass(frozen=True)
class CifarArchive:
    """The content of the binary version of CIFAR-10 or CIFAR-100.

    Attributes:
        class_names: for each label of a record, the names of its classes.
        batches: for "train" and "test" a list of images uint8[N, 32, 32, 3] with their labels
            uint8[N, L], L labels for each image in the order of `class_names`.
    """

    class_names: dict[str, tuple[str, ...]]
    batches: dict[str, list[tuple[np.ndarray, np.ndarray]]]


def read_cifar(path: str | os.PathLike[str], layout: CifarLayout = CIFAR10) -> CifarArchive:
    """Reads a binary archive of CIFAR in memory, without unpacking it to disk.

    Members other than regular files with the official names are ignored.

    Args:
        path: the `.tar.gz` file.
        layout: what it consists of.

    Returns:
        The class names, the training batches and one test batch.

    Raises:
        DataError: the archive is damaged, or a member is missing, too large or truncated.
    """
    wanted = {f"{layout.folder}/{name}": name for name in layout.train}
    wanted |= {f"{layout.folder}/{name}": name for name in (layout.test, *layout.names.values())}
    members: dict[str, bytes] = {}
    try:
        with (
            gzip.open(path, "rb") as file,
            tarfile.open(fileobj=cast("Any", _Bounded(file, path)), mode="r|") as archive,
        ):
            for member in archive:
                if not (member.isfile() and member.name in wanted):
                    continue
                name = wanted[member.name]
                if member.size > layout.most * layout.record:
                    raise DataError(f"{path}: {name} is larger than the official file: replace it")
                content = archive.extractfile(member)
                members[name] = content.read() if content else b""
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(
            f"{path} is not a gzip-compressed tar archive, or is truncated: replace it"
        ) from error
    if len(members) < len(wanted):
        raise DataError(f"{path} lacks a file of {layout.title}'s binary version: replace it")
    class_names = {
        label: tuple(filter(None, members[name].decode("ascii", "replace").splitlines()))
        for label, name in layout.names.items()
    }
    counts = [len(names) for names in class_names.values()]
    return CifarArchive(
        class_names,
        {
            split: [_parse_cifar(path, name, members[name], counts) for name in names]
            for split, names in (("train", layout.train), ("test", (layout.test,)))
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


def _parse_cifar(
    path: object, name: str, content: bytes, counts: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Parses a batch file into images uint8[N, 32, 32, 3] and labels uint8[N, L].

    Args:
        path: of the archive.
        name: of the file.
        content: of the file.
        counts: the number of classes of each of the L labels.

    Raises:
        DataError: the length or a label is wrong; the message names `path` and `name`.
    """
    size = len(counts) + _CIFAR_IMAGE
    if len(content) % size:
        raise DataError(
            f"{path}: {name} does not consist of records of {size} bytes: replace the archive"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    labels, planes = records[:, : len(counts)], records[:, len(counts) :]
    for column, count in zip(labels.T, counts, strict=True):
        if (column >= count).any():
            raise DataError(f"{path}: {name} has a label above {count - 1}: replace the archive")
    planes = planes.reshape(-1, 3, _CIFAR_SIDE, _CIFAR_SIDE)
    return np.ascontiguousarray(planes.transpose(0, 2, 3, 1)), labels
