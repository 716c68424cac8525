"""Small archives in the formats of the official ones."""

import gzip
import hashlib
import io
import struct
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.io import savemat

from jaxcnn.data.archives import Archive
from jaxcnn.data.dataset import Split

CIFAR_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)


@dataclass(frozen=True)
class Official:
    """Small archives in the official formats, in a folder that a loopback server offers."""

    folder: Path
    url: str
    splits: dict[str, Split]
    archives: list[Archive]


def idx(array: np.ndarray) -> bytes:
    """The bytes of an IDX file."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


def write_mnist(folder: Path, splits: dict[str, Split]) -> None:
    """Writes the four IDX files of MNIST."""
    for prefix, split in (("train", splits["train"]), ("t10k", splits["test"])):
        images, labels = split.images[..., 0], split.labels.astype(np.uint8)
        for kind, array in (("images-idx3", images), ("labels-idx1", labels)):
            path = folder / f"{prefix}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(idx(array), mtime=0))


def write_emnist(folder: Path, config: str, splits: dict[str, Split]) -> None:
    """Writes EMNIST's archive with one of its configurations, whose images are transposed."""
    with zipfile.ZipFile(folder / "gzip.zip", "w") as archive:
        for name, split in splits.items():
            arrays = {
                "images-idx3": split.images[..., 0].swapaxes(1, 2).copy(),
                "labels-idx1": split.labels.astype(np.uint8),
            }
            for kind, array in arrays.items():
                member = f"gzip/emnist-{config}-{name}-{kind}-ubyte.gz"
                archive.writestr(member, gzip.compress(idx(array)))


def write_svhn(folder: Path, splits: dict[str, Split]) -> None:
    """Writes the MATLAB files of SVHN's cropped digits, where the digit 0 has the label 10."""
    for name, split in splits.items():
        labels = np.where(split.labels == 0, 10, split.labels).astype(np.uint8)
        images = np.moveaxis(split.images, 0, -1)
        savemat(
            folder / f"{name}_32x32.mat", {"X": images, "y": labels[:, None]}, do_compression=True
        )


def cifar_bytes(split: Split, *coarse: np.ndarray) -> bytes:
    """The bytes of a batch file of CIFAR-10, or of CIFAR-100 with coarse labels uint8[N]."""
    planes = split.images.transpose(0, 3, 1, 2).reshape(len(split), -1)
    labels = np.stack([*coarse, split.labels.astype(np.uint8)], axis=1)
    return np.concatenate([labels, planes], axis=1).tobytes()


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    """Writes a gzip-compressed tar archive."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def cifar_members(splits: dict[str, Split]) -> dict[str, bytes]:
    """The members of CIFAR-10's archive, by path."""
    train = splits["train"]
    members = {"batches.meta.txt": ("\n".join(CIFAR_NAMES) + "\n\n").encode()}
    for batch in range(5):
        part = slice(batch * len(train) // 5, (batch + 1) * len(train) // 5)
        content = cifar_bytes(Split(train.images[part], train.labels[part]))
        members[f"data_batch_{batch + 1}.bin"] = content
    members["test_batch.bin"] = cifar_bytes(splits["test"])
    members["readme.html"] = b"<html></html>"
    return {f"cifar-10-batches-bin/{name}": content for name, content in members.items()}


def cifar100_members(splits: dict[str, Split]) -> dict[str, bytes]:
    """The members of CIFAR-100's archive, by path; a coarse label is a fifth of the fine one."""
    members = {
        "train.bin": splits["train"],
        "test.bin": splits["test"],
        "coarse_label_names.txt": [f"group {label}" for label in range(20)],
        "fine_label_names.txt": [f"class {label}" for label in range(100)],
    }
    return {
        f"cifar-100-binary/{name}": cifar_bytes(content, (content.labels // 5).astype(np.uint8))
        if isinstance(content, Split)
        else "\n".join(content).encode()
        for name, content in members.items()
    }


def write_official(folder: Path, name: str, splits: dict[str, Split]) -> None:
    """Writes the archives of a data set of `jaxcnn.data.tfds.VERSIONS`."""
    base, _, config = name.partition("/")
    match base:
        case "emnist":
            write_emnist(folder, config, splits)
        case "svhn_cropped":
            write_svhn(folder, splits)
        case "cifar10":
            write_tar(folder / "cifar-10-binary.tar.gz", cifar_members(splits))
        case "cifar100":
            write_tar(folder / "cifar-100-binary.tar.gz", cifar100_members(splits))
        case _:
            write_mnist(folder, splits)


def archive(url: str, path: Path) -> Archive:
    """The description of a file that the server at `url` offers."""
    content = path.read_bytes()
    return Archive(f"{url}/{path.name}", len(content), hashlib.sha256(content).hexdigest())
