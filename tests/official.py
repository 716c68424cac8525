"""Small archives in the formats of the official ones."""

import gzip
import hashlib
import io
import struct
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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


def cifar_bytes(split: Split) -> bytes:
    """The bytes of a batch file of CIFAR-10."""
    planes = split.images.transpose(0, 3, 1, 2).reshape(len(split), -1)
    return np.concatenate([split.labels.astype(np.uint8)[:, None], planes], axis=1).tobytes()


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


def archive(url: str, path: Path) -> Archive:
    """The description of a file that the server at `url` offers."""
    content = path.read_bytes()
    return Archive(f"{url}/{path.name}", len(content), hashlib.sha256(content).hexdigest())
